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
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Generic

from clipmlu.backends.several_devices import is_device_loss
from clipmlu.errors import SessionError, reason_of
from clipmlu.jobs.engines.backlog import MOST_LOSSES, Assignment, Backlog
from clipmlu.jobs.engines.child import END_SECONDS, Given, Kind, run_child
from clipmlu.jobs.engines.logs import log_again
from clipmlu.jobs.work import MachineShare, Result, Task, Work

_log = logging.getLogger(__name__)
_SILENT_SECONDS = 300.0
_ALIVE_PER_SILENCE = 20


def run_in_processes(
    work: Work[Task, Result],
    tasks: Iterable[Task],
    shares: Sequence[MachineShare],
    describe: Callable[[Task], str],
    *,
    silent_seconds: float = _SILENT_SECONDS,
) -> Iterator[Result]:
    """Do tasks in worker processes and yield each result when it is there, in any order.

    Closing the iterator ends the processes. A process that ends by itself is replaced; see ``Backlog``. A process that was
    stopped from outside (SIGSTOP, a frozen container) is killed and replaced, too; slow work is never taken for that.

    Args:
        work: opens the workers.
        tasks: taken lazily.
        shares: what each process may use; one process is started for each.
        describe: names a task in messages.
        silent_seconds: time without a sign of life after which a process counts as stopped.

    Raises:
        ClipmluError: raised by a worker; the others are ended.
        SessionError: processes cannot start, or a task was given up.
    """
    pool = _Pool(work, Backlog(tasks, describe), shares, silent_seconds)
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
        silence: seconds for which it has sent nothing while this process read.
    """

    def __init__(self, work: Work[Task, Any], share: MachineShare, alive_seconds: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.share = share
        self.connection, theirs = context.Pipe()
        arguments = (theirs, work, share, alive_seconds)
        self.process = context.Process(target=run_child, args=arguments, name="clipmlu-worker", daemon=True)
        self.tasks: deque[Assignment[Task]] = deque()
        self.opened = False
        self.idle = False
        self.silence = 0.0
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

    def __init__(
        self, work: Work[Task, Result], backlog: Backlog[Task], shares: Sequence[MachineShare], silent_seconds: float
    ) -> None:
        self.backlog = backlog
        self._work = work
        self._shares = shares
        self._children: dict[Connection, _Child[Task]] = {}
        self._failed_starts = 0
        self._silent_seconds = silent_seconds
        self._alive_seconds = silent_seconds / _ALIVE_PER_SILENCE
        self._last_look = time.monotonic()

    def run(self) -> Iterator[Result]:
        """Yield results until no task is left; processes that are still opening are not waited for."""
        for share in self._shares:
            self._start(share)
        while not self.backlog.empty or any(child.tasks for child in self._children.values()):
            ready = multiprocessing.connection.wait(list(self._children), timeout=self._alive_seconds)
            self._end_silent(ready)
            for connection in ready:
                assert isinstance(connection, Connection)
                child = self._children[connection]
                try:
                    kind, value = connection.recv()
                except (EOFError, OSError):
                    self._replace(child)
                    continue
                yield from self._handle(child, kind, value)
            self._feed_idle()

    def _end_silent(self, ready: Sequence[object]) -> None:
        """Kill processes that were stopped. Time for which this process was stopped itself, or did not read, does not count."""
        now = time.monotonic()
        passed, self._last_look = min(now - self._last_look, 2 * self._alive_seconds), now
        for connection, child in self._children.items():
            child.silence = 0.0 if connection in ready else child.silence + passed
            if child.opened and child.silence > self._silent_seconds:
                _log.warning(
                    "worker process %d has not run for %.0f s, as if it was stopped, and is killed",
                    child.process.pid,
                    child.silence,
                )
                child.process.kill()

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
        elif kind is Kind.ERROR:
            self._lose_cards(child, value)

    def _feed_idle(self) -> None:
        for child in self._children.values():
            if child.idle and (assignment := self.backlog.take(idle=True)) is not None:
                child.give(assignment)

    def _start(self, share: MachineShare) -> None:
        try:
            child = _Child(self._work, share, self._alive_seconds)
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
    """Block SIGINT inside the block: a process that is started here does not get it until it has said what to do with it.

    Python's resource tracker unblocks it after its own start, which is therefore made before.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
