"""Progress of long commands on stderr: on a terminal a line that is redrawn, else a line now and then."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING

from clipmlu.cli._counts import ProgressCounts, StepCounts, describe_duration
from clipmlu.cli._notes import is_quiet, note
from clipmlu.cli._status import STATUS, can_redraw, compose, terminal_columns
from clipmlu.clock import now

if TYPE_CHECKING:
    from clipmlu.embed.items import RowBatch
    from clipmlu.measure.speed.load import PipelineLoad
    from clipmlu.steps import Step

_LONG_S = 2.0
_LINE_EVERY_S = 30.0
_DRAW_EVERY_S = 0.2
_FREE = 3  # columns: a terminal shows ^C behind the line, which must not begin another one


class _Row:
    """A step that runs and is shown.

    Attributes:
        counts: what it is and how far.
        began: seconds of the clock.
        said: when a line about it was printed, or None.
    """

    def __init__(self, counts: ProgressCounts | StepCounts, began: float) -> None:
        self.counts = counts
        self.began = began
        self.said: float | None = None


class StepDisplay:
    """Shows the steps that run, the innermost first; a value for every ``on_step``.

    On a terminal the last line shows them from the beginning to the end of each. Elsewhere a step that has run for two
    seconds prints a line, another one each 30 seconds, and its duration at the end. Notes are printed above. Quiet commands show
    nothing.

    Args:
        clock: seconds.
        ticking: a thread refreshes the display while steps run; otherwise the caller does, with ``refresh``.

    Attributes:
        clock: the clock.
    """

    def __init__(self, clock: Callable[[], float] = now, *, ticking: bool = True) -> None:
        self.clock = clock
        self._ticking = ticking
        self._lock = threading.RLock()
        self._rows: list[_Row] = []
        self._stopped = threading.Event()
        self._frame = 0

    @contextlib.contextmanager
    def __call__(self, label: str, *, total: float | None = None, unit: str = "") -> Iterator[Step]:
        """Show a step; see ``clipmlu.steps.StartStep``."""
        counts = StepCounts(label, total, unit, self.clock)
        row = self._begin(counts)
        try:
            yield counts
        except BaseException:
            self._end(row)
            raise
        self._end(row, report=True)

    @contextlib.contextmanager
    def show(self, counts: ProgressCounts) -> Iterator[None]:
        """Show counts inside the block; the command itself reports their end."""
        row = self._begin(counts)
        try:
            yield
        finally:
            self._end(row)

    def refresh(self) -> None:
        """Draw the line again, or print the lines that are due."""
        with self._lock:
            if not self._rows or is_quiet():
                return
            if can_redraw():
                self._draw()
            else:
                self._print_due()

    def close(self) -> None:
        """End all steps, such as those whose end an interruption prevented."""
        with self._lock:
            self._rows.clear()
            self._stopped.set()
            STATUS.erase()

    def _begin(self, counts: ProgressCounts | StepCounts) -> _Row:
        row = _Row(counts, self.clock())
        with self._lock:
            self._rows.append(row)
            if self._ticking and len(self._rows) == 1:
                self._stopped = threading.Event()
                threading.Thread(target=self._tick, args=(self._stopped,), name="clipmlu-steps", daemon=True).start()
            self.refresh()
        return row

    def _end(self, row: _Row, *, report: bool = False) -> None:
        with self._lock:
            if row in self._rows:
                self._rows.remove(row)
            if not self._rows:
                self._stopped.set()
                STATUS.erase()
            seconds = self.clock() - row.began
            if report and seconds >= _LONG_S:
                note(f"{row.counts.label}: {describe_duration(seconds)}")
            self.refresh()

    def _tick(self, stopped: threading.Event) -> None:
        while not stopped.wait(_DRAW_EVERY_S):
            self.refresh()

    def _draw(self) -> None:
        self._frame += 1
        labels = [row.counts.label for row in self._rows]
        counts = self._rows[-1].counts
        STATUS.draw(compose(labels, counts.parts(), counts.fraction, terminal_columns() - _FREE, self._frame))

    def _print_due(self) -> None:
        moment = self.clock()
        for row in self._rows:
            if row.said is None and moment - row.began >= _LONG_S:
                note(row.counts.announcement())
                row.said = moment
            elif row.said is not None and moment - row.said >= _LINE_EVERY_S:
                note(row.counts.line())
                row.said = moment


STEPS = StepDisplay()
"""The display of this process: what commands pass as ``on_step``."""


class ProgressView:
    """Shows ``ProgressCounts`` inside a block, as ``StepDisplay`` shows a step.

    Args:
        label: what the command does.
        total: number of images of a command that does not call ``start``: it is shown from its first images on.
        display: where.
    """

    def __init__(self, label: str, total: int | None = None, display: StepDisplay = STEPS) -> None:
        self._counts = ProgressCounts(label, display.clock)
        self._total = total
        self._started = False
        self._display = display
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> ProgressView:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def start(self, total: int | None, done: int = 0, *, unit: str = "images") -> None:
        """Begin to show; see ``ProgressCounts.start``."""
        self._started = True
        self._counts.start(total, done, unit=unit)
        self._stack.enter_context(self._display.show(self._counts))

    def add(self, *, images: int = 0, shards: int = 0, errors: int = 0, load: PipelineLoad | None = None) -> None:
        """Count; see ``ProgressCounts.add``."""
        if not self._started:
            self.start(self._total, images)
            return
        self._counts.add(images=images, shards=shards, errors=errors, load=load)


def with_progress(batches: Iterator[RowBatch], label: str) -> Generator[RowBatch, None, None]:
    """Yield batches whose results go to standard output, and show them: on a terminal only the wait for the first one."""
    with STEPS(label):
        first = next(batches, None)
    if first is None:
        return
    with ProgressView(label) as progress:
        if not sys.stdout.isatty():
            progress.start(None)
        yield first
        for batch in batches:
            if not sys.stdout.isatty():
                progress.add(images=len(batch.items))
            yield batch
