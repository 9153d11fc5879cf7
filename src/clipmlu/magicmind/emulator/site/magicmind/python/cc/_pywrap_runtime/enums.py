"""The same enumeration as ``mm.DataType`` (MC model_process.py)."""

from clipmlu.magicmind.emulator.types import DataType

__all__ = ["DataType"]
