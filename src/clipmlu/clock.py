"""Where the time of a pipeline goes: seconds and items by stage, summed over all threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

Stage = Literal["read", "decode", "preprocess", "copy_in", "compute", "copy_out", "post_process"]

STAGES: tuple[Stage, ...] = get_args(Stage)
"""In the order in which an image passes through them."""

HOST_STAGES: tuple[Stage, ...] = ("read", "decode", "preprocess")
"""What the pool of workers does."""

DEVICE_STAGES: tuple[Stage, ...] = ("copy_in", "compute", "copy_out")
"""What the runtime does, one batch after the other."""

now = time.perf_counter
"""The clock of all stages, in seconds."""


class StageTotal(NamedTuple):
    """What one stage took.

    Attributes:
        seconds: time spent in it, summed over the threads that did it at once.
        items: images (host stages and post-processing) or rows (device stages) that passed through.
    """

    seconds: float
    items: int


class StageClock:
    """Adds up what stages took; threads may share one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[Stage, float] = {}
        self._items: dict[Stage, int] = {}

    def add(self, seconds: Mapping[Stage, float], items: int) -> None:
        """Count ``items`` that passed through stages.

        Args:
            seconds: stage -> seconds that all of them together took there.
            items: how many they were.
        """
        with self._lock:
            for stage, spent in seconds.items():
                self._seconds[stage] = self._seconds.get(stage, 0.0) + spent
                self._items[stage] = self._items.get(stage, 0) + items

    def totals(self) -> dict[Stage, StageTotal]:
        """Stage -> what it took so far, in the order of ``STAGES``; stages that nothing passed through are left out."""
        with self._lock:
            return {
                stage: StageTotal(self._seconds[stage], self._items[stage])
                for stage in STAGES
                if stage in self._seconds
            }
