"""Shared memory between this process and one worker: anonymous, so that it disappears with the processes.

Its size is sealed, because access to memory that the other process has truncated kills a process. It is never passed to
a second worker, since the first one may still write into it.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Sequence

import numpy as np

from clipmlu.data.feeds import Array
from clipmlu.magicmind.client.peer import Fields
from clipmlu.magicmind.driver.arrays import arrays_in, layout_of
from clipmlu.magicmind.driver.shared_memory import map_slot, seal_size

_LEAST_BYTES = 1 << 20
_PAGE = 1 << 16
_numbers = itertools.count(1)


@functools.cache
def can_share() -> bool:
    """Return whether this system has memory with a sealed size that is passed by descriptor."""
    if not hasattr(os, "memfd_create"):
        return False
    try:
        Slot(0).close()
    except OSError:  # the kernel does not support seals
        return False
    return True


class Slot:
    """Shared memory for one batch: its arrays, followed by space for the results.

    Attributes:
        number: its number on the wire.
        size: size in bytes.
        descriptor: file descriptor that is passed to the worker.
    """

    def __init__(self, size: int) -> None:
        self.number = next(_numbers)
        self.size = -(-max(size, _LEAST_BYTES) // _PAGE) * _PAGE
        self.descriptor = os.memfd_create("clipmlu-batch", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, self.size)
            seal_size(self.descriptor)
            self._memory: Array = map_slot(self.descriptor, self.size)
        except BaseException:
            os.close(self.descriptor)
            raise
        self._listed: list[Fields] = []
        self._end = 0

    def fill(self, arrays: Sequence[Array]) -> None:
        """Copy a batch into the memory."""
        self._listed, self._end = layout_of(arrays)
        views = arrays_in({"arrays": self._listed}, self._memory, {})
        for view, values in zip(views, arrays, strict=True):
            if values.size:
                np.copyto(view, values)

    def request(self) -> Fields:
        """Return the request's fields for the arrays in the memory and the place of the results."""
        listed = [{**entry, "slot": self.number} for entry in self._listed]
        return {"arrays": listed, "reply": {"slot": self.number, "offset": self._end}}

    def results(self, header: Fields, payload: Array) -> list[Array]:
        """Return copies of the arrays of an answer.

        Raises:
            ProtocolError: the answer's list of arrays is invalid.
        """
        return [np.array(view) for view in arrays_in(header, payload, {self.number: self._memory})]

    def close(self) -> None:
        """Release the memory; it is freed when the worker releases it too."""
        self._memory = np.empty(0, np.uint8)
        os.close(self.descriptor)
