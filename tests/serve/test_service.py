"""The service without HTTP: batches of many requests, limits, and requests that nobody waits for."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import clipmlu
from clipmlu.clock import now
from clipmlu.serve.batching import Batcher, Row
from clipmlu.serve.options import ServeOptions
from clipmlu.serve.queue_limit import QueueLimit
from clipmlu.serve.refusal import Refusal
from clipmlu.serve.requests import ClassesInput, ImageInput
from clipmlu.serve.service import Service, open_service
from clipmlu.serve.tickets import RowGroup, Ticket
from http_client import png


@pytest.fixture(scope="module")
def service(compiled_once: Path) -> Iterator[Service]:
    service = open_service({"tiny": compiled_once}, ServeOptions(labels=["cat", "dog"], max_queue=64))
    yield service
    service.close()


def images(*numbers: int) -> list[ImageInput]:
    return [ImageInput(f"{number}.png", png(number)) for number in numbers]


def test_answers_of_concurrent_requests_are_those_of_offline(service: Service, compiled_once: Path) -> None:
    chance = random.Random(0)
    labels = (None, ("ant", "bee"), ("bee", "ant", "\u72d7"))
    requests = [
        ([chance.randrange(12) for _ in range(chance.randrange(1, 5))], chance.choice(labels)) for _ in range(60)
    ]
    model = service.model(None)

    def ask(request: tuple[list[int], tuple[str, ...] | None]) -> list[tuple[str, ...]]:
        numbers, names = request
        pending = model.classify(images(*numbers), ClassesInput(labels=names), 3, now() + 30)
        return [(each.source, dict(zip(each.class_names, each.scores, strict=True))) for each in pending.result()]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, requests))
    with clipmlu.load(compiled_once) as offline:
        classifiers = {names: offline.classifier(names or ("cat", "dog"), cache=False) for names in labels}
        for (numbers, names), answer in zip(requests, answers, strict=True):
            expected = classifiers[names].predict([png(number) for number in numbers], top_k=3)
            assert [source for source, _ in answer] == [f"{number}.png" for number in numbers]
            for (_, scores), wanted in zip(answer, expected, strict=True):
                for name, score in zip(wanted.class_names, wanted.scores, strict=True):
                    assert scores[name] == pytest.approx(score, abs=1e-6)
    assert model.admission.images.waiting == 0
    assert model.admission.texts.waiting == 0


def test_an_unreadable_image_fails_alone(service: Service) -> None:
    pending = service.model(None).classify(
        [*images(1), ImageInput("broken.jpg", b"\xff\xd8nothing")], ClassesInput(), None, now() + 30
    )
    good, bad = pending.result()
    assert good.error is None
    assert bad.error is not None
    assert "broken.jpg" in bad.error


def test_a_template_that_is_a_path_is_refused(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "templates.txt"
    file.write_text("a secret {}\n")
    with pytest.raises(Refusal, match="Unknown template set"):
        service.model(None).classify(images(1), ClassesInput(labels=("a",), templates=(str(file),)), None, now() + 30)
    assert service.model(None).admission.images.waiting == 0


def test_limits_are_refusals_with_a_code(service: Service) -> None:
    model = service.model(None)
    for code, request in (
        ("too_large", (images(*range(65)), ClassesInput())),
        ("too_large", (images(1), ClassesInput(labels=[f"class {n}" for n in range(2000)]))),
        ("urls_not_allowed", ([ImageInput("a", None, "http://127.0.0.1/a.png")], ClassesInput())),
        ("bad_request", ([], ClassesInput())),
    ):
        with pytest.raises(Refusal) as caught:
            model.classify(*request, None, now() + 30)
        assert caught.value.code == code
    assert model.admission.images.waiting == 0


def test_a_wrong_tensor_does_not_reach_a_batch(service: Service) -> None:
    with pytest.raises(clipmlu.ClipmluError, match="expected float32 of shape"):
        service.model(None).embed_tensors(np.zeros((1, 3, 9, 9), np.float32), None, now() + 30)
    with pytest.raises(clipmlu.ClipmluError, match="NaN"):
        service.model(None).embed_tensors(np.full((1, 3, 8, 8), np.nan, np.float32), None, now() + 30)


def test_an_image_without_an_embedding_fails_alone(service: Service) -> None:
    """The tiny model gives a zero vector for it, which is an error of the whole batch in a session."""
    model = service.model(None)
    grey = np.zeros((1, 3, 8, 8), np.float32)
    with ThreadPoolExecutor(4) as pool:
        bad = model.embed_tensors(grey, None, now() + 30)
        good = list(pool.map(lambda n: model.classify(images(n), ClassesInput(), None, now() + 30).result(), range(12)))
    assert all(len(each) == 1 for each in good)
    with pytest.raises(Refusal, match="no unit vector"):
        bad.result()
    assert model.why_not_ready() is None


class _Held:
    """A graph that records its batches, and gives results when told."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.go = ThreadPoolExecutor(1)

    def submit(self, rows: np.ndarray) -> _Held:
        self.batches.append(rows[:, 0].tolist())
        self._rows = rows.copy()
        return self

    def result(self) -> np.ndarray:
        return self._rows


