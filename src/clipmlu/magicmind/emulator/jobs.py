"""Queues and jobs: asynchronous work in order, from ``enqueue`` to ``sync`` (api 2.12)."""

from __future__ import annotations

import atexit
import collections
import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from clipmlu.magicmind.emulator.faults import hit
from clipmlu.magicmind.emulator.log import log_warning
from clipmlu.magicmind.emulator.settings import switches
from clipmlu.magicmind.emulator.status import Code, StatusError, returns_status
from clipmlu.magicmind.emulator.types import Array

Feed = Callable[[], Array]


class Computations:
    """Counts the computations of this process, so that it does not end inside one.

    A script may end without ``sync`` (S#26019113056). The runtime's threads abort a process whose interpreter has ended.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._ended = False

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Count one computation.

        Raises:
            StatusError: the process is ending.
        """
        with self._changed:
            if self._ended:
                raise StatusError(Code.UNAVAILABLE, "enqueue: the process is ending")
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def end(self) -> None:
        """Wait for the computations that run, and allow no more."""
        with self._changed:
            self._ended = True
            self._changed.wait_for(lambda: self._running == 0)


class _Process:
    """The computations of this process; a forked child begins with none."""

    computations = Computations()


def computing() -> contextlib.AbstractContextManager[None]:
    """Count one computation of this process; see ``Computations.one``."""
    return _Process.computations.one()


def _forget_computations() -> None:
    _Process.computations = Computations()


def _end_computations() -> None:
    _Process.computations.end()


atexit.register(_end_computations)
os.register_at_fork(after_in_child=_forget_computations)


class LentTensor(Protocol):
    """The methods of a tensor that a job uses."""

    def lend(self, job: Job) -> None:
        """Mark the tensor as read by the job."""

    def give_back(self, job: Job) -> None:
        """Mark the job as synchronised."""

    def publish(self, result: Array) -> None:
        """Make the job's result readable."""

    @property
    def producer(self) -> tuple[Job, int] | None:
        """The unsynchronised job that writes the tensor, and the index of the output."""


class Job:
    """Work on a queue.

    Args:
        compute: runs the graph; called on the queue's thread.
        inputs: tensors that the job reads until ``sync``.
        outputs: tensors that ``sync`` writes.

    Attributes:
        done: set when the results or the error are available.
        results: the outputs on the card, or None before the end and after a failure.
    """

    def __init__(
        self, compute: Callable[[], list[Array]], inputs: Sequence[LentTensor], outputs: Sequence[LentTensor]
    ) -> None:
        self._compute = compute
        self._inputs = inputs
        self._outputs = outputs
        self._spoiled = ""
        self.done = threading.Event()
        self.results: list[Array] | None = None
        self.error: StatusError | None = None
        for tensor in inputs:
            tensor.lend(self)

    def run(self) -> None:
        """Compute the results; called by the queue's thread."""
        try:
            self.results = self._compute()
        except StatusError as error:
            self.error = error
        except Exception as error:  # the runtime raises many types; the thread must survive them
            self.error = StatusError(Code.INTERNAL, f"enqueue: the graph failed: {' '.join(str(error).split())}")
        finally:
            self.done.set()

    def spoil(self, reason: str) -> None:
        """Mark the results as invalid, because the caller violated a rule of asynchronous work."""
        if not self._spoiled:
            log_warning("enqueue", f"results are spoiled: {reason}")
        self._spoiled = reason

    def publish(self) -> None:
        """Make the results readable; called by ``sync``.

        Raises:
            StatusError: the work failed.
        """
        for tensor in self._inputs:
            tensor.give_back(self)
        if self.error is not None:
            raise self.error
        assert self.results is not None, "a job without an error has results"
        for index, (tensor, result) in enumerate(zip(self._outputs, self.results, strict=True)):
            if not self._spoiled and tensor.producer == (self, index):
                tensor.publish(result)


class Queue:
    """A queue of one card, created by ``Device.create_queue``.

    Attributes:
        device: the card's index.
    """

    def __init__(self, device: int) -> None:
        self.device = device
        self._process = os.getpid()
        self._syncing = threading.Lock()
        self._unsynced: collections.deque[Job] = collections.deque()
        self._work: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        # A daemon thread, so that hanging work does not keep the process alive.
        threading.Thread(target=_serve, args=(self._work,), name="emulated-mlu-queue", daemon=True).start()

    @returns_status
    def sync(self) -> None:
        """Wait for all work and make its results readable; return the first failure."""
        check_process(self._process, "sync")
        hit("sync", self.device)
        failure: StatusError | None = None
        with self._syncing:
            for _ in range(len(self._unsynced)):  # jobs that other threads add meanwhile are not included
                job = self._unsynced[0]
                job.done.wait()
                self._unsynced.popleft()
                try:
                    job.publish()
                except StatusError as error:
                    if failure is not None:
                        error.log_status("sync")  # only the first failure is the result, which is logged when returned
                    failure = failure or error
        if failure is not None:
            raise failure

    def submit(self, job: Job) -> None:
        """Queue one job."""
        self._unsynced.append(job)
        self._work.put(job)

    @property
    def busy(self) -> bool:
        """Whether there is unsynchronised work."""
        return bool(self._unsynced)

    def __del__(self) -> None:
        self._work.put(None)


def check_process(owner: int, call: str) -> None:
    """Check that an object was created in this process (7.7: use after a fork is unknown; threads are missing there).

    Raises:
        StatusError: this is a forked child.
    """
    if owner != os.getpid() and switches().refuse_after_fork:
        raise StatusError(Code.FAILED_PRECONDITION, f"{call}: made in process {owner}, used in {os.getpid()}")


def _serve(work: queue.SimpleQueue[Job | None]) -> None:
    while (job := work.get()) is not None:
        job.run()
        del job
