"""Cambricon's MagicMind: ``driver.py`` alone speaks to the SDK; the rest reaches the driver, here or in a worker."""

from clipmlu.backends.magicmind.backend import EmulatedMagicMindBackend, MagicMindBackend, emulated_worker
from clipmlu.backends.magicmind.options import CalibrationData, MluOptions, RunOptions, WorkerOptions

__all__ = [
    "CalibrationData",
    "EmulatedMagicMindBackend",
    "MagicMindBackend",
    "MluOptions",
    "RunOptions",
    "WorkerOptions",
    "emulated_worker",
]
