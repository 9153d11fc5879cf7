"""How many decoded pixels the threads of one pipeline hold together: large images wait for one another, small ones never."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections import deque
from collections.abc import Callable

from clipmlu.data.images import DEFAULT_MAX_PIXELS
from clipmlu.errors import InputError

FREE_PIXELS = 4 << 20
"""Images up to this size are not counted: 16 MiB for each thread."""
_PHOTO_PIXELS = 24_000_000  # of today's cameras: so many for each thread, so that photos are decoded on all cores


class PixelBudget:
    """Lets images be decoded in the order in which they ask, as long as all together stay below a number of pixels.

    The number is that of one image of the largest size that is decoded by default, or of a camera's photo for each thread,
    whichever is more. A larger image than that is decoded alone. A thread holds one image at a time and waits for nothing while
    it does, so that every image gets its turn.

    Args:
        threads: how many share it.
    """

    def __init__(self, threads: int) -> None:
        self.pixels = max(DEFAULT_MAX_PIXELS, threads * _PHOTO_PIXELS)
        self._free = self.pixels
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def take(self, pixels: int) -> int:
        """Wait for a turn; returns what to give back.

        Raises:
            InputError: the pipeline was stopped; nobody reads what becomes of the image.
        """
        wanted = min(pixels, self.pixels)
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            self._changed.wait_for(lambda: self._closed or (self._waiting[0] is ticket and self._free >= wanted))
            self._waiting.remove(ticket)
            if self._closed:
                raise InputError("The pipeline was stopped.")
            self._free -= wanted
            self._changed.notify_all()
        return wanted

    def give_back(self, pixels: int) -> None:
        """Let others have them."""
        with self._changed:
            self._free += pixels
            self._changed.notify_all()

    def close(self) -> None:
        """Send away all that wait, and all that come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _return_memory() -> None:
    """Give what was freed back to the system: glibc keeps it for the thread that freed it, while others allocate anew."""
    trim = _find_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _find_trim() -> Callable[[int], int] | None:
    """Glibc's ``malloc_trim``; other libraries have none."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # TypeError: Windows
        return None
    return trim


class Turn:
    """What one thread holds of a budget: nothing, or the pixels of the image in hand."""

    def __init__(self, budget: PixelBudget) -> None:
        self._budget = budget
        self._held = 0

    def reserve(self, pixels: int) -> None:
        """Wait until an image of so many pixels may be decoded; see ``PixelBudget.take``."""
        if pixels > FREE_PIXELS:
            self._held = self._budget.take(pixels)

    def end(self) -> None:
        """The image is no longer in memory."""
        if self._held:
            if self._held > _PHOTO_PIXELS:
                _return_memory()
            self._budget.give_back(self._held)
            self._held = 0
