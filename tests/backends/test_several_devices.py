"""Several cards: which card gets a batch, what a lost card costs, and closing; the cards are futures that a test ends by hand."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clipmlu.backends import several_devices
from clipmlu.backends.base import Feeds, Session, SessionOptions
from clipmlu.backends.several_devices import (
    MultiDeviceSession,
    batches_under_way,
    check_devices,
    open_on_devices,
)
from clipmlu.bundle.manifest import Tower
from clipmlu.clock import StageTotal
from clipmlu.errors import BackendUnavailableError, DeviceError, OptionError, SessionError, ShapeError
from clipmlu.specs import TensorSpec
from support import interrupted_when, wait_until

TOWER = Tower(
    file="graph.mm",
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 1)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 1)),),
)


MODEL: Any = SimpleNamespace(path="bundle", tower=lambda _name: TOWER)


def feeds(number: float) -> dict[str, Any]:
    return {"x": np.full((1, 1), number, np.float32)}


def lost() -> DeviceError:
    return DeviceError("the card is lost", "sync", "UNAVAILABLE", "device_lost")


class Card(Session):
    """A card that multiplies by ten when the test says so."""

    def __init__(self, index: int) -> None:
        super().__init__(TOWER, f"card {index}")
        self.running: list[tuple[float, Future[dict[str, Any]]]] = []
        self.taken: list[float] = []
        self.closings = 0

    def _start(self, given: Feeds) -> Future[dict[str, Any]]:
        number = float(given["x"][0, 0])
        self.taken.append(number)
        future: Future[dict[str, Any]] = Future()
        self.running.append((number, future))
        return future

    def finish(self, count: int = 1) -> None:
        """End the oldest batches."""
        for _ in range(count):
            number, future = self.running.pop(0)
            self.clock.add({"compute": 1.0}, 1)
            future.set_result({"y": np.full((1, 1), 10 * number, np.float32)})

    def fail(self, error: Exception) -> None:
        self.running.pop(0)[1].set_exception(error)

    def _release(self) -> None:
        self.closings += 1
        while self.running:
            self.fail(SessionError("card: the session was closed."))


def opened(count: int, in_flight: int = 2) -> tuple[MultiDeviceSession, list[Card]]:
    cards = [Card(index) for index in range(count)]
    return MultiDeviceSession(TOWER, "The graph", dict(enumerate(cards)), in_flight), cards


def values(pending: list[Any]) -> list[float]:
    return [float(each.result()["y"][0, 0]) for each in pending]


def test_batches_go_to_the_card_with_the_fewest_and_wait_when_all_are_full() -> None:
    session, (first, second) = opened(2)
    pending = [session.submit(feeds(number)) for number in range(6)]
    assert (first.taken, second.taken) == ([0, 2], [1, 3])
    second.finish(2)
    assert (first.taken, second.taken) == ([0, 2], [1, 3, 4, 5])
    first.finish(2)
    second.finish(2)
    assert values(pending) == [0, 10, 20, 30, 40, 50]


def test_slow_card_gets_fewer_batches_and_results_stay_with_their_batches() -> None:
    session, (slow, fast) = opened(2)
    pending = [session.submit(feeds(number)) for number in range(20)]
    while fast.running or slow.running:
        fast.finish(min(4, len(fast.running)))
        fast.finish(min(2, len(fast.running)))
        slow.finish(min(1, len(slow.running)))
    assert (len(slow.taken), len(fast.taken)) == (5, 15)
    assert sorted(slow.taken + fast.taken) == list(range(20))
    assert values(pending) == [10 * number for number in range(20)]


def test_batches_of_a_lost_card_go_to_the_others_and_the_card_is_named(caplog: pytest.LogCaptureFixture) -> None:
    session, (good, bad) = opened(2)
    pending = [session.submit(feeds(number)) for number in range(6)]
    with caplog.at_level(logging.WARNING, "clipmlu"):
        bad.fail(lost())
        bad.fail(lost())
    assert len(bad.taken) == 2, "it gets no more"
    while good.running:
        good.finish()
    assert values(pending) == [0, 10, 20, 30, 40, 50]
    (record,) = caplog.records
    assert "card 1 is lost and gets no more batches; the cards [0] do its work: the card is lost" in record.getMessage()


@pytest.mark.parametrize("error", [SessionError("failed 3 times in a row"), BackendUnavailableError("no worker")])
def test_worker_that_cannot_be_replaced_is_a_lost_card(error: Exception) -> None:
    session, (good, bad) = opened(2, in_flight=1)
    pending = [session.submit(feeds(number)) for number in range(2)]
    bad.fail(error)
    good.finish(2)
    assert values(pending) == [0, 10]


def test_last_lost_card_fails_all_batches_and_later_ones() -> None:
    session, (first, second) = opened(2)
    pending = [session.submit(feeds(number)) for number in range(6)]
    first.fail(lost())
    second.fail(lost())
    for card in (first, second):
        card.fail(lost())
    for each in pending:
        with pytest.raises(DeviceError, match="is lost"):
            each.result()
    with pytest.raises(DeviceError, match="is lost"):
        session.submit(feeds(7))


def test_refused_batches_are_not_kept_while_all_cards_are_lost() -> None:
    session, (card,) = opened(1)
    first = session.submit(feeds(1))
    card.fail(lost())
    with pytest.raises(DeviceError):
        first.result()
    refused = []
    for number in range(20):
        given = feeds(number)
        refused.append(weakref.ref(next(iter(given.values()))))
        with pytest.raises(DeviceError, match="is lost"):
            session.submit(given)
        del given
    gc.collect()
    assert sum(each() is not None for each in refused) <= 1


def test_lost_cards_are_tried_again_after_a_pause_that_grows(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(several_devices, "now", lambda: clock[0])
    session, (first, second) = opened(2)

    def lose_all(pending: list[Any]) -> None:
        for card in (first, second):
            while card.running:
                card.fail(lost())
        for each in pending:
            with pytest.raises(DeviceError):
                each.result()

    lose_all([session.submit(feeds(number)) for number in range(4)])
    for pause in (10, 20, 40, 80, 160, 300, 300):
        clock[0] += pause - 1
        with pytest.raises(DeviceError, match="is lost"):
            session.submit(feeds(1))
        clock[0] += 1
        with caplog.at_level(logging.WARNING, "clipmlu"):
            again = session.submit(feeds(1))
        assert "all cards were lost, the last one by: the card is lost; they are tried again" in caplog.text
        caplog.clear()
        lose_all([again])
    clock[0] += 300
    good = session.submit(feeds(5))
    first.finish()
    assert values([good]) == [50]
    other = session.submit(feeds(6))
    lose_all([other])
    clock[0] += 10  # a success makes the pause short again
    session.submit(feeds(7))
    first.finish()


def test_batch_that_costs_two_cards_is_not_tried_on_a_third() -> None:
    session, cards = opened(3, in_flight=1)
    poison = session.submit(feeds(7))
    cards[0].fail(lost())
    cards[1].fail(lost())
    with pytest.raises(DeviceError):
        poison.result()
    after = session.submit(feeds(1))
    cards[2].finish()
    assert values([after]) == [10]


@pytest.mark.parametrize(
    "error",
    [ShapeError("wrong shape"), DeviceError("no memory", "enqueue", "RESOURCE_EXHAUSTED", "out_of_memory")],
)
def test_other_errors_are_those_of_the_batch_and_the_card_goes_on(error: Exception) -> None:
    session, (first, second) = opened(2, in_flight=1)
    bad, good = session.submit(feeds(0)), session.submit(feeds(1))
    first.fail(error)
    second.finish()
    with pytest.raises(type(error), match=str(error)):
        bad.result()
    after = session.submit(feeds(2))
    first.finish()
    assert values([good, after]) == [10, 20]


def test_closing_closes_every_card_and_fails_what_runs_and_what_waits(caplog: pytest.LogCaptureFixture) -> None:
    session, cards = opened(3, in_flight=1)
    pending = [session.submit(feeds(number)) for number in range(9)]
    with caplog.at_level(logging.WARNING, "clipmlu"):
        session.close()
        session.close()
    assert [card.closings for card in cards] == [1, 1, 1]
    assert not caplog.records, "no card is lost"
    for each in pending:
        with pytest.raises(SessionError, match="closed"):
            each.result()
    with pytest.raises(SessionError, match="The graph was closed"):
        session.submit(feeds(1))


class SlowBackend:
    """Opens a card only when the test says so; a card of ``absent`` does not exist."""

    def __init__(self, absent: frozenset[int] = frozenset()) -> None:
        self.ready = threading.Event()
        self.cards: list[Card] = []
        self.started: list[int] = []
        self._absent = absent

    def open(self, _model: Any, _tower: Any, options: SessionOptions) -> Card:
        self.started.append(options.device)
        if options.device in self._absent:
            raise BackendUnavailableError(f"there is no card {options.device}")
        self.ready.wait(60)
        self.cards.append(Card(options.device))
        return self.cards[-1]

    def has_closed(self, count: int) -> bool:
        """Return whether so many cards were opened and closed again."""
        return len(self.cards) == count and all(card.closings == 1 for card in self.cards)


def test_interrupt_while_cards_are_opened_waits_for_none_of_them() -> None:
    backend: Any = SlowBackend()
    with pytest.raises(KeyboardInterrupt), interrupted_when(lambda: len(backend.started) == 3):
        open_on_devices(backend, MODEL, "image", SessionOptions(), [0, 1, 2])
    assert not backend.cards
    assert sorted(backend.started) == [0, 1, 2], "all at the same time"
    backend.ready.set()
    wait_until(lambda: backend.has_closed(3))


def test_card_that_cannot_be_opened_closes_the_others() -> None:
    backend: Any = SlowBackend(absent=frozenset({1}))
    threading.Timer(0.2, backend.ready.set).start()
    with pytest.raises(BackendUnavailableError, match="there is no card 1"):
        open_on_devices(backend, MODEL, "image", SessionOptions(), [0, 1, 2])
    wait_until(lambda: backend.has_closed(2))


def test_clock_adds_up_the_cards() -> None:
    session, (first, second) = opened(2)
    for number in range(3):
        session.submit(feeds(number))
    first.finish(2)
    second.finish()
    assert session.clock.totals() == {"compute": StageTotal(3.0, 3)}


@pytest.mark.parametrize(
    ("given", "expected"),
    [("0", (0,)), ("2, 0,1", (2, 0, 1)), ("all", "all"), ([1, 0], (1, 0)), ((np.int64(3),), (3,)), (range(2), (0, 1))],
)
def test_choices_of_cards(given: Any, expected: object) -> None:
    assert check_devices(given) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "a",
        "-1",
        "0,",
        "0.5",
        "²",
        "٣",
        "0;1",
        "all,0",
        "ALL",
        [],
        [-1],
        [True],
        ["0"],
        0,
        None,
        [0.5],
        b"0",
        np.array([0, 1]),
    ],
)
def test_wrong_choices_of_cards_are_quoted(wrong: Any) -> None:
    with pytest.raises(
        OptionError, match=r"expected different indices of 0 or more, such as 0 or 0,1, or 'all'$"
    ) as caught:
        check_devices(wrong)
    assert f"devices are {wrong!r};" in str(caught.value)


@pytest.mark.parametrize("twice", ["0,0", "1,2,1", [0, 0]])
def test_card_named_twice(twice: Any) -> None:
    with pytest.raises(OptionError, match=r"names card [01] twice"):
        check_devices(twice)


def test_batches_under_way_are_those_of_all_cards_and_more_for_the_order() -> None:
    assert batches_under_way([3], 2) == 2
    assert batches_under_way([0, 1, 2], 2) >= 3 * 2
