"""``magicmind.python.cc._pywrap_runtime``: the binding's own module (MC model_process.py)."""

from clipmlu.magicmind.emulator.network_graph import ITensor
from magicmind.python.cc._pywrap_runtime import enums

__all__ = ["ITensor", "enums"]
