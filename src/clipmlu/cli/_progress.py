"""Progress of long commands on stderr: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from clipmlu.cli._notes import note
from clipmlu.clock import now

if TYPE_CHECKING:
    from rich.progress import Progress

    from clipmlu.measure.speed.load import PipelineLoad

_LINE_EVERY_S = 30.0
_TEXT_EVERY_S = 1.0
_MEMORY_S = 60.0


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

    def details(self) -> str:
        """Return rate, errors and what limits the speed, comma-separated."""
        parts = [f"{self.images_per_second:.1f} images/s"] if self._recent_images else []
        if self._errors:
            parts.append(f"{self._errors} error{'' if self._errors == 1 else 's'}")
        limit = self._load.describe()
        return ", ".join(parts) + (f"; {limit}" if limit else "")

    def line(self) -> str:
        """Return all of it in a line."""
        amount = f"{self.done} {self._unit}" if self.total is None else f"{self.done} of {self.total} {self._unit}"
        return ", ".join(part for part in (f"{self.label}: {amount}", self._left(), self.details()) if part)

    def _left(self) -> str:
        if self.total is None or self._unit != "images" or not self.images_per_second:
            return ""
        return f"{describe_seconds((self.total - self._images) / self.images_per_second)} left"


class ProgressView:
    """Shows ``ProgressCounts`` inside a block: on a terminal a bar, else a line each 30 seconds, so none in short runs.

    Args:
        label: what the command does.
        total: number of images of a command that does not call ``start``: the bar begins with its first images.
        clock: seconds.
    """

    def __init__(self, label: str, total: int | None = None, clock: Callable[[], float] = now) -> None:
        self._counts = ProgressCounts(label, clock)
        self._total = total
        self._started = False
        self._clock = clock
        self._shown = clock()
        self._bar: Progress | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> ProgressView:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def start(self, total: int | None, done: int = 0, *, unit: str = "images") -> None:
        """Show the bar; see ``ProgressCounts.start``."""
        self._started = True
        self._counts.start(total, done, unit=unit)
        self._shown = self._clock()
        if sys.stderr.isatty():
            self._bar = self._stack.enter_context(_new_bar())
            self._bar.add_task(self._counts.label, total=total, completed=done, details="")

    def add(self, *, images: int = 0, shards: int = 0, errors: int = 0, load: PipelineLoad | None = None) -> None:
        """Count; see ``ProgressCounts.add``."""
        if not self._started:
            self.start(self._total, images)
            return
        self._counts.add(images=images, shards=shards, errors=errors, load=load)
        moment = self._clock()
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=self._counts.done)
            if moment - self._shown >= _TEXT_EVERY_S:
                self._bar.update(task, details=self._counts.details())
                self._shown = moment
        elif moment - self._shown >= _LINE_EVERY_S:
            note(self._counts.line())
            self._shown = moment


def describe_seconds(seconds: float) -> str:
    """Return a duration such as ``40 s``, ``12 min`` or ``3 h 5 min``."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _new_bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[details]}"),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
