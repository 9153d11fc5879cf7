"""Several cards: the choice of cards, and a session that passes each batch to the card that is free first."""

from __future__ import annotations

import dataclasses
import functools
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Literal, TypeVar

from clipmlu.arguments import check_argument, shown
from clipmlu.backends.base import Backend, Feeds, PendingBatch, Session, SessionOptions
from clipmlu.bundle.manifest import Tower
from clipmlu.bundle.runnable import RunnableModel
from clipmlu.clock import SummedClock, now
from clipmlu.data.feeds import Array
from clipmlu.errors import BackendUnavailableError, ClipmluError, DeviceError, OptionError, SessionError
from clipmlu.specs import NaturalInt, TowerName

Result = TypeVar("Result")
Devices = tuple[int, ...] | Literal["all"]

_log = logging.getLogger(__name__)
_EXPECTED = "expected different indices of 0 or more, such as 0 or 0,1, or 'all'"
_WINDOW = 2  # batches under way for each one on a card: results are in order, and one card may be slower than others
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 10.0, 300.0  # after the loss of all cards until they are tried again
_MOST_LOSSES = 2  # a batch that may be the reason of the losses does not end all cards


def check_devices(devices: object) -> Devices:
    """Return a choice of cards: one or more different indices, or ``"all"``.

    Args:
        devices: a sequence of integers, or a text such as ``"0,1"`` or ``"all"``.

    Raises:
        OptionError: it is neither, or names a card twice.
    """
    if isinstance(devices, str) and devices == "all":
        return "all"
    try:
        found: object = tuple(devices) if isinstance(devices, range) else devices
        if isinstance(devices, str):
            found = tuple(map(_index, devices.split(",")))
        indices: tuple[int, ...] = check_argument(found, tuple[NaturalInt, ...], "devices")
    except ValueError as error:
        raise OptionError(f"devices are {shown(devices)}; {_EXPECTED}") from error
    twice = [index for place, index in enumerate(indices) if index in indices[:place]]
    if twice:
        raise OptionError(f"devices are {shown(devices)}, which names card {twice[0]} twice; {_EXPECTED}")
    if not indices:
        raise OptionError(f"devices are {shown(devices)}; {_EXPECTED}")
    return indices


def _index(text: str) -> int:
    if not text.strip().isascii() or not text.strip().isdecimal():
        raise ValueError(text)
    return int(text)


def check_has_cards(backend: Backend, model: RunnableModel, devices: Devices) -> None:
    """Check that a bundle runs on cards.

    Raises:
        OptionError: it runs on the CPU.
    """
    if not backend.has_cards:
        given = "all" if devices == "all" else list(devices)
        raise OptionError(f"devices are {given}, but bundle '{model.path}' runs on the CPU; leave them out")


def resolve_devices(
    backend: Backend, model: RunnableModel, devices: Devices, options: SessionOptions
) -> tuple[int, ...]:
    """Return the indices of the chosen cards; for ``"all"`` the SDK is asked.

    Raises:
        OptionError: the bundle runs on the CPU.
        BackendUnavailableError: the SDK cannot be reached, or reports no card.
    """
    check_has_cards(backend, model, devices)
    if devices != "all":
        return devices
    count = backend.count_devices(options)
    if not count:
        raise BackendUnavailableError(
            f"Bundle '{model.path}' cannot run on all cards: the SDK reports none on this machine. See: clipmlu doctor"
        )
    return tuple(range(count))


def batches_under_way(devices: Sequence[int], in_flight: int) -> int:
    """Return the number of batches to submit before the first result is needed, so that no card has to wait.

    Args:
        devices: indices of the cards.
        in_flight: batches on a card at a time.
    """
    return in_flight if len(devices) == 1 else in_flight * len(devices) * _WINDOW


def open_on_devices(
    backend: Backend, model: RunnableModel, tower: TowerName, options: SessionOptions, devices: Sequence[int]
) -> MultiDeviceSession:
    """Open one graph on several cards at the same time.

    Raises:
        BackendUnavailableError: a card does not exist, or its SDK cannot be reached; the others are closed.
    """

    def open_one(device: int) -> Session:
        return backend.open(model, tower, dataclasses.replace(options, device=device, one_of_several=True))

    opening = [_start_thread(functools.partial(open_one, device)) for device in devices]
    try:
        sessions = [each.result() for each in opening]
    except BaseException:
        for each in opening:
            each.add_done_callback(_close_opened)  # at once, or when it is open
        raise
    label = f"Bundle '{model.path}' ({tower} tower)"
    cards = dict(zip(devices, sessions, strict=True))
    return MultiDeviceSession(model.tower(tower), label, cards, options.in_flight)


