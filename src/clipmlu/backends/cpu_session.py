"""Sessions of the CPU runtimes, which distribute one batch over the cores."""

from __future__ import annotations

import abc
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from clipmlu.backends.base import Feeds, Session, SessionOptions
from clipmlu.bundle.manifest import Tower
from clipmlu.data.feeds import Array
from clipmlu.errors import SessionError
from clipmlu.specs import Precision


class CpuSession(Session):
    """A session that runs its batches in order on its own thread.

    Args:
        tower: the graph's file, inputs and outputs.
        path: the graph's file.
        label: name of the session in messages.
        options: threads and waiting.
        precision: arithmetic of the graph.

    Raises:
        BackendUnavailableError: the runtime does not compute the precision on this machine.
        BundleCorruptError: the runtime cannot load the graph.
    """

    runtime: str
    """Name of the runtime, in a thread's name."""

    def __init__(
        self,
        tower: Tower,
        path: Path,
        label: str,
        options: SessionOptions,
        precision: Precision = Precision.FORCE_FLOAT32,
    ) -> None:
        super().__init__(tower, label)
        self._load(path, options, precision)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"clipmlu-{self.runtime}")

    @abc.abstractmethod
    def _load(self, path: Path, options: SessionOptions, precision: Precision) -> None:
        """Load the graph into the runtime."""

    @abc.abstractmethod
    def _run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run one batch on the session's thread."""

    def _start(self, feeds: Feeds) -> Future[dict[str, Array]]:
        """Queue one batch.

        Raises:
            SessionError: another thread closes the session, or the program ends.
        """
        try:
            return self._pool.submit(self._run, dict(feeds))
        except RuntimeError as error:
            raise SessionError(f"{self._label}: it accepts no more batches: {error}.") from error

    def _failure(self, reason: str) -> SessionError:
        """Return the error of a batch that the runtime could not finish."""
        if self._lifetime.closed:
            return SessionError(f"{self._label}: the session was closed while the batch ran.")
        return SessionError(f"{self._label}: {self.runtime} failed: {reason}")

    def _stop(self, *, wait: bool) -> None:
        """Drop the queued batches; if ``wait``, wait for the running one."""
        self._pool.shutdown(wait=wait, cancel_futures=True)
