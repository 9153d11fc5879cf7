"""``mm.remote`` (CV mm_infer.py)."""

from clipmlu.magicmind.emulator.profiling import IRpcSession

__all__ = ["IRpcSession"]
