"""The driver in this process: one separate thread makes all SDK calls."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from clipmlu.data.feeds import Array
from clipmlu.errors import SessionError
from clipmlu.lifetime import keep_when_forked
from clipmlu.magicmind.client.answers import Answer
from clipmlu.magicmind.client.peer import Exchange, Fields, Opened, OpenRequest, Result
from clipmlu.magicmind.driver.errors import DriverError, ProtocolError
from clipmlu.magicmind.driver.request import Request
from clipmlu.magicmind.driver.sdk import load_sdk
from clipmlu.magicmind.driver.service import Service
from clipmlu.magicmind.driver.serving import serve_requests

_PATIENCE_SECONDS = 5.0


class LocalPeer:
    """Runs the driver's loop on a thread; see ``Peer``.

    All sessions share the thread: whether several threads may call the SDK is not known (api 7.7).

    Args:
        load: returns the SDK's runtime module.
    """

    shares_files = True

    def __init__(self, load: Callable[[], Any] = load_sdk) -> None:
        self._channel = _Channel()
        service = Service(load)
        keep_when_forked(self)
        self._thread = threading.Thread(
            target=serve_requests, args=(self._channel, service), name="clipmlu-magicmind", daemon=True
        )
        self._thread.start()

    def execute(self, action: Callable[[Exchange], Result], seconds: float) -> Result:
        """Run a series of requests; in this process a call that hangs cannot be ended."""
        return action(self._exchange)

    def open_session(self, request: OpenRequest) -> Opened:
        """Open a session."""
        opened = Opened(request)
        opened.take(self._exchange(request.fields(str(request.model)), ()))
        return opened

    def submit(self, opened: Opened, arrays: Sequence[Array]) -> Future[list[Array]]:
        """Start one batch."""
        result: Future[list[Array]] = Future()
        result.set_running_or_notify_cancel()
        answer = self._channel.request({"op": "run", "session": opened.number}, arrays)
        answer.add_done_callback(lambda done: _pass_on(done, result, opened, arrays))
        return result

    def close_session(self, opened: Opened) -> None:
        """Close a session after its batches in flight; returns at once."""
        self._channel.request({"op": "close", "session": opened.number}, ())

    def close(self) -> None:
        """Finish the batches in flight and end the thread; a thread inside the SDK ends with the process."""
        self._channel.end()
        self._thread.join(_PATIENCE_SECONDS)

    def on_fork(self) -> None:
        """Do nothing: the SDK's objects belong to a thread that the forked process does not have."""

    def _exchange(self, fields: Fields, arrays: Sequence[Array]) -> Answer:
        return self._channel.request(fields, arrays).result()


class _Channel:
    """Requests and answers between the callers' threads and the driver's thread."""

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[tuple[Request, Future[Answer]] | None] = queue.SimpleQueue()
        self._answers: dict[int, Future[Answer]] = {}
        self._lock = threading.Lock()
        self._open = True

    def request(self, fields: Fields, arrays: Sequence[Array]) -> Future[Answer]:
        """Queue a request."""
        answer: Future[Answer] = Future()
        answer.set_running_or_notify_cancel()
        with self._lock:
            if not self._open:
                raise SessionError("The session is closed.")
            self._requests.put((Request(fields, arrays), answer))
        return answer

    def end(self) -> None:
        """Queue the end; earlier requests are answered first."""
        with self._lock:
            if self._open:
                self._open = False
                self._requests.put(None)

    def receive(self, wait: bool) -> Request | None:
        """Return the next request to the driver, or None if there is none now."""
        try:
            item = self._requests.get(wait)
        except queue.Empty:
            return None
        if item is None:
            raise EOFError
        request, answer = item
        self._answers[id(request)] = answer
        return request

    def send(self, request: Request, fields: Fields, arrays: Sequence[Array]) -> None:
        """Pass the driver's answer to the caller."""
        answer = self._answers.pop(id(request))
        if "error" in fields:
            answer.set_exception(DriverError.from_json(fields["error"]))
        else:
            answer.set_result(Answer(str(request.fields["op"]), fields, list(arrays)))


def _pass_on(done: Future[Answer], result: Future[list[Array]], opened: Opened, batch: Sequence[Array]) -> None:
    error = done.exception()
    if error is not None:
        result.set_exception(error)
        return
    try:
        results = opened.results(done.result(), batch)
    except ProtocolError as wrong:
        result.set_exception(SessionError(f"MagicMind gave an invalid answer to a batch: {wrong}."))
    else:
        result.set_result(results)
