"""System and Device: the emulated cards of this process (api 2.12)."""

from __future__ import annotations

import collections
import logging
import os
import threading
from typing import Any

from clipmlu.magicmind.emulator.faults import hit
from clipmlu.magicmind.emulator.jobs import Queue
from clipmlu.magicmind.emulator.settings import current
from clipmlu.magicmind.emulator.status import Code, Status, StatusError, returns_status

_log = logging.getLogger("clipmlu.magicmind.emulator")


class _Active(threading.local):
    """The card that is active in a thread; card 0 where none was activated (MC ssd_caffe never does)."""

    device = 0


_active = _Active()


_locks: collections.defaultdict[int, threading.Lock] = collections.defaultdict(threading.Lock)


os.register_at_fork(after_in_child=_locks.clear)


def device_lock(index: int) -> threading.Lock:
    """Held while a card computes: all its queues share one card, so that several of them are no faster than one."""
    return _locks[index]


def active_device() -> int:
    """Index of the calling thread's card."""
    return _active.device


def check_device(index: int, call: str) -> None:
    """Refuse a card that is not there.

    Raises:
        StatusError: out of range (which code the SDK uses is not known, 7.15).
    """
    count = current().device_count
    if not 0 <= index < count:
        raise StatusError(Code.INVALID_ARGUMENT, f"{call}: there is no device {index}; this host has {count}")


class Device:
    """A card.

    Attributes:
        id: its index; other attributes may be set and mean nothing (MC maskrcnn sets ``dev_id``).
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
        """A queue on this card, or None; works without ``active()`` (MC ssd_caffe, MC-13 clip)."""
        try:
            check_device(self.id, "create_queue")
            hit("create_queue", self.id)
        except StatusError as error:
            _log.error("emulated MagicMind: create_queue: %s", error.status)
            return None
        return Queue(self.id)


class System:
    """The driver library; optional, and nothing dies with it (MC mm_runner.py uses objects after its block)."""

    def initialize(self) -> Status:
        """Start; MC maskrcnn calls it by hand."""
        return Status()

    def destory(self) -> Status:
        """Stop; spelled so (MC maskrcnn)."""
        return Status()

    def device_count(self) -> int:
        """Cards that this process sees."""
        return current().device_count

    def __enter__(self) -> System:
        return self

    def __exit__(self, *details: Any) -> None:
        return None
