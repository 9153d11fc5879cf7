"""The limit of the queue: how much may wait, and how long a client should wait before it tries again."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from clipmlu.clock import now
from clipmlu.serve.refusal import Refusal

_WINDOW_S = 10.0  # of busy time; earlier rows count half as much after each
_LONGEST_RETRY_S = 60
_LEAST_ROWS = 32  # before so many have finished, their rate says little: the first one may have come alone


class QueueLimit:
    """Rows that wait or are computed, at most ``limit``; threads may share it.

    A request that is larger than the limit is admitted when nothing waits.

    Args:
        limit: largest number of rows.
        what: what the rows are, for messages.
        clock: the time in seconds.
    """

    def __init__(self, limit: int, what: str, clock: Callable[[], float] = now) -> None:
        self._limit = limit
        self._what = what
        self._clock = clock
        self._lock = threading.Lock()
        self._finished = 0.0
        self._busy = 0.0  # seconds in which rows waited, without those since ``_since``
        self._since = 0.0
        self.waiting = 0

    def take(self, count: int) -> None:
        """Admit rows.

        Raises:
            Refusal: the limit is reached.
        """
        with self._lock:
            if not self.waiting:
                self._since = self._clock()
            if not self.waiting or self.waiting + count <= self._limit:
                self.waiting += count
                return
            waiting, seconds = self.waiting, self._retry_seconds()
        raise Refusal(
            "overloaded",
            f"{waiting} {self._what} wait already; at most {self._limit} may. Try again in {seconds} s.",
            {"Retry-After": str(seconds)},
        )

    def end_one(self) -> None:
        """Count a row as finished or dropped."""
        with self._lock:
            self.waiting -= 1
            self._finished += 1
            moment = self._clock()
            self._busy += moment - self._since
            self._since = moment
            if self._busy > _WINDOW_S:
                self._busy /= 2
                self._finished /= 2

    def _retry_seconds(self) -> int:
        """Return the seconds until what waits has finished, at the rate of the busy time so far."""
        busy = self._busy + self._clock() - self._since
        wait = self.waiting * busy / self._finished if self._finished >= _LEAST_ROWS else 1.0
        return min(max(1, math.ceil(wait)), _LONGEST_RETRY_S)
