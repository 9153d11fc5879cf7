"""Lifetime of objects with threads: usable until they are closed, and only in the process that created them.

A process created by ``fork`` has a copy of the memory and of one thread. Using or freeing a runtime there would wait
for threads that do not exist. So use is an error there, and the copied objects are never freed.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from typing import Protocol

from clipmlu.errors import SessionError


class Forked(Protocol):
    """An object with threads."""

    def on_fork(self) -> None:
        """Called in a forked process: release what must not be shared with the parent process, without waiting."""


class Lifetime:
    """Whether an object may be used now; threads may share one.

    Args:
        name: name of the object in messages, such as ``"Bundle 'b32'"``.
        remedy: advice for a closed object, a sentence.
    """

    def __init__(self, name: str, remedy: str) -> None:
        self._name = name
        self._remedy = remedy
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def forked(self) -> bool:
        """Whether this process was forked from the one that created the object."""
        return os.getpid() != self._process

    @property
    def closed(self) -> bool:
        """Whether the object is closed."""
        return self._closed

    def check(self) -> None:
        """Check that the object can be used.

        Raises:
            SessionError: it is closed, or belongs to another process.
        """
        self.check_process()
        if self._closed:
            raise SessionError(f"{self._name} was closed. {self._remedy}")

    def check_process(self) -> None:
        """Check that this process may wait for the object's threads.

        Raises:
            SessionError: this process was forked from the one that created the object.
        """
        if self.forked:
            raise SessionError(
                f"{self._name} was opened by process {self._process} and cannot be used in process {os.getpid()}, which was "
                "forked from it: the computing threads do not exist here. Load it again in this process with "
                "clipmlu.load, or start processes by 'spawn', as in multiprocessing.get_context('spawn')."
            )

    def end(self) -> bool:
        """Mark the object as closed; return True on the first call, if this process must release its resources."""
        if self.forked:
            self._closed = True
            return False
        with self._lock:
            first, self._closed = not self._closed, True
        return first


_holders: weakref.WeakSet[Forked] = weakref.WeakSet()


def keep_when_forked(holder: Forked) -> None:
    """Register an object: in a forked process its ``on_fork`` is called, and it is never freed there."""
    _holders.add(holder)


def _after_fork() -> None:
    for holder in list(_holders):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(holder))
        holder.on_fork()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_after_fork)
