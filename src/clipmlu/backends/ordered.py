"""Running batches in their order, for runtimes that spread one batch over the cores themselves."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from clipmlu.backends.base import Feeds
from clipmlu.data.feeds import Array
from clipmlu.errors import SessionError


class OrderedThread:
    """One thread that runs the batches of a session in their order.

    Args:
        name: of the runtime.
        label: what messages call the session.
    """

    def __init__(self, name: str, label: str) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"clipmlu-{name}")
        self._label = label

    def submit(self, work: Callable[[dict[str, Array]], dict[str, Array]], feeds: Feeds) -> Future[dict[str, Array]]:
        """Queue one batch.

        Raises:
            SessionError: the session is being closed by another thread, or the program ends.
        """
        try:
            return self._pool.submit(work, dict(feeds))
        except RuntimeError as error:
            raise SessionError(f"{self._label}: no batch is started any more: {error}.") from error

    def stop(self, *, wait: bool) -> None:
        """Drop the batches that wait; ``wait`` for the one that runs."""
        self._pool.shutdown(wait=wait, cancel_futures=True)
