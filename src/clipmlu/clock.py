"""Time of a pipeline's stages: seconds and items per stage, summed over all threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, get_args

Stage = Literal["read", "decode", "preprocess", "copy_in", "compute", "copy_out", "post_process"]

STAGES: tuple[Stage, ...] = get_args(Stage)
"""Stages in the order in which an image passes them."""

HOST_STAGES: tuple[Stage, ...] = ("read", "decode", "preprocess")
"""Stages that the pool of host threads runs."""

DEVICE_STAGES: tuple[Stage, ...] = ("copy_in", "compute", "copy_out")
"""Stages that the runtime runs, one batch after the other."""

now = time.perf_counter
"""The clock of all stages, in seconds."""


class StageTotal(NamedTuple):
    """Totals of one stage.

    Attributes:
        seconds: time in the stage, summed over parallel threads.
        items: number of images (host stages and post-processing) or rows (device stages).
    """

    seconds: float
    items: int


class StageClock:
    """Sums the time of stages; threads may share one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[Stage, float] = {}
        self._items: dict[Stage, int] = {}

    def add(self, seconds: Mapping[Stage, float], items: int) -> None:
        """Add ``items`` that passed stages.

        Args:
            seconds: maps a stage to the seconds of all items together.
            items: number of items.
        """
        with self._lock:
            for stage, spent in seconds.items():
                self._seconds[stage] = self._seconds.get(stage, 0.0) + spent
                self._items[stage] = self._items.get(stage, 0) + items

    def totals(self) -> dict[Stage, StageTotal]:
        """Map each stage that was used to its totals so far, in the order of ``STAGES``."""
        with self._lock:
            return {
                stage: StageTotal(self._seconds[stage], self._items[stage])
                for stage in STAGES
                if stage in self._seconds
            }


class SummedClock(StageClock):
    """The sum of several clocks.

    Args:
        clocks: the clocks; their later times count too.
    """

    def __init__(self, clocks: Iterable[StageClock]) -> None:
        super().__init__()
        self._clocks = tuple(clocks)

    def totals(self) -> dict[Stage, StageTotal]:
        """Map each used stage to its totals so far over all clocks, in the order of ``STAGES``."""
        found = [clock.totals() for clock in self._clocks]
        used = [stage for stage in STAGES if any(stage in totals for totals in found)]
        return {stage: _sum(totals[stage] for totals in found if stage in totals) for stage in used}


def _sum(totals: Iterable[StageTotal]) -> StageTotal:
    seconds, items = zip(*totals, strict=True)
    return StageTotal(sum(seconds), sum(items))
