"""The worker's log lines, and the last lines of a child process."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import Any

from .values import printable

LOG_TAIL = 16 << 10


def log_line(text: str) -> None:
    """Write a log line to stderr; the text is reduced to one line."""
    with contextlib.suppress(OSError):
        print(f"clipmlu worker: {printable(text, 400)}", file=sys.stderr, flush=True)


class LogTail:
    """The last lines of a process's error stream, which has the log of the vendor's library.

    Args:
        stream: a pipe; a thread reads it to its end.
        echo: also copy it to this process's error stream.
    """

    def __init__(self, stream: Any, echo: bool = False) -> None:
        self._stream = stream
        self._echo = echo
        self._tail = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def text(self, wait_seconds: float = 1.0) -> str:
        """Return the last lines; waits up to ``wait_seconds`` for the end of the stream."""
        self._thread.join(wait_seconds)
        return self._tail.decode("utf-8", "replace").strip()

    def _read(self) -> None:
        with self._stream:
            for piece in iter(lambda: self._stream.read1(1 << 16), b""):
                self._tail = (self._tail + piece)[-LOG_TAIL:]
                if self._echo:
                    with contextlib.suppress(OSError):
                        os.write(2, piece)
