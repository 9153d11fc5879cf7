"""The time limit of one image, which another thread may end early."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

from clipmlu.data.url.errors import UrlError

STEP_S = 0.1
"""Longest wait that does not notice a cancellation."""


class TimeLimit:
    """A number of seconds from now, in which an image must be fetched.

    Args:
        seconds: the limit.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._cancelled = False
        self._socket: socket.socket | None = None

    def left(self) -> float:
        """Return the seconds that are left, more than 0.

        Raises:
            TimeoutError: there are none.
            UrlError: it was cancelled.
        """
        if self._cancelled:
            raise UrlError("the run was stopped.")
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def sleep(self, seconds: float) -> bool:
        """Wait; return False if the limit is or would be reached.

        Raises:
            UrlError: it was cancelled.
        """
        try:
            if self.left() <= seconds:
                return False
            while seconds > 0:
                time.sleep(min(seconds, STEP_S))
                seconds -= STEP_S
                self.left()
        except TimeoutError:
            return False
        return True

    def apply_to(self, connection: socket.socket) -> None:
        """Limit the next operation of a socket, which ``cancel`` also ends.

        Raises:
            TimeoutError, UrlError: as for ``left``.
        """
        with self._lock:
            self._socket = connection
            connection.settimeout(self.left())

    def cancel(self) -> None:
        """End what another thread waits for."""
        with self._lock, contextlib.suppress(OSError):
            self._cancelled = True
            if self._socket is not None:
                # Of the plain socket also for TLS, whose own method would forget the state that the other thread uses.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
