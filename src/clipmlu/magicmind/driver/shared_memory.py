"""Shared memory of two processes, with a sealed size."""

from __future__ import annotations

import mmap

import numpy as np

from .values import Array

ADD_SEALS, GET_SEALS = 1033, 1034  # F_ADD_SEALS and F_GET_SEALS of linux/fcntl.h; Python 3.7 has no names for them
_SEAL_SEAL, _SEAL_SIZE = 1, 2 | 4  # F_SEAL_SEAL; F_SEAL_SHRINK and F_SEAL_GROW


def seal_size(descriptor: int) -> None:
    """Make the kernel keep the size of shared memory; access beyond a reduced size would kill the process.

    Raises:
        OSError: the system or the descriptor does not support it.
    """
    import fcntl

    fcntl.fcntl(descriptor, ADD_SEALS, _SEAL_SIZE | _SEAL_SEAL)


def map_slot(descriptor: int, size: int) -> Array:
    """Return shared memory as bytes; it stays mapped while the array or a view of it exists.

    Raises:
        OSError, ValueError: it is smaller, it is not shared memory, or its size may change.
    """
    import fcntl

    if fcntl.fcntl(descriptor, GET_SEALS) & _SEAL_SIZE != _SEAL_SIZE:
        raise ValueError("its size may change")
    return np.frombuffer(mmap.mmap(descriptor, size), np.uint8)
