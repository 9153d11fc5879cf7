"""System and Device: the emulated cards of this process (api 2.12)."""

from __future__ import annotations

import collections
import os
import threading
from typing import Any

from clipmlu.magicmind.emulator.faults import hit
from clipmlu.magicmind.emulator.jobs import Queue
from clipmlu.magicmind.emulator.settings import current
from clipmlu.magicmind.emulator.status import Code, Status, StatusError, returns_status


class _Active(threading.local):
    """The active card of a thread; card 0 by default (MC ssd_caffe activates none)."""

    device = 0


_active = _Active()


_locks: collections.defaultdict[int, threading.Lock] = collections.defaultdict(threading.Lock)


os.register_at_fork(after_in_child=_locks.clear)


def device_lock(index: int) -> threading.Lock:
    """Return the lock of a computing card: its queues share it, so that several queues are no faster than one."""
    return _locks[index]


def active_device() -> int:
    """Return the index of the calling thread's card."""
    return _active.device


def check_device(index: int, call: str) -> None:
    """Check that a card exists.

    Raises:
        StatusError: the index is out of range (the SDK's code for this is not known, 7.15).
    """
    count = current().device_count
    if not 0 <= index < count:
        raise StatusError(Code.INVALID_ARGUMENT, f"{call}: there is no device {index}; this host has {count}")


class Device:
    """A card.

    Attributes:
        id: its index; other attributes may be set but have no effect (MC maskrcnn sets ``dev_id``).
    """

    def __init__(self) -> None:
        self.id = 0

    @returns_status
    def active(self) -> None:
        """Make it the calling thread's card."""
        check_device(self.id, "active")
        hit("active", self.id)
        _active.device = self.id

    def create_queue(self) -> Queue | None:
        """Return a queue on this card, or None; works without ``active()`` (MC ssd_caffe, MC-13 clip)."""
        try:
            check_device(self.id, "create_queue")
            hit("create_queue", self.id)
        except StatusError as error:
            error.log_none("create_queue")
            return None
        return Queue(self.id)


class System:
    """The driver library; optional, and objects outlive it (MC mm_runner.py uses objects after its block)."""

    def initialize(self) -> Status:
        """Start the library; MC maskrcnn calls it explicitly."""
        return Status()

    def destory(self) -> Status:
        """Stop the library; the vendor's spelling (MC maskrcnn)."""
        return Status()

    def device_count(self) -> int:
        """Return the number of cards that this process sees."""
        return current().device_count

    def __enter__(self) -> System:
        return self

    def __exit__(self, *details: Any) -> None:
        return None