def test_rows_of_ended_requests_are_dropped_before_the_device() -> None:
    graph, ended = _Held(), []
    batcher = Batcher(0, 4, "test")  # no place: rows wait
    tickets = [Ticket[list[float]](now() + 30) for _ in range(3)]
    for number, ticket in enumerate(tickets):
        group = RowGroup(ticket, 1, lambda rows, ticket=ticket: ticket.finish(list(rows[0])), lambda: ended.append(1))
        batcher.add(Row(group, 0, graph, np.array([number], np.float32)))
    tickets[1].future.cancel()
    rows = batcher._pick()
    batcher._compute(rows, np.empty((len(rows), 1), np.float32))
    assert graph.batches == [[0.0, 2.0]]
    assert [tickets[0].future.result(0), tickets[2].future.result(0)] == [[0.0], [2.0]]
    assert (batcher.dropped, len(ended)) == (1, 3)


class _Ready(_Held):
    """A graph that tells when it has had some batches."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.submitted = threading.Semaphore(0)
        self._batches = batches

    def submit(self, rows: np.ndarray) -> _Held:
        found = super().submit(rows)
        self.submitted.release()
        return found

    def wait(self) -> list[list[float]]:
        for _ in range(self._batches):
            assert self.submitted.acquire(timeout=30)
        return self.batches


@pytest.mark.parametrize(
    ("preparing", "longest", "rows", "expected"),
    [
        (True, 30.0, 8, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (True, 0.02, 1, [[0]]),  # the others do not come in time
        (False, 30.0, 1, [[0]]),
    ],
)
def test_rows_wait_for_a_full_batch_while_more_are_prepared(
    preparing: bool, longest: float, rows: int, expected: list[list[int]]
) -> None:
    graph = _Ready(len(expected))
    batcher = Batcher(2, 4, "test")
    try:
        batcher.fill_while(lambda: preparing, longest)
        ticket = Ticket[object](now() + 30)
        group = RowGroup(ticket, rows, ticket.finish, lambda: None)
        for number in range(rows):
            batcher.add(Row(group, number, graph, np.array([number], np.float32)))
            if rows > 1 and number < 3:
                assert not graph.submitted.acquire(timeout=0.005)
        assert sorted(graph.wait()) == expected
        ticket.future.result(30)
    finally:
        batcher.close()


def test_a_full_queue_says_when_to_try_again() -> None:
    limit = QueueLimit(4, "images")
    limit.take(6)  # larger than the limit, but nothing waits
    with pytest.raises(Refusal, match="6 images wait already; at most 4 may") as caught:
        limit.take(1)
    assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": "1"})
    for _ in range(6):
        limit.end_one()
    limit.take(4)
    assert limit.waiting == 4


def test_kept_classifiers_count_the_length_of_their_prompts(service: Service) -> None:
    model = service.model(None)
    kept = model._classifiers
    before = kept._classifiers.size, kept._classes.size
    names = ("x" * 60_000, "y" * 60_000)
    model.classify(images(1), ClassesInput(labels=names), 1, now() + 30).result()
    assert kept._classifiers.size - before[0] > 120_000
    assert kept._classes.size - before[1] > 120_000


def test_the_first_rows_do_not_tell_the_rate() -> None:
    moment = [100.0]
    limit = QueueLimit(512, "images", lambda: moment[0])
    limit.take(512)
    moment[0] += 0.1
    limit.end_one()  # the first batch has one row, and is slow
    limit.take(1)
    with pytest.raises(Refusal) as caught:
        limit.take(1)
    assert caught.value.headers == {"Retry-After": "1"}
    moment[0] += 0.9
    for _ in range(99):
        limit.end_one()
    limit.take(99)
    with pytest.raises(Refusal) as caught:
        limit.take(1)
    assert caught.value.headers == {"Retry-After": "6"}  # 512 rows at 100/s
