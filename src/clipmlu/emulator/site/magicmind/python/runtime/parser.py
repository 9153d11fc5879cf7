"""``magicmind.python.runtime.parser``: the same class as ``mm.Parser`` (MC framework_parser.py)."""

from clipmlu.emulator.parser import Parser
from clipmlu.emulator.types import ModelKind

__all__ = ["ModelKind", "Parser"]
