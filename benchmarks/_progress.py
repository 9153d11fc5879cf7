"""Progress of a long measurement on stderr: what was measured, how fast, and the time that is left."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable


def note(line: str) -> None:
    """Print a line on stderr at once."""
    print(line, file=sys.stderr, flush=True)


class Progress:
    """Prints one line for each run of a side that ends.

    The time left is computed from the last run of each side; a side that has not run yet counts like the mean of the others.

    Args:
        runs: name of the side of each run, in their order.
        clock: seconds since a fixed time.
        write: prints a line.
    """

    def __init__(
        self,
        runs: Iterable[str],
        clock: Callable[[], float] = time.perf_counter,
        write: Callable[[str], None] = note,
    ) -> None:
        self._left = deque(runs)
        self._total = len(self._left)
        self._seconds: dict[str, float] = {}
        self._clock, self._write = clock, write
        self._last = clock()

    def step(self, name: str, result: str) -> None:
        """Report that the next run, one of ``name``, has ended.

        Args:
            name: name of its side.
            result: what was measured, such as ``24.1 images/s``.
        """
        moment = self._clock()
        self._seconds[name], self._last = moment - self._last, moment
        self._left.remove(name)
        done = self._total - len(self._left)
        self._write(f"[{done}/{self._total}] {name}: {result}; about {self._remaining()} left")

    def drop(self, name: str, reason: str) -> None:
        """Report that a side falls out, and count its runs no longer."""
        self._total -= self._left.count(name)
        self._left = deque(each for each in self._left if each != name)
        self._last = self._clock()
        self._write(f"left out: {name}: {reason}")

    def _remaining(self) -> str:
        mean = sum(self._seconds.values()) / len(self._seconds)
        seconds = sum(self._seconds.get(name, mean) for name in self._left)
        return f"{seconds / 60:.1f} min" if seconds >= 100 else f"{seconds:.0f} s"
