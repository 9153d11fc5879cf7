"""Running batches in order, for runtimes that distribute one batch over the cores."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from clipmlu.backends.base import Feeds
from clipmlu.data.feeds import Array
from clipmlu.errors import SessionError


class OrderedThread:
    """A thread that runs the batches of a session in order.

    Args:
        name: name of the runtime.
        label: name of the session in messages.
    """

    def __init__(self, name: str, label: str) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"clipmlu-{name}")
        self._label = label

    def submit(self, work: Callable[[dict[str, Array]], dict[str, Array]], feeds: Feeds) -> Future[dict[str, Array]]:
        """Queue one batch.

        Raises:
            SessionError: another thread closes the session, or the program ends.
        """
        try:
            return self._pool.submit(work, dict(feeds))
        except RuntimeError as error:
            raise SessionError(f"{self._label}: it accepts no more batches: {error}.") from error

    def stop(self, *, wait: bool) -> None:
        """Drop the queued batches; if ``wait``, wait for the running one."""
        self._pool.shutdown(wait=wait, cancel_futures=True)
