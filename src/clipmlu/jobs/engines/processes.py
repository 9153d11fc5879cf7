"""Worker processes on this machine: each opens the work once, and takes a task when its pipeline has space for it.

A process that is killed or crashes is replaced, and its tasks are given out again. ``ProcessPoolExecutor`` would fail as a
whole, and neither it nor loky can feed a worker that takes several tasks at a time.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, Generic

from clipmlu.backends.several_devices import is_device_loss
from clipmlu.errors import SessionError, reason_of
from clipmlu.jobs.engines.backlog import MOST_LOSSES, Assignment, Backlog
from clipmlu.jobs.engines.child import END_SECONDS, Given, Kind, run_child
from clipmlu.jobs.engines.logs import log_again
from clipmlu.jobs.work import MachineShare, Result, Task, Work

_log = logging.getLogger(__name__)


def run_in_processes(
    work: Work[Task, Result],
    tasks: Iterable[Task],
    shares: Sequence[MachineShare],
    describe: Callable[[Task], str],
) -> Iterator[Result]:
    """Do tasks in worker processes and yield each result when it is there, in any order.

    Closing the iterator ends the processes. A process that ends by itself is replaced; see ``Backlog``.

    Args:
        work: opens the workers.
        tasks: taken lazily.
        shares: what each process may use; one process is started for each.
        describe: names a task in messages.

    Raises:
        ClipmluError: raised by a worker; the others are ended.
        SessionError: processes cannot start, or a task was given up.
    """
    pool = _Pool(work, Backlog(tasks, describe), shares)
    try:
        yield from pool.run()
    finally:
        pool.end()
    pool.backlog.check()


class _Child(Generic[Task]):
    """A worker process.

    Attributes:
        share: what it may use.
        process: the process.
        connection: the connection to it.
        tasks: its tasks that have no result, oldest first.
        opened: whether it has opened the work.
        idle: whether it waits for a first task.
    """

    def __init__(self, work: Work[Task, Any], share: MachineShare) -> None:
        context = multiprocessing.get_context("spawn")
        self.share = share
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=run_child, args=(theirs, work, share), name="clipmlu-worker", daemon=True)
        self.tasks: deque[Assignment[Task]] = deque()
        self.opened = False
        self.idle = False
        with theirs, _interrupts_blocked():
            self.process.start()

    def give(self, assignment: Assignment[Task] | None) -> None:
        """Answer its question for a task."""
        if assignment is not None:
            self.idle = False
            self.tasks.append(assignment)
        with contextlib.suppress(OSError):  # it has ended, which its connection will show
            self.connection.send(None if assignment is None else Given(assignment.task))


class _Pool(Generic[Task, Result]):
    """The processes and the waiting tasks."""

    def __init__(self, work: Work[Task, Result], backlog: Backlog[Task], shares: Sequence[MachineShare]) -> None:
        self.backlog = backlog
        self._work = work
        self._shares = shares
        self._children: dict[Connection, _Child[Task]] = {}
        self._failed_starts = 0

    def run(self) -> Iterator[Result]:
        """Yield results until no task is left; processes that are still opening are not waited for."""
        for share in self._shares:
            self._start(share)
        while not self.backlog.empty or any(child.tasks for child in self._children.values()):
            for connection in multiprocessing.connection.wait(list(self._children)):
                assert isinstance(connection, Connection)
                child = self._children[connection]
                try:
                    kind, value = connection.recv()
                except (EOFError, OSError):
                    self._replace(child)
                    continue
                yield from self._handle(child, kind, value)
            self._feed_idle()

    def end(self) -> None:
        """End all processes: they get some seconds to close their sessions, and are killed then."""
        for child in self._children.values():
            child.process.terminate()
        limit = time.monotonic() + END_SECONDS
        for child in self._children.values():
            child.process.join(max(0.0, limit - time.monotonic()))
            child.process.kill()
            child.process.join()
            child.connection.close()
            child.process.close()
        self._children.clear()

    def _handle(self, child: _Child[Task], kind: Kind, value: Any) -> Iterator[Result]:
        if kind is Kind.RESULT:
            child.tasks.popleft()
            yield value
        elif kind is Kind.WANT:
            alone = any(assignment.alone for assignment in child.tasks)
            child.give(None if alone else self.backlog.take(idle=not child.tasks))
        elif kind is Kind.IDLE:
            child.opened = child.idle = True
            self._failed_starts = 0
        elif kind is Kind.LOG:
            log_again([value])
        else:
            self._lose_cards(child, value)

    def _feed_idle(self) -> None:
        for child in self._children.values():
            if child.idle and (assignment := self.backlog.take(idle=True)) is not None:
                child.give(assignment)

    def _start(self, share: MachineShare) -> None:
        try:
            child = _Child(self._work, share)
        except OSError as error:
            raise SessionError(
                f"A worker process cannot be started: {reason_of(error)}. Use fewer --processes, or raise the limit (ulimit -a)."
            ) from error
        self._children[child.connection] = child

    def _remove(self, child: _Child[Task]) -> str:
        """Let the tasks of a process that ends wait again, and return the end of a sentence about them."""
        child.process.join()
        del self._children[child.connection]
        child.connection.close()
        names = self.backlog.give_back(child.tasks)
        return f" with {names}, which will be computed again" if names else ""

    def _replace(self, child: _Child[Task]) -> None:
        """Start a new process in place of one that has ended by itself."""
        lost = self._remove(child)
        ended = f"worker process {child.process.pid} {_how_ended(child.process.exitcode)}"
        if not child.opened:
            self._failed_starts += 1
            if self._failed_starts >= MOST_LOSSES:
                self._give_up(f"{ended} before it was ready, the third in a row")
                return
        _log.warning("%s%s; a new one is started", ended, lost)
        self._start(child.share)

    def _give_up(self, failure: str) -> None:
        """Go on without a process that cannot start.

        Raises:
            SessionError: there is no other process.
        """
        if not self._children:
            raise SessionError(
                f"Worker processes cannot start: {failure}. If a script called clipmlu, its code must stand under: "
                'if __name__ == "__main__":'
            )
        _log.warning("%s; %d other(s) do its work", failure, len(self._children))

    def _lose_cards(self, child: _Child[Task], error: Exception) -> None:
        """Go on without a process that has lost all its cards.

        Raises:
            Exception: the error, if it is another one, or there is no other process.
        """
        if not (child.opened and child.share.devices and is_device_loss(error)) or len(self._children) == 1:
            raise error
        cards = " and ".join(map(str, child.share.devices))
        lost = self._remove(child)
        _log.warning(
            "worker process %d has lost card %s%s; %d other(s) go on: %s",
            child.process.pid,
            cards,
            lost,
            len(self._children),
            error,
        )


def _how_ended(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block SIGINT inside the block: a process that is started here does not get it until it has said what to do with it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
