"""A request inside the service: its result, and whether somebody still waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any, Generic, TypeVar

from clipmlu.clock import now
from clipmlu.embed.rows import FloatArray
from clipmlu.errors import InputError
from clipmlu.serve.refusal import Refusal

Result = TypeVar("Result")
Value = TypeVar("Value")
RowResult = FloatArray | InputError
"""The row of one image or text, or why the image cannot be read."""


class Ticket(Generic[Result]):
    """A request that is being answered.

    Args:
        deadline: time of ``clock.now`` at which the answer is useless.

    Attributes:
        future: the answer; cancelling it drops what has not reached the device.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.future: Future[Result] = Future()

    @property
    def useless(self) -> bool:
        """Nobody waits for the answer: the request was cancelled, has failed, or its time is over."""
        if self.future.done():
            return True
        if now() < self.deadline:
            return False
        self.fail(Refusal("deadline_exceeded", "The time of the request is over; its images were dropped."))
        return True

    def finish(self, result: Result) -> None:
        """Give the answer, unless the request has ended."""
        try:
            self.future.set_result(result)
        except InvalidStateError:
            return  # cancelled, or failed before

    def fail(self, error: BaseException) -> None:
        """End the request with an error, unless it has ended."""
        try:
            self.future.set_exception(error)
        except InvalidStateError:
            return


class RowGroup:
    """The rows of one request: images, or texts. They may finish in any order and on any thread.

    Args:
        ticket: the request.
        count: number of rows.
        on_done: called with the results in order, on the thread that finished the last one.
        on_end: called when a row has finished or was dropped, which every row is once.
    """

    def __init__(
        self,
        ticket: Ticket[Any],
        count: int,
        on_done: Callable[[Sequence[RowResult]], object],
        on_end: Callable[[], object],
    ) -> None:
        self.ticket = ticket
        self._results: list[Any] = [None] * count
        self._left = count
        self._on_done = on_done
        self._on_end = on_end
        self._lock = threading.Lock()

    def finish(self, position: int, result: RowResult) -> None:
        """Store the result of a row."""
        self._on_end()
        with self._lock:
            self._results[position] = result
            self._left -= 1
            last = not self._left
        if last and not self.ticket.future.done():
            try:
                self._on_done(self._results)
            except Exception as error:
                self.ticket.fail(error)

    def fail(self, error: BaseException) -> None:
        """End the request because one of its rows failed."""
        self._on_end()
        self.ticket.fail(error)

    def drop(self) -> None:
        """Give up one row, for which nobody waits."""
        self._on_end()


class BothResults:
    """Calls a function with two results when both are there.

    Args:
        ticket: fails if the function does.
        call: the function.
    """

    def __init__(self, ticket: Ticket[Any], call: Callable[[Any, Any], object]) -> None:
        self._ticket = ticket
        self._call = call
        self._lock = threading.Lock()
        self._found: dict[int, Any] = {}

    def first(self, value: Any) -> None:
        """Give the first result."""
        self._give(0, value)

    def second(self, value: Any) -> None:
        """Give the second result."""
        self._give(1, value)

    def _give(self, place: int, value: Any) -> None:
        with self._lock:
            self._found[place] = value
            complete = len(self._found) == 2
        if complete:
            try:
                self._call(self._found[0], self._found[1])
            except Exception as error:
                self._ticket.fail(error)


def when_done(
    future: Future[Value],
    call: Callable[[Value], object],
    ticket: Ticket[Any],
    on_failure: Callable[[], object] = lambda: None,
) -> None:
    """Call a function with a future's result, at once or later; its error is that of the request."""

    def done(ended: Future[Value]) -> None:
        try:
            result = ended.result()
        except BaseException as error:
            on_failure()
            ticket.fail(error)
        else:
            call(result)

    future.add_done_callback(done)
