"""``magicmind.python.runtime.model``: the same class as ``mm.Model`` (MC model_process.py)."""

from clipmlu.magicmind.emulator.model import Model

__all__ = ["Model"]
