"""The limit of the queue: how much may wait, and how long a client should wait before it tries again."""

from __future__ import annotations

import math
import threading
from collections import deque

from clipmlu.clock import now
from clipmlu.serve.refusal import Refusal

_WINDOW_S = 10.0
_LONGEST_RETRY_S = 60


class FinishRate:
    """Rows that finish per second, over the last seconds in which any did."""

    def __init__(self) -> None:
        self._slots: deque[tuple[int, int]] = deque()  # second, rows

    def add(self, count: int) -> None:
        """Count rows that have finished now."""
        second = int(now())
        if self._slots and self._slots[-1][0] == second:
            self._slots[-1] = (second, self._slots[-1][1] + count)
        else:
            self._slots.append((second, count))
        while len(self._slots) > _WINDOW_S:
            self._slots.popleft()

    def per_second(self) -> float | None:
        """Return the rate; None before anything has finished."""
        if not self._slots:
            return None
        whole = list(self._slots)[:-1] or list(self._slots)  # the current second is not over
        return sum(count for _, count in whole) / len(whole)


class QueueLimit:
    """Rows that wait or are computed, at most ``limit``; threads may share it.

    A request that is larger than the limit is admitted when nothing waits.

    Args:
        limit: largest number of rows.
        what: what the rows are, for messages.
    """

    def __init__(self, limit: int, what: str) -> None:
        self._limit = limit
        self._what = what
        self._lock = threading.Lock()
        self._rate = FinishRate()
        self.waiting = 0

    def take(self, count: int, deadline: float) -> None:
        """Admit rows.

        Raises:
            Refusal: the limit is reached, or the rows would not be computed before the deadline.
        """
        with self._lock:
            wait = self._expected_wait()
            full = self.waiting > 0 and self.waiting + count > self._limit
            late = wait is not None and self.waiting > 0 and now() + wait > deadline
            if not full and not late:
                self.waiting += count
                return
            waiting = self.waiting
        seconds = 1 if wait is None else min(max(1, math.ceil(wait)), _LONGEST_RETRY_S)
        reason = f"at most {self._limit} may" if full else f"they take {wait:.1f} s, longer than the request may"
        raise Refusal(
            "overloaded",
            f"{waiting} {self._what} wait already; {reason}. Try again in {seconds} s.",
            {"Retry-After": str(seconds)},
        )

    def end_one(self) -> None:
        """Count a row as finished or dropped."""
        with self._lock:
            self.waiting -= 1
            self._rate.add(1)

    def _expected_wait(self) -> float | None:
        rate = self._rate.per_second()
        return None if not rate else self.waiting / rate
