"""A limit on the decoded pixels that the threads of a pipeline hold together; only large images wait."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections import deque
from collections.abc import Callable

from clipmlu.data.images import DEFAULT_MAX_PIXELS
from clipmlu.errors import InputError

FREE_PIXELS = 4 << 20
"""Images up to this number of pixels are not counted: 16 MiB per thread."""
_PHOTO_PIXELS = 24_000_000  # a current camera photo; the budget has one per thread, so that all cores can decode photos


class PixelBudget:
    """Admits images to decoding in the order of requests, within a total number of pixels.

    The total is one image of the default maximal size, or a camera photo per thread, whichever is more. A larger image
    is decoded alone. A thread holds one image at a time and then waits for nothing, so that every image is admitted.

    Args:
        threads: number of threads.
    """

    def __init__(self, threads: int) -> None:
        self.pixels = max(DEFAULT_MAX_PIXELS, threads * _PHOTO_PIXELS)
        self._free = self.pixels
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def take(self, pixels: int) -> int:
        """Wait for admission; return the number of pixels to give back.

        Raises:
            InputError: the pipeline was stopped; the result of this image is not used.
        """
        admitted = min(pixels, self.pixels)
        request = object()
        with self._changed:
            self._waiting.append(request)
            self._changed.wait_for(lambda: self._closed or (self._waiting[0] is request and self._free >= admitted))
            self._waiting.remove(request)
            if self._closed:
                raise InputError("The pipeline was stopped.")
            self._free -= admitted
            self._changed.notify_all()
        return admitted

    def give_back(self, pixels: int) -> None:
        """Return pixels to the budget."""
        with self._changed:
            self._free += pixels
            self._changed.notify_all()

    def close(self) -> None:
        """Make all current and later requests fail."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _return_memory() -> None:
    """Return freed memory to the system; glibc would keep it for the thread that freed it."""
    trim = _find_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _find_trim() -> Callable[[int], int] | None:
    """Return glibc's ``malloc_trim``, or None with other libraries."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # TypeError: Windows
        return None
    return trim


class PixelReservation:
    """The pixels of a budget that one thread holds for its current image."""

    def __init__(self, budget: PixelBudget) -> None:
        self._budget = budget
        self._held = 0

    def reserve(self, pixels: int) -> None:
        """Wait until an image with this number of pixels may be decoded; see ``PixelBudget.take``."""
        if pixels > FREE_PIXELS:
            self._held = self._budget.take(pixels)

    def end(self) -> None:
        """Return the pixels; the image is no longer in memory."""
        if self._held:
            if self._held > _PHOTO_PIXELS:
                _return_memory()
            self._budget.give_back(self._held)
            self._held = 0
