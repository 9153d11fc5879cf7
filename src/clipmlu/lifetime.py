"""How long something with threads may be used: until it is closed, and in no process but the one that made it.

A process made by ``fork`` gets a copy of the memory and of one thread. Whoever asks a runtime there waits for threads that do
not exist, and so does whoever frees one. So what is asked is refused, and nothing that the copy holds is ever freed there.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from typing import Protocol

from clipmlu.errors import SessionError


class Forked(Protocol):
    """What holds threads."""

    def on_fork(self) -> None:
        """Called in a forked process: give up what must not be shared with the first one; wait for nothing."""


class Lifetime:
    """Whether something may be used now; threads may share one.

    Args:
        name: what messages call it, such as ``"Bundle 'b32'"``.
        remedy: what to do when it was closed, as a sentence.
    """

    def __init__(self, name: str, remedy: str) -> None:
        self._name = name
        self._remedy = remedy
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def forked(self) -> bool:
        """Whether this process was forked from the one that made it."""
        return os.getpid() != self._process

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            SessionError: it was closed, or belongs to another process.
        """
        self.check_process()
        if self._closed:
            raise SessionError(f"{self._name} was closed. {self._remedy}")

    def check_process(self) -> None:
        """Refuse to wait for threads of another process.

        Raises:
            SessionError: this process was forked from the one that made it.
        """
        if self.forked:
            raise SessionError(
                f"{self._name} was opened by process {self._process} and cannot be used in process {os.getpid()}, which was "
                "forked from it: the threads that compute did not come along. Load it again in this process with "
                "clipmlu.load, or start processes by 'spawn', as in multiprocessing.get_context('spawn')."
            )

    def end(self) -> bool:
        """Note that it is closed; whether there is something to release, which there is once, and not in a forked process."""
        if self.forked:
            self._closed = True
            return False
        with self._lock:
            first, self._closed = not self._closed, True
        return first


_holders: weakref.WeakSet[Forked] = weakref.WeakSet()


def keep_when_forked(holder: Forked) -> None:
    """Have ``holder`` told of a fork in the forked process, and never freed there."""
    _holders.add(holder)


def _after_fork() -> None:
    for holder in list(_holders):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(holder))
        holder.on_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing is forked
    os.register_at_fork(after_in_child=_after_fork)
