"""Queue: asynchronous work in order, on a thread of its own (api 2.12)."""

from __future__ import annotations

import collections
import os
import queue
import threading

from clipmlu.emulator.faults import hit
from clipmlu.emulator.jobs import Job
from clipmlu.emulator.settings import switches
from clipmlu.emulator.status import Code, StatusError, returns_status


class Queue:
    """A queue of one card; made by ``Device.create_queue``.

    Attributes:
        device: the card's index.
    """

    def __init__(self, device: int) -> None:
        self.device = device
        self._process = os.getpid()
        self._syncing = threading.Lock()
        self._unsynced: collections.deque[Job] = collections.deque()
        self._work: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        # A daemon: work that hangs must not keep the process alive, as it would not on a card.
        threading.Thread(target=_serve, args=(self._work,), name="emulated-mlu-queue", daemon=True).start()

    @returns_status
    def sync(self) -> None:
        """Wait for all work and let its results be seen; answers with the first failure."""
        check_process(self._process, "sync")
        hit("sync", self.device)
        failure: StatusError | None = None
        with self._syncing:
            for _ in range(len(self._unsynced)):  # what another thread enqueues meanwhile is not waited for
                job = self._unsynced[0]
                job.done.wait()
                self._unsynced.popleft()
                try:
                    job.publish()
                except StatusError as error:
                    failure = failure or error
        if failure is not None:
            raise failure

    def submit(self, job: Job) -> None:
        """Queue one job."""
        self._unsynced.append(job)
        self._work.put(job)

    @property
    def busy(self) -> bool:
        """Whether there is work that was not synchronised."""
        return bool(self._unsynced)

    def __del__(self) -> None:
        self._work.put(None)


def check_process(owner: int, call: str) -> None:
    """Refuse objects of the parent process (7.7: use after fork is open; the queue's thread does not survive one).

    Raises:
        StatusError: this is a forked child.
    """
    if owner != os.getpid() and switches().refuse_after_fork:
        raise StatusError(Code.FAILED_PRECONDITION, f"{call}: made in process {owner}, used in {os.getpid()}")


def _serve(work: queue.SimpleQueue[Job | None]) -> None:
    while (job := work.get()) is not None:
        job.run()
        del job
