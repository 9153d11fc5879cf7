"""``magicmind.python.runtime.parser``: the same class as ``mm.Parser`` (MC framework_parser.py)."""

from clipmlu.magicmind.emulator.parser import Parser
from clipmlu.magicmind.emulator.types import ModelKind

__all__ = ["ModelKind", "Parser"]
