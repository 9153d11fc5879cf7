"""The Ray actor: it opens the work once and keeps its pipeline fed with the tasks of several calls."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from importlib import metadata
from typing import Any, NamedTuple

from clipmlu._version import __version__
from clipmlu.errors import BackendUnavailableError
from clipmlu.host import quiet_pillow
from clipmlu.jobs.engines.cards import CARD_RESOURCE, Cards, lock_card
from clipmlu.jobs.engines.logs import LogCollector
from clipmlu.jobs.work import MachineShare, Work

CALLS = 2
"""Calls of ``RayWorker.run`` at a time: one is computed, and the next one waits, so that the pipeline does not run empty."""

_PACKAGES = ("numpy", "onnxruntime", "openvino", "pillow", "pillow-heif", "pyarrow", "simplejpeg")


class Outcome(NamedTuple):
    """What a call returns.

    Attributes:
        value: the result, or None.
        error: the exception that ended the worker, or None.
        records: log records since the last call.
    """

    value: Any
    error: Exception | None
    records: list[logging.LogRecord]


class WorkerPlace(NamedTuple):
    """Where a worker runs.

    Attributes:
        pid: its process.
        host: name of its machine.
        device: index of its card, or None.
    """

    pid: int
    host: str
    device: int | None

    def __str__(self) -> str:
        return f"{self.pid} on {self.host}{'' if self.device is None else f', card {self.device}'}"


def package_versions() -> dict[str, str]:
    """Return the versions of the installed packages that decide results."""
    found = {"clipmlu": __version__}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


class RayWorker:
    """A worker; an actor of Ray with several threads.

    Args:
        work: opens the worker.
        cpus: CPUs of the actor.
        cards: the cards from which it takes one; None if the bundle runs on the CPU.
        versions: ``package_versions`` of the driver.
        directory: working directory of the driver, where relative paths begin.
    """

    def __init__(
        self, work: Work[Any, Any], cpus: int, cards: Cards | None, versions: Mapping[str, str], directory: str
    ) -> None:
        self._work = work
        self._cpus = cpus
        self._cards = cards
        self._versions = versions
        self._directory = directory
        self._logs = LogCollector()
        logging.getLogger("clipmlu").addHandler(self._logs)
        self._place: Future[WorkerPlace] = Future()
        self._calls: queue.SimpleQueue[tuple[Any, Future[Any]] | None] = queue.SimpleQueue()  # None: the end
        self._ended = False
        self._released = threading.Event()
        self._running: deque[Future[Any]] = deque()  # of the tasks that the worker has taken
        threading.Thread(target=self._serve, name="clipmlu-worker", daemon=True).start()

    def open(self) -> Outcome:
        """Wait until the work is open; the value is a ``WorkerPlace``."""
        return self._outcome(self._place)

    def run(self, task: Any) -> Outcome:
        """Do a task; several threads may call it."""
        result: Future[Any] = Future()
        self._calls.put((task, result))
        return self._outcome(result)

    def close(self) -> None:
        """Release the work, after the tasks of the calls before: a killed actor would leave its temporary files."""
        self._calls.put(None)
        self._released.wait()

    def _outcome(self, future: Future[Any]) -> Outcome:
        error = future.exception()
        if error is not None and not isinstance(error, Exception):
            raise error
        return Outcome(None if error is not None else future.result(), error, self._logs.take())

    def _serve(self) -> None:
        try:
            self._check_versions()
            _change_directory(self._directory)
            share, place = self._take_share()
            with quiet_pillow(), self._work.open(share) as worker:
                self._place.set_result(place)
                while not self._ended:
                    with contextlib.closing(worker(self._tasks())) as results:
                        for result in results:
                            self._running.popleft().set_result(result)
            self._released.set()
        except BaseException as error:
            self._fail(error)

    def _tasks(self) -> Iterator[Any]:
        """Yield the tasks of calls until none waits, so that the pipeline finishes those it has."""
        call = self._calls.get()
        with contextlib.suppress(queue.Empty):
            while call is not None:
                task, result = call
                self._running.append(result)
                yield task
                call = self._calls.get_nowait()
        self._ended = call is None

    def _fail(self, error: BaseException) -> None:
        """Give the error to all calls, later ones too."""
        if not self._place.done():
            self._place.set_exception(error)
        while True:
            while self._running:
                self._running.popleft().set_exception(error)
            if (call := self._calls.get()) is None:
                self._released.set()
            else:
                self._running.append(call[1])

    def _take_share(self) -> tuple[MachineShare, WorkerPlace]:
        device = None if self._cards is None else lock_card(_indices(self._cards))
        share = MachineShare(cpus=self._cpus, devices=None if device is None else (device,))
        return share, WorkerPlace(os.getpid(), socket.gethostname(), device)

    def _check_versions(self) -> None:
        own = package_versions()
        differing = [name for name in sorted({*own, *self._versions}) if own.get(name) != self._versions.get(name)]
        if differing:
            texts = [
                f"{name} {own.get(name, 'missing')} instead of {self._versions.get(name, 'none')}" for name in differing
            ]
            raise BackendUnavailableError(
                f"Machine '{socket.gethostname()}' has other packages than the one that runs the job: {', '.join(texts)}. "
                "Install the same versions on all machines, so that every shard is computed alike."
            )


def _change_directory(directory: str) -> None:
    try:
        os.chdir(directory)
    except OSError as error:
        raise BackendUnavailableError(
            f"Machine '{socket.gethostname()}' has no folder '{directory}', in which the job was started: {error.strerror}. "
            "Start it in a folder that all machines share."
        ) from error


def _indices(cards: Cards) -> tuple[int, ...]:
    if cards.indices is not None:
        return cards.indices
    import ray

    own = ray.get_runtime_context().get_node_id()
    counts = [node["Resources"].get(CARD_RESOURCE, 0) for node in ray.nodes() if node["NodeID"] == own]
    return tuple(range(int(sum(counts))))
