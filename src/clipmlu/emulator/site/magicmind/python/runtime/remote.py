"""``mm.remote`` (CV mm_infer.py)."""

from clipmlu.emulator.profiling import IRpcSession

__all__ = ["IRpcSession"]