def _start_thread(work: Callable[[], Result]) -> Future[Result]:
    """Run a function on a thread of its own, which neither an interrupt nor the end of the program waits for."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            result = work()
        except Exception as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="clipmlu-cards", daemon=True).start()
    return future


def _close_opened(opening: Future[Session]) -> None:
    if opening.exception() is None:
        opening.result().close()


class _Card:
    """A card: its open session, and how many batches it has."""

    def __init__(self, index: int, session: Session) -> None:
        self.index = index
        self.session = session
        self.running = 0
        self.lost = False


class _Batch:
    """A batch that waits for a card or is on one; its feeds are kept until it ends, because the card may be lost."""

    def __init__(self, feeds: Feeds) -> None:
        self.feeds = feeds
        self.pending: PendingBatch | None = None
        self.losses = 0
        self.future: Future[dict[str, Array]] = Future()
        self.future.set_running_or_notify_cancel()


class MultiDeviceSession(Session):
    """One graph on several cards: a batch goes to the card with the fewest batches, or waits for the first free one.

    If a card is lost, its batches go to the others, and a warning is logged that names the card. When all are lost, batches fail; the
    first one that comes after a pause, which grows from 10 s to 5 minutes, tries the cards again.

    Args:
        tower: inputs and outputs of the graph.
        label: name of the session in messages.
        sessions: maps the index of a card to its session, which is closed with this one.
        in_flight: batches on a card at a time.
    """

    def __init__(self, tower: Tower, label: str, sessions: Mapping[int, Session], in_flight: int) -> None:
        super().__init__(tower, label)
        self.clock = SummedClock(session.clock for session in sessions.values())
        self._in_flight = in_flight
        self._cards = [_Card(index, session) for index, session in sessions.items()]
        self._lock = threading.Lock()  # of the cards, of the waiting batches, and of the failure
        self._waiting: deque[_Batch] = deque()
        self._failure: Exception | None = None  # the loss of the last card
        self._pause = _FIRST_PAUSE_S
        self._try_again_at = 0.0

    @property
    def restarts(self) -> int:
        """Lost and replaced workers of all cards."""
        return sum(card.session.restarts for card in self._cards)

    def _start(self, feeds: Feeds) -> Future[dict[str, Array]]:
        batch = _Batch(feeds)
        with self._lock:
            self._lifetime.check()  # again: batches that wait when the session is closed have failed
            if self._failure is not None:
                if now() < self._try_again_at:
                    raise self._failure.with_traceback(None)  # else it keeps the frames and batches of all raises
                self._try_lost_cards()
            self._waiting.append(batch)
        self._dispatch()
        return batch.future

    def _try_lost_cards(self) -> None:
        """Give batches to the lost cards again; the caller holds the lock."""
        for card in self._cards:
            card.lost = False
        _log.warning("all cards were lost, the last one by: %s; they are tried again", self._failure)
        self._failure = None

    def _release(self) -> None:
        """Close the sessions at the same time; batches that wait for a card fail."""
        for closing in [_start_thread(card.session.close) for card in self._cards]:
            closing.result()
        self._fail_waiting(SessionError(f"{self._label}: the session was closed before the batch began."))

    def _dispatch(self) -> None:
        """Pass waiting batches to free cards."""
        while (assigned := self._assign()) is not None:
            card, batch = assigned
            try:
                batch.pending = pending = card.session.submit(batch.feeds)
            except ClipmluError as error:
                self._fail(card, batch, error)
            else:
                pending.add_done_callback(functools.partial(self._finish, card, batch))

    def _assign(self) -> tuple[_Card, _Batch] | None:
        with self._lock:
            free = [card for card in self._cards if not card.lost and card.running < self._in_flight]
            if not free or not self._waiting or self._lifetime.closed:
                return None
            card = min(free, key=lambda each: each.running)
            card.running += 1
            return card, self._waiting.popleft()

    def _finish(self, card: _Card, batch: _Batch, _done: object) -> None:
        """Take the result of a batch, after the card has got its next one; called on a thread of the card's session."""
        pending, batch.pending = batch.pending, None  # the callback must not refer to its own future
        assert pending is not None, "it was submitted"
        try:
            outputs = pending.result()
        except Exception as error:
            self._fail(card, batch, error)
        else:
            self._pause = _FIRST_PAUSE_S
            self._free(card)
            self._dispatch()
            batch.future.set_result(outputs)

    def _fail(self, card: _Card, batch: _Batch, error: Exception) -> None:
        """Fail a batch, or if its card was lost pass it to another one."""
        if is_device_loss(error) and not self._lifetime.closed:
            self._lose(card, batch, error)
        else:
            self._free(card)
            batch.future.set_exception(error)
        self._dispatch()

    def _free(self, card: _Card) -> None:
        with self._lock:
            card.running -= 1

    def _lose(self, card: _Card, batch: _Batch, error: Exception) -> None:
        batch.losses += 1
        with self._lock:
            first, card.lost = not card.lost, True
            card.running -= 1
            left = [each.index for each in self._cards if not each.lost]
            again = bool(left) and batch.losses < _MOST_LOSSES
            if again:
                self._waiting.appendleft(batch)
            if not left and self._failure is None:
                self._failure = error
                self._try_again_at = now() + self._pause
                self._pause = min(2 * self._pause, _LONGEST_PAUSE_S)
        if first and left:
            _log.warning(
                "card %d is lost and gets no more batches; the cards %s do its work: %s", card.index, left, error
            )
        if not again:
            batch.future.set_exception(error)
        if not left:
            self._fail_waiting(error)

    def _fail_waiting(self, error: Exception) -> None:
        with self._lock:
            batches, self._waiting = self._waiting, deque()
        for batch in batches:
            batch.future.set_exception(error)


def is_device_loss(error: Exception) -> bool:
    """Return whether an error says that a card or its worker cannot be used any more."""
    if isinstance(error, DeviceError):
        return error.kind == "device_lost"
    return type(error) is SessionError or isinstance(error, BackendUnavailableError)
