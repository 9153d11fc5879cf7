"""Dynamic batches: ready rows of all requests wait in one line, and go to the runtime when it has a place for a batch."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from clipmlu.clock import now
from clipmlu.errors import ClipmluError, ResultError
from clipmlu.serve.refusal import Refusal
from clipmlu.serve.tickets import RowGroup

if TYPE_CHECKING:
    from clipmlu.embed.rows import PendingRows

LONGEST_FILL_S = 0.05
"""Seconds that ready rows may wait for others of their batch."""

_log = logging.getLogger(__name__)


class Graph(Protocol):
    """Computes a row for each input; see ``embed.image_graph.ImageGraph``."""

    def submit(self, rows: Any, /) -> PendingRows:
        """Start one batch and return at once."""


class Row:
    """One input that is ready for the device.

    Args:
        group: the rows of its request.
        position: its place among them.
        graph: what computes it; a batch holds rows of one graph.
        values: the input, one row of a batch.
        release: called when ``values`` have been copied, or are not needed.
    """

    __slots__ = ("graph", "group", "position", "release", "values")

    def __init__(
        self,
        group: RowGroup,
        position: int,
        graph: Graph,
        values: npt.NDArray[Any],
        release: Callable[[], object] = lambda: None,
    ) -> None:
        self.group = group
        self.position = position
        self.graph = graph
        self.values = values
        self.release = release


class BatchSizes:
    """How many batches had how many rows."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[int, int] = {}

    def add(self, rows: int) -> None:
        """Count a batch."""
        with self._lock:
            self._counts[rows] = self._counts.get(rows, 0) + 1

    def counts(self) -> dict[int, int]:
        """Map a number of rows to the number of such batches so far."""
        with self._lock:
            return dict(sorted(self._counts.items()))


class Batcher:
    """Sends ready rows to the runtime, each with all that are ready when a place for a batch is free.

    There is one thread for each place, so a batch is formed at the last moment. Rows whose request has ended are dropped
    when a batch is formed. After ``fill_while``, rows also wait for others that are about to be ready.

    Args:
        places: batches that the runtime has at a time.
        size: largest number of rows of a batch.
        name: name of the threads.

    Attributes:
        sizes: the batches so far.
        in_flight: batches on the device now.
        failure: the error of the last batch, or None if it succeeded.
        dropped: rows that were dropped before they reached the device.
    """

    def __init__(self, places: int, size: int, name: str) -> None:
        self.sizes = BatchSizes()
        self.in_flight = 0
        self.failure: str | None = None
        self.dropped = 0
        self._size = size
        self._ready: deque[Row] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._more_come: Callable[[], object] = lambda: False
        self._longest_fill_s = 0.0
        self._oldest = 0.0  # when the first of the ready rows began to wait
        self._threads = [
            threading.Thread(target=self._work, name=f"clipmlu-{name}-{place}", daemon=True) for place in range(places)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Rows that are ready and wait for a place."""
        return len(self._ready)

    def fill_while(self, more_come: Callable[[], object], longest_s: float = LONGEST_FILL_S) -> None:
        """Let rows wait for a full batch while more will be ready soon.

        This is for runtimes that compute on the cores that prepare the rows: a small batch would only delay the others.

        Args:
            more_come: returns whether images wait to be prepared.
            longest_s: seconds after which rows wait no longer.
        """
        self._longest_fill_s = longest_s
        self._more_come = more_come

    def add(self, row: Row) -> None:
        """Add a ready row; after ``close`` its request fails."""
        with self._changed:
            if not self._closed:
                self._ready.append(row)
                if len(self._ready) == 1:
                    self._oldest = now()
                    self._changed.notify()  # a thread must know when the row has waited long enough
                elif not self._seconds_to_fill():
                    self._changed.notify()
                return
        row.release()
        row.group.fail(Refusal("stopping", "The server is stopping."))

    def close(self) -> None:
        """Finish the batches that the runtime has, fail the rows that wait, and end the threads."""
        with self._changed:
            self._closed = True
            waiting, self._ready = self._ready, deque()
            self._changed.notify_all()
        for row in waiting:
            row.release()
            row.group.fail(Refusal("stopping", "The server is stopping."))
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        buffer: npt.NDArray[Any] | None = None
        while (rows := self._take()) is not None:
            first = rows[0].values
            if buffer is None or buffer.shape[1:] != first.shape or buffer.dtype != first.dtype:
                buffer = np.empty((self._size, *first.shape), first.dtype)
            try:
                self._compute(rows, buffer[: len(rows)])
            finally:
                with self._changed:
                    self.in_flight -= 1
            del rows, first

    def _take(self) -> list[Row] | None:
        """Wait for rows, and return those of one graph for a batch; None to end the thread."""
        with self._changed:
            while True:
                seconds = self._seconds_to_fill()
                rows = [] if seconds else self._pick()
                if rows:
                    self.in_flight += 1
                    self._oldest = now()
                    if self._ready:  # of another graph, or more than a batch
                        self._changed.notify()
                    return rows
                if self._closed:
                    return None
                self._changed.wait(seconds or None)

    def _seconds_to_fill(self) -> float:
        """Return how long the ready rows should wait for others; 0 if a batch should be formed now."""
        if not self._ready or len(self._ready) >= self._size or not self._more_come():
            return 0.0
        return max(0.0, self._oldest + self._longest_fill_s - now())

    def _pick(self) -> list[Row]:
        """Take rows of the first one's graph, in order, and drop those for which nobody waits."""
        rows: list[Row] = []
        kept: list[Row] = []
        while self._ready and len(rows) < self._size:
            row = self._ready.popleft()
            if row.group.ticket.useless:
                self.dropped += 1
                row.release()
                row.group.drop()
            elif rows and row.graph is not rows[0].graph:
                kept.append(row)
            else:
                rows.append(row)
        self._ready.extendleft(reversed(kept))
        return rows

    def _compute(self, rows: list[Row], values: npt.NDArray[Any]) -> None:
        np.stack([row.values for row in rows], out=values)
        for row in rows:
            row.release()
        self._run(rows, values)

    def _run(self, rows: list[Row], values: npt.NDArray[Any]) -> None:
        try:
            results = rows[0].graph.submit(values).result()
        except ResultError as error:
            if len(rows) == 1:
                self._fail(rows, error)
            else:  # one input must not fail the requests of others
                for place, row in enumerate(rows):
                    self._run([row], values[place : place + 1])
            return
        except Exception as error:
            self.failure = str(error)
            self._fail(rows, error)
            return
        self.failure = None
        self.sizes.add(len(rows))
        for row, result in zip(rows, results, strict=True):
            row.group.finish(row.position, result)

    def _fail(self, rows: list[Row], error: Exception) -> None:
        if isinstance(error, ClipmluError):
            _log.error("A batch failed: %s", error)
            error = Refusal("device_failed", f"The device failed: {error}")
        else:
            _log.exception("A batch failed")
        for row in rows:
            row.group.fail(error)
