"""How far steps and commands are: numbers, remaining time and rates, as texts."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from clipmlu.clock import now
from clipmlu.steps import BYTES, SECONDS

if TYPE_CHECKING:
    from clipmlu.measure.speed.load import PipelineLoad

_MEMORY_S = 60.0


class StepCounts:
    """How far a step is; see ``clipmlu.steps``.

    Args:
        label: what is done.
        total: number of units, or None if the length is not known.
        unit: what is counted.
        clock: seconds.
    """

    def __init__(self, label: str, total: float | None, unit: str, clock: Callable[[], float] = now) -> None:
        self.label = label
        self._total = total
        self._unit = unit
        self._clock = clock
        self._began = clock()
        self._count = 0
        self._lock = threading.Lock()

    def advance(self, count: int = 1) -> None:
        """Count finished units."""
        with self._lock:
            self._count += count

    @property
    def fraction(self) -> float | None:
        """Finished part, from 0 to 1; None if the length is not known."""
        return None if self._total is None else min(1.0, self._done / self._total) if self._total else 1.0

    def parts(self) -> list[str]:
        """Return number and time, the most important first."""
        if self._total is None:
            return [describe_elapsed(self._elapsed)]
        return [part for part in (f"{self._shown(self._done)}/{self._amount}", self._left()) if part]

    def announcement(self) -> str:
        """Return a line for the beginning."""
        return f"{self.label} ..." if self._total is None else f"{self.label} ({self._amount}) ..."

    def line(self) -> str:
        """Return a line for between."""
        if self._total is None:
            return f"{self.label}: {describe_elapsed(self._elapsed)} so far"
        amount = f"{self.label}: {self._shown(self._done)} of {self._amount}"
        return ", ".join(part for part in (amount, self._left()) if part)

    @property
    def _amount(self) -> str:
        """The whole number with its unit."""
        unit = "MB" if self._unit == BYTES else self._unit
        return f"{self._shown(self._total or 0)} {unit}".rstrip()

    def _shown(self, number: float) -> str:
        return f"{number / 1e6:.1f}" if self._unit == BYTES else f"{number:.0f}"

    @property
    def _elapsed(self) -> float:
        return self._clock() - self._began

    @property
    def _done(self) -> float:
        return min(self._elapsed, self._total or 0.0) if self._unit == SECONDS else self._count

    def _left(self) -> str:
        if self._unit == SECONDS or not self._count or self._total is None:
            return ""
        return f"{describe_seconds(max(0.0, self._total - self._count) * self._elapsed / self._count)} left"


class ProgressCounts:
    """How far a command is.

    Args:
        label: what it does, such as ``embedding``.
        clock: seconds.

    Attributes:
        total: number of images, or of shards if that of images is not known; None if neither is.
    """

    def __init__(self, label: str, clock: Callable[[], float] = now) -> None:
        from clipmlu.measure.speed.load import LoadSum

        self.label = label
        self.total: int | None = None
        self._unit = "images"
        self._images = self._shards = self._errors = 0
        self._clock = clock
        self._last = clock()
        self._recent_images = self._recent_seconds = 0.0
        self._load = LoadSum()

    def start(self, total: int | None, done: int, *, unit: str = "images") -> None:
        """Begin to count; what was done before this run does not count as speed."""
        self.total, self._unit = total, unit
        self._images, self._shards = (done, 0) if unit == "images" else (0, done)
        self._last = self._clock()

    @property
    def done(self) -> int:
        """Finished images or shards, as ``total`` counts."""
        return self._images if self._unit == "images" else self._shards

    def add(self, *, images: int = 0, shards: int = 0, errors: int = 0, load: PipelineLoad | None = None) -> None:
        """Count finished images and shards, and unreadable images."""
        self._shards += shards
        self._errors += errors
        if load is not None:
            self._load.add(load)
        if images:
            moment = self._clock()
            passed, self._last = moment - self._last, moment
            fade = math.exp(-passed / _MEMORY_S)
            self._recent_images = fade * self._recent_images + images
            self._recent_seconds = fade * self._recent_seconds + passed
            self._images += images

    @property
    def images_per_second(self) -> float:
        """Rate in about the last minute; 0 before the first image."""
        return self._recent_images / max(self._recent_seconds, 1e-9) if self._recent_images else 0.0

    @property
    def fraction(self) -> float | None:
        """Finished part, from 0 to 1; None if the total is not known."""
        return None if self.total is None else min(1.0, self.done / self.total) if self.total else 1.0

    def parts(self) -> list[str]:
        """Return number, time and rate, the most important first."""
        amount = f"{self.done} {self._unit}" if self.total is None else f"{self.done}/{self.total} {self._unit}"
        return [part for part in (amount, self._left(), *self._details()) if part]

    def announcement(self) -> str:
        """Return a line for the beginning."""
        return f"{self.label} ..." if self.total is None else f"{self.label} ({self.total} {self._unit}) ..."

    def line(self) -> str:
        """Return a line for between."""
        amount = f"{self.done} {self._unit}" if self.total is None else f"{self.done} of {self.total} {self._unit}"
        return ", ".join(part for part in (f"{self.label}: {amount}", self._left(), *self._details()) if part)

    def _details(self) -> list[str]:
        """Return rate, errors and what limits the speed."""
        errors = f"{self._errors} error{'' if self._errors == 1 else 's'}" if self._errors else ""
        rate = f"{self.images_per_second:.1f} images/s" if self._recent_images else ""
        return [part for part in (rate, errors, self._load.describe()) if part]

    def _left(self) -> str:
        if self.total is None or self._unit != "images" or not self.images_per_second:
            return ""
        return f"{describe_seconds((self.total - self._images) / self.images_per_second)} left"


def describe_seconds(seconds: float) -> str:
    """Return a duration such as ``40 s``, ``12 min`` or ``3 h 5 min``."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def describe_duration(seconds: float) -> str:
    """Return a measured duration such as ``2.4 s``, ``40 s`` or ``12 min``."""
    return f"{seconds:.1f} s" if seconds < 10 else describe_seconds(seconds)


def describe_elapsed(seconds: float) -> str:
    """Return the time since a beginning such as ``40 s`` or ``2:05``."""
    whole = int(seconds)
    if whole < 3600:
        return f"{whole} s" if whole < 60 else f"{whole // 60}:{whole % 60:02}"
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
