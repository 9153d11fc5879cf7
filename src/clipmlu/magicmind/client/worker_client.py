"""A client that keeps a worker process running and answers every batch once and in order, even if the worker fails.

One thread, the pump, does all communication. Batches wait in ``_backlog``, and are in ``_in_flight`` from sending until
their answer arrives. If the worker is lost they return to the front of the backlog, a new worker is started, the
sessions are opened again, and the batches are sent again. Late answers of the old worker are ignored, because the
frames of each connection carry its number.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, cast

import numpy as np

from clipmlu.backends.worker_options import WorkerOptions
from clipmlu.data.feeds import Array
from clipmlu.errors import BackendUnavailableError, ClipmluError, SessionError
from clipmlu.lifetime import keep_when_forked
from clipmlu.magicmind.client.answers import Answer, TokenFacts
from clipmlu.magicmind.client.link import GRACE_SECONDS, Ending, Event, Frame, Link, LostError
from clipmlu.magicmind.client.peer import Exchange, Fields, Opened, OpenRequest, Result, send_file
from clipmlu.magicmind.client.slots import Slot, can_share
from clipmlu.magicmind.driver.arrays import arrays_in
from clipmlu.magicmind.driver.errors import DriverError, ProtocolError
from clipmlu.magicmind.driver.files import CHUNK
from clipmlu.magicmind.driver.values import printable

_AHEAD = 1  # batches that wait in the worker in addition to those on the card
_ROOM_FOR_RESULTS = 1 << 20
_HASTY_SECONDS = 0.5
_SLOW = ("open", "build")
"""Operations with their own time limit; the others have the limit of a batch."""
_WORTH_A_RESTART = ("device_lost", "not_finite")


class _Job:
    """Work for the pump: a batch of a session, or an action."""

    def __init__(
        self,
        opened: Opened | None = None,
        arrays: Sequence[Array] = (),
        action: Callable[[Exchange], Any] | None = None,
        seconds: float = 0.0,
    ) -> None:
        self.future: Future[Any] = Future()
        self.future.set_running_or_notify_cancel()
        self.opened = opened
        self.arrays = tuple(arrays)
        self.action = action
        self.seconds = seconds
        self.id = 0
        self.slot: Slot | None = None
        self.restarted_for: set[str] = set()


class WorkerClient:
    """Runs the driver in another process; see ``Peer``.

    Args:
        options: the worker's location and time limits.

    Attributes:
        restarts: number of lost and replaced workers.
    """

    def __init__(self, options: WorkerOptions) -> None:
        self.options = options
        self.shares_files = options.address is None
        self.restarts = 0
        self._events: queue.SimpleQueue[_Job | Event | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._entrance = threading.Lock()  # no request is queued after the end
        self._backlog: collections.deque[_Job] = collections.deque()
        self._in_flight: collections.deque[_Job] = collections.deque()
        self._frames: collections.deque[Frame] = collections.deque()
        self._sessions: list[Opened] = []
        self._slots: list[Slot] = []  # free ones
        self._link: Link | None = None
        self._link_numbers = itertools.count(1)
        self._former_name: str | None = None
        self._shares_memory = False
        self._request_ids = itertools.count(1)
        self._failures: list[str] = []
        self._log = ""
        self._waiting_since = 0.0
        self._exchanging = False
        keep_when_forked(self)
        self._pump_thread = threading.Thread(target=self._pump, name="clipmlu-worker", daemon=True)
        self._pump_thread.start()

    # ---- for callers, from any thread

    def execute(self, action: Callable[[Exchange], Result], seconds: float) -> Result:
        """Run a series of requests; if the worker is lost meanwhile, the whole series runs again.

        Args:
            action: called with a function that sends one request and waits for its answer.
            seconds: time limit for one answer.

        Raises:
            DriverError: the driver answered with an error.
            SessionError: the worker was lost too often.
            BackendUnavailableError: no worker can be started or reached.
        """
        job = _Job(action=action, seconds=seconds)
        self._enqueue(job)
        return cast("Result", job.future.result())

    def open_session(self, request: OpenRequest) -> Opened:
        """Open a session; it is opened again whenever the worker is replaced."""

        def action(exchange: Exchange) -> Opened:
            opened = Opened(request)
            self._open(exchange, opened)
            self._sessions.append(opened)
            return opened

        return self.execute(action, self.options.open_seconds)

    def submit(self, opened: Opened, arrays: Sequence[Array]) -> Future[list[Array]]:
        """Start one batch; the arrays must not change until its result is returned."""
        job = _Job(opened=opened, arrays=arrays, seconds=self.options.run_seconds)
        self._enqueue(job)
        return cast("Future[list[Array]]", job.future)

    def close_session(self, opened: Opened) -> None:
        """Close a session after its batches in flight; returns at once."""

        def action(exchange: Exchange) -> None:
            if opened in self._sessions:
                self._sessions.remove(opened)
                exchange({"op": "close", "session": opened.number}, ()).nothing()

        self._enqueue(_Job(action=action, seconds=self.options.open_seconds))

    def close(self) -> None:
        """End the worker; batches in flight fail."""
        with self._entrance:
            self._closed.set()
            self._events.put(None)
        self._pump_thread.join(_HASTY_SECONDS)
        if self._pump_thread.is_alive() and self._link is not None:
            self._link.abort()  # the pump is sending to a worker that does not read
        self._pump_thread.join()

    def on_fork(self) -> None:
        """Close the connection in a forked process, so that the worker notices when the parent process ends."""
        if self._link is not None:
            self._link.forget()

    def _enqueue(self, job: _Job) -> None:
        with self._entrance:
            if self._closed.is_set():
                raise SessionError("The session is closed.")
            self._events.put(job)

    # ---- the pump

    def _pump(self) -> None:
        while not self._closed.is_set():
            try:
                if not self._backlog and not self._in_flight:
                    self._take(None)
                else:
                    self._step()
            except LostError as lost:
                self._recover(str(lost))
            except ProtocolError as error:
                self._recover(f"it sent invalid data: {error}")
            except ClipmluError as error:
                self._fail_all(error)
            except Exception as error:  # an internal error must not leave callers waiting forever
                self._fail_all(error)
        self._shut_down()

    def _step(self) -> None:
        link = self._connected()
        job = self._backlog[0] if self._backlog else None
        if job is not None and job.action is not None and not self._in_flight:
            self._perform(self._backlog.popleft())
        elif job is not None and job.opened is not None and len(self._in_flight) < self._window(job.opened):
            self._backlog.popleft()
            self._in_flight.append(job)
            self._send_run(link, job)
        elif self._frames:
            self._settle(self._frames.popleft())
        else:
            head = self._in_flight[0]
            if not self._take(self._waiting_since + head.seconds - time.monotonic()):
                raise LostError(f"no answer within {head.seconds:g} s")

    def _take(self, seconds: float | None) -> bool:
        """Wait for one event; return False after the time limit."""
        try:
            event = self._events.get(timeout=None if seconds is None else max(0.0, seconds))
        except queue.Empty:
            return False
        if isinstance(event, _Job):
            self._backlog.append(event)
        elif event is not None and self._link is not None and event.link == self._link.number:
            if event.frame is None:
                self._on_end(event.reason)
            else:
                self._frames.append(event.frame)
        return True

    def _on_end(self, reason: str) -> None:
        link = self._link
        assert link is not None, "the caller looked"
        if self._in_flight or self._exchanging or not link.ended_cleanly():
            raise LostError(reason)
        self._drop_link(GRACE_SECONDS)  # it ended after its idle time; the next request starts another

    def _window(self, opened: Opened) -> int:
        return opened.facts.depth + _AHEAD

    def _send_run(self, link: Link, job: _Job) -> None:
        assert job.opened is not None, "the caller looked"
        if len(self._in_flight) == 1:
            self._waiting_since = time.monotonic()
        job.id = next(self._request_ids)
        fields: Fields = {"op": "run", "id": job.id, "session": job.opened.number}
        deadline = time.monotonic() + job.seconds
        most_bytes = job.opened.most_bytes(job.arrays)
        if not self._shares_memory:
            link.request(fields, list(job.arrays), deadline, most_bytes)
            return
        job.slot = self._slot_for(link, job, deadline)
        job.slot.fill(job.arrays)
        link.request({**fields, **job.slot.request()}, [], deadline, most_bytes)

    def _slot_for(self, link: Link, job: _Job, deadline: float) -> Slot:
        size = sum(array.nbytes + 64 for array in job.arrays) + _ROOM_FOR_RESULTS
        for slot in self._slots:
            if slot.size >= size:
                self._slots.remove(slot)
                return slot
        while self._slots:  # all are too small for the new batches
            slot = self._slots.pop()
            slot.close()
            link.send({"op": "unshare", "slot": slot.number}, [], deadline)
        return self._shared(link, Slot(size), deadline)

    @staticmethod
    def _shared(link: Link, slot: Slot, deadline: float) -> Slot:
        """Pass a slot to the worker and return it."""
        try:
            link.send({"op": "share", "slot": slot.number, "size": slot.size}, [], deadline, (slot.descriptor,))
        except BaseException:
            slot.close()
            raise
        return slot

    def _settle(self, frame: Frame) -> None:
        """Handle the answer to the oldest batch in flight."""
        header, payload = frame
        job = self._in_flight[0]
        results, error = self._read_results(job, header, payload)
        if error is not None and error.kind in _WORTH_A_RESTART and error.kind not in job.restarted_for:
            if error.kind == "not_finite":  # restart only once: some graphs overflow in every process
                job.restarted_for.add(error.kind)
            raise LostError(str(error))
        self._in_flight.popleft()
        self._waiting_since = time.monotonic()
        self._free_slot(job)
        job.arrays = ()
        self._failures.clear()
        if error is not None:
            job.future.set_exception(error)
        else:
            job.future.set_result(results)

    def _read_results(self, job: _Job, header: Fields, payload: Array) -> tuple[list[Array], DriverError | None]:
        assert job.opened is not None, "only batches are settled"
        try:
            answer = _read_answer("run", job.id, header, payload, job.slot)
        except DriverError as error:
            return [], error
        return job.opened.results(answer, job.arrays), None

    def _free_slot(self, job: _Job) -> None:
        if job.slot is not None:
            self._slots.append(job.slot)
            job.slot = None

    def _perform(self, job: _Job) -> None:
        assert job.action is not None, "the caller looked"
        try:
            result = job.action(lambda fields, arrays: self._exchange(fields, arrays, job.seconds))
        except (LostError, ProtocolError):
            self._backlog.appendleft(job)
            raise
        except DriverError as error:
            if error.kind in _WORTH_A_RESTART:
                self._backlog.appendleft(job)
                raise LostError(str(error)) from error
            job.future.set_exception(error)
        except Exception as error:
            job.future.set_exception(error)
        else:
            self._failures.clear()
            job.future.set_result(result)

    def _exchange(self, fields: Fields, arrays: Sequence[Array], seconds: float) -> Answer:
        """Send one request and return its answer; nothing else is in flight."""
        link = self._link
        assert link is not None, "actions run on a connection"
        number, operation = next(self._request_ids), str(fields["op"])
        if operation not in _SLOW:
            seconds = min(seconds, self.options.run_seconds)
        deadline = time.monotonic() + seconds
        link.request({**fields, "id": number}, list(arrays), deadline, CHUNK if operation == "get" else 0)
        self._exchanging = True
        try:
            while not self._frames:
                if self._closed.is_set():
                    raise SessionError("The session was closed.")
                if not self._take(deadline - time.monotonic()):
                    raise LostError(f"no answer to '{operation}' within {seconds:g} s")
        finally:
            self._exchanging = False
        return _read_answer(operation, number, *self._frames.popleft())

    # ---- connections

    def _connected(self) -> Link:
        if self._link is None:
            self._link = Link(self.options, next(self._link_numbers), self._events, self._former_name)
            self._former_name = self._link.name
            self._note_previous(self._link.previous)
            self._shares_memory = self._check_sharing(self._link)
            for opened in self._sessions:
                self._reopen(opened)
        return self._link

    def _check_sharing(self, link: Link) -> bool:
        """Return whether the worker reads the bytes that this process writes into a slot."""
        if not self.options.shared_memory or not can_share() or not link.passes_descriptors:
            return False
        token = os.urandom(16)
        slot = self._shared(link, Slot(0), time.monotonic() + self.options.start_seconds)
        try:
            slot.fill([np.frombuffer(token, np.uint8)])
            with contextlib.suppress(DriverError):
                answer = self._exchange({"op": "check_slot", **slot.request()}, (), self.options.start_seconds)
                return answer.read(TokenFacts).token == token.hex()
            return False
        finally:
            slot.close()

    def _reopen(self, opened: Opened) -> None:
        def exchange(fields: Fields, arrays: Sequence[Array]) -> Answer:
            return self._exchange(fields, arrays, self.options.open_seconds)

        try:
            self._open(exchange, opened)
        except DriverError as error:
            raise LostError(f"session on '{opened.request.model}' cannot be opened again: {error}") from error

    def _open(self, exchange: Exchange, opened: Opened) -> None:
        model = opened.request.model
        path = str(model) if self.shares_files else send_file(exchange, model)
        opened.take(exchange(opened.request.fields(path), ()))

    def _drop_link(self, patience: float) -> Ending:
        link, self._link = self._link, None
        self._frames.clear()
        for job in self._in_flight:
            self._free_slot(job)
        while self._slots:
            self._slots.pop().close()
        return link.stop(patience) if link is not None else Ending("", "")

    def _note_previous(self, ending: Ending | None) -> None:
        """Add the previous worker's exit to the last failure; a remote worker reports it only on the next connection."""
        if ending is not None and self._failures:
            self._failures[-1] += f" ({ending.exit})"
            self._log = ending.log

    # ---- failures

    def _recover(self, reason: str) -> None:
        ending = self._drop_link(0.0)
        self._failures.append(f"{reason} ({ending.exit})" if ending.exit else reason)
        self._log = ending.log or self._log
        self._backlog.extendleft(reversed(self._in_flight))
        self._in_flight.clear()
        if not self._backlog:
            self._failures.clear()  # it died without a request; the next request starts another
            return
        self.restarts += 1
        if len(self._failures) >= self.options.max_failures:
            self._fail_all(self._give_up())
        else:
            time.sleep(min(1.0, 0.05 * 2 ** len(self._failures)))

    def _give_up(self) -> ClipmluError:
        texts = [
            text if text not in self._failures[:place] else "the same" for place, text in enumerate(self._failures)
        ]
        attempts = "; ".join(f"{number}. {text}" for number, text in enumerate(texts, 1))
        message = f"The MagicMind worker {self.options} failed {len(self._failures)} times in a row: {attempts}."
        if self._log:
            message += f" The end of its log:\n{self._log}"
        never_there = all("cannot connect" in text or "does not greet" in text for text in self._failures)
        return BackendUnavailableError(message) if never_there else SessionError(message)

    def _fail_all(self, error: Exception) -> None:
        self._drop_link(0.0)
        self._failures.clear()
        jobs = [*self._in_flight, *self._backlog]
        self._in_flight.clear()
        self._backlog.clear()
        for job in jobs:
            job.arrays = ()
            job.future.set_exception(error)

    def _shut_down(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                event = self._events.get_nowait()
                if isinstance(event, _Job):
                    self._backlog.append(event)
        # Closing with batches in flight means an interrupt, perhaps because the worker hangs.
        self._drop_link(_HASTY_SECONDS if self._in_flight else GRACE_SECONDS)
        self._fail_all(SessionError("The session was closed."))


def _read_answer(operation: str, number: int, header: Fields, payload: Array, slot: Slot | None = None) -> Answer:
    """Return the answer in a frame, with copies of its arrays, so that the frame can be freed.

    Raises:
        ProtocolError: it answers another request, or is not an answer.
        DriverError: the driver reports an error.
    """
    if header.get("id") != number or isinstance(header["id"], (bool, float)):
        raise ProtocolError(f"an answer to request {printable(repr(header.get('id')), 20)} instead of {number}")
    if "error" in header:
        raise DriverError.from_json(header["error"])
    arrays = (
        slot.results(header, payload)
        if slot is not None
        else [np.array(each) for each in arrays_in(header, payload, {})]
    )
    return Answer(operation, header, arrays)
