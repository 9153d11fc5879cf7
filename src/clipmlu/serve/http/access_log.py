"""The access log: one line of JSON for each request, written by a thread so that a slow reader delays no answer."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

_MOST_WAITING = 10_000


class AccessLog:
    """Writes a line for each request; lines are lost if the reader is too slow, and counted.

    Args:
        write: writes a line with its end; None for no log.

    Attributes:
        lost: lines that were not written.
    """

    def __init__(self, write: Callable[[str], object] | None) -> None:
        self.lost = 0
        self._write = write
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue(_MOST_WAITING)
        self._thread: threading.Thread | None = None
        if write is not None:
            self._thread = threading.Thread(target=self._run, name="clipmlu-access-log", daemon=True)
            self._thread.start()

    def add(self, **facts: Any) -> None:
        """Log a request."""
        if self._thread is None:
            return
        try:
            self._lines.put_nowait({"time": time.time(), **facts})
        except queue.Full:
            self.lost += 1

    def close(self) -> None:
        """Write what waits, within a second, and end the thread."""
        if self._thread is not None:
            try:
                self._lines.put(None, timeout=1)
            except queue.Full:
                return
            self._thread.join(1)

    def _run(self) -> None:
        assert self._write is not None, "there is a thread only with a writer"
        while (facts := self._lines.get()) is not None:
            facts["time"] = (
                time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(facts["time"])) + f".{facts['time'] % 1:.3f}"[2:] + "Z"
            )
            try:
                self._write(msgspec.json.encode(facts).decode() + "\n")
            except (OSError, ValueError):
                self.lost += 1
