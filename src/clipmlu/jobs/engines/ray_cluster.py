"""Calls of Ray, whose own failures are errors of one line."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

from clipmlu.errors import SessionError, first_line, reason_of

_HEAD_EVERY_SECONDS = 5.0
_HEAD_SECONDS = 25.0  # after 60 seconds Ray itself ends the process, without an exception
_ANSWER_SECONDS = 5.0


class RayCluster:
    """A connected Ray.

    Args:
        ray: the module.

    Attributes:
        exceptions: Ray's module of exceptions.
    """

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self.exceptions = ray.exceptions
        self._head = HeadNode(_head_address(ray))

    def nodes(self) -> list[dict[str, Any]]:
        """Return the machines of the cluster that are there."""
        with self._failures():
            return [node for node in self._ray.nodes() if node["Alive"]]

    def start(self, actor: type, options: dict[str, Any], arguments: Sequence[Any]) -> Any:
        """Return the handle of a new actor."""
        with self._failures():
            return self._ray.remote(actor).options(**options).remote(*arguments)

    def call(self, method: Any, *arguments: Any, **options: Any) -> Any:
        """Call a method of an actor and return the reference of its result."""
        with self._failures():
            return method.options(**options).remote(*arguments)

    def wait(self, calls: Sequence[Any], seconds: float, *, least: int = 1) -> list[Any]:
        """Return calls that are done; waits for ``least`` of them, but not longer than ``seconds``.

        Raises:
            SessionError: Ray or its head node cannot be reached.
        """
        limit = time.monotonic() + seconds
        while True:
            self._head.check()
            left = limit - time.monotonic()
            with self._failures():
                timeout = max(0.0, min(left, _HEAD_EVERY_SECONDS))
                done, _ = self._ray.wait(list(calls), num_returns=least, timeout=timeout)
            if len(done) >= least or left <= _HEAD_EVERY_SECONDS:
                return list(done)

    def get(self, call: Any) -> Any:
        """Return the result of a call that is done.

        Raises:
            RayError: the actor was lost, or its method failed.
            SessionError: Ray cannot be reached.
        """
        try:
            return self._ray.get(call)
        except (self.exceptions.RaySystemError, ConnectionError) as error:
            raise _lost(error) from error

    def kill(self, handle: Any) -> None:
        """End an actor; it ends by itself if Ray cannot be reached."""
        if self._head.answered:  # else the call would wait for it
            with contextlib.suppress(SessionError), self._failures():
                self._ray.kill(handle)

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (self.exceptions.RayError, ConnectionError, RuntimeError) as error:
            raise _lost(error) from error


class HeadNode:
    """The process of the head node that knows all actors. Without it running calls go on, but nothing is started again.

    Args:
        address: its address; None if it is not known.
        every: seconds between two checks.
        limit: seconds without an answer after which it is lost.

    Attributes:
        answered: whether the last check found it.
    """

    def __init__(
        self, address: tuple[str, int] | None, every: float = _HEAD_EVERY_SECONDS, limit: float = _HEAD_SECONDS
    ) -> None:
        self._address = address
        self._every = every
        self._limit = limit
        self._last_check = self._last_answer = time.monotonic()
        self.answered = True

    def check(self) -> None:
        """Check now and then that it accepts connections.

        Raises:
            SessionError: it has not for too long.
        """
        if self._address is None or time.monotonic() < self._last_check + self._every:
            return
        try:
            socket.create_connection(self._address, timeout=_ANSWER_SECONDS).close()
        except OSError as error:
            self.answered = False
            if time.monotonic() >= self._last_answer + self._limit:
                place = f"{self._address[0]}:{self._address[1]} has not answered for {self._limit:.0f} s"
                raise _lost(f"its head node {place}: {reason_of(error)}") from error
        else:
            self.answered = True
            self._last_answer = time.monotonic()
        self._last_check = time.monotonic()


def _head_address(ray: Any) -> tuple[str, int] | None:
    """Return the address of the head node; None if the connection is one of Ray's client, which notices it by itself."""
    if ray.util.client.ray.is_connected():
        return None
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    return host, int(port)


def _lost(reason: str | Exception) -> SessionError:
    text = reason if isinstance(reason, str) else f"{type(reason).__name__}: {first_line(reason)}"
    return SessionError(
        f"Ray cannot be reached any more: {text.rstrip('.')}. Look at its head node (ray status), then run the same command again."
    )
