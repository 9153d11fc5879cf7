"""A worker process: it opens the work once, asks for tasks and sends results, until its parent closes it or ends.

Messages to the parent are pairs of a ``Kind`` and a value. A thread sends ``ALIVE`` regularly, however long the work takes. The child waits for an answer after ``IDLE`` and ``WANT`` only: a
``Given`` task, or None. None after ``WANT`` means that there is no task for now, so that the pipeline finishes those it has;
after ``IDLE`` it ends the process.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from types import FrameType
from typing import Any, NamedTuple

from clipmlu.errors import ClipmluError
from clipmlu.host import quiet_pillow
from clipmlu.jobs.engines.logs import sendable
from clipmlu.jobs.work import MachineShare, Work

END_SECONDS = 5.0
"""Time for a process to close its session and remove its temporary files before it is killed."""

_END_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Kind(enum.Enum):
    """The kinds of messages of a child."""

    IDLE = "idle"
    """It has no task; the first message, when the work is open."""
    WANT = "want"
    """Its pipeline has space for a task."""
    RESULT = "result"
    """The result of the first of its tasks that have none."""
    ALIVE = "alive"
    """It runs; only a process that was stopped from outside sends nothing."""
    LOG = "log"
    """A log record of the library."""
    ERROR = "error"
    """The exception that ends it."""


class Given(NamedTuple):
    """A task, which may be None itself."""

    task: Any


class _Ended(BaseException):
    """The process was asked to end."""


class _DisconnectedError(Exception):
    """The parent has ended, or no longer needs this process. The work itself may raise ``EOFError`` and the like."""


def run_child(connection: Connection, work: Work[Any, Any], share: MachineShare, alive_seconds: float) -> None:
    """Run a worker process; the target of ``multiprocessing.Process``. It sends ``ALIVE`` every ``alive_seconds``."""
    link = _Link(connection)
    try:
        _prepare_signals()
        _end_with_parent()
        threading.Thread(target=link.send_alive, args=(alive_seconds,), name="clipmlu-alive", daemon=True).start()
        logging.getLogger("clipmlu").addHandler(_LogSender(link))
        with quiet_pillow():
            _work(link, work, share)
    except (_Ended, _DisconnectedError):
        pass


def _work(link: _Link, work: Work[Any, Any], share: MachineShare) -> None:
    try:
        with work.open(share) as worker:
            link.send(Kind.IDLE)
            while (first := link.receive()) is not None:
                with contextlib.closing(worker(link.tasks(first))) as results:
                    for result in results:
                        link.send(Kind.RESULT, result)
                link.send(Kind.IDLE)
    except _DisconnectedError:
        raise
    except Exception as error:
        if not isinstance(error, ClipmluError):
            error.add_note(f"In a worker process:\n{traceback.format_exc()}")
        link.send_error(error)


class _Link:
    """The connection to the parent; any thread may send."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, kind: Kind, value: object = None) -> None:
        message = ForkingPickler.dumps((kind, value))
        with self._lock:
            try:
                self._connection.send_bytes(message)
            except OSError as error:
                raise _DisconnectedError from error

    def send_alive(self, every_seconds: float) -> None:
        """Send ``ALIVE`` again and again, until the parent has ended."""
        with contextlib.suppress(_DisconnectedError):
            while True:
                time.sleep(every_seconds)
                self.send(Kind.ALIVE)

    def send_error(self, error: Exception) -> None:
        """Send an exception, or its text if it cannot be pickled."""
        try:
            self.send(Kind.ERROR, error)
        except (TypeError, AttributeError, ValueError, pickle.PicklingError):
            self.send(Kind.ERROR, RuntimeError("".join(traceback.format_exception(error))))

    def receive(self) -> Given | None:
        try:
            given: Given | None = self._connection.recv()
        except (EOFError, OSError) as error:
            raise _DisconnectedError from error
        return given

    def tasks(self, first: Given) -> Iterator[Any]:
        """Yield a task, and then those that the parent gives when the worker asks for more."""
        given: Given | None = first
        while given is not None:
            yield given.task
            self.send(Kind.WANT)
            given = self.receive()


class _LogSender(logging.Handler):
    """Sends log records from ``WARNING`` on to the parent."""

    def __init__(self, link: _Link) -> None:
        super().__init__(logging.WARNING)
        self._link = link

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(_DisconnectedError):  # this process ends, too
            self._link.send(Kind.LOG, sendable(record))


def _prepare_signals() -> None:
    """Raise ``_Ended`` at the first signal to end; an interrupt from the keyboard is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def end(_number: int, _frame: FrameType | None) -> None:
        for number in _END_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        raise _Ended

    for number in _END_SIGNALS:
        signal.signal(number, end)


def _end_with_parent() -> None:
    """Start a thread that ends this process when its parent has ended, even if that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a parent started it"
    threading.Thread(target=_wait_for, args=(parent,), name="clipmlu-parent", daemon=True).start()


def _wait_for(parent: BaseProcess) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(END_SECONDS)
    os._exit(1)
