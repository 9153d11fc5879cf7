"""Cards that are lost while requests are served: no answer is wrong, lost or doubled."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clipmlu
import support
from clipmlu.backends import SessionOptions, several_devices
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.magicmind.backend import emulated_worker
from clipmlu.model import Model
from clipmlu.serve.http.app import make_app
from clipmlu.serve.options import ServeOptions
from clipmlu.serve.served_model import ServedModel
from clipmlu.serve.service import Service
from http_client import call_app, png

REQUESTS = 48


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> CompiledBundle:
    folder = tmp_path_factory.mktemp("cards")
    options = CompileOptions(target="emulated-mlu", batch_size=4, max_batch=8, check=False)
    return compile_bundle(support.write_exported(folder / "tiny"), folder / "tiny-mlu", options)


def ask_all(app: Any, bundle: Path, at_answer: Any = lambda _count: None) -> None:
    """Send requests on several threads, and compare every answer with offline."""
    lock, count = threading.Lock(), [0]

    def ask(number: int) -> dict[str, float]:
        answer = call_app(app, "POST", "/v1/classify", content=png(number), headers={"Content-Type": "image/png"})
        assert answer.status_code == 200, answer.text
        assert answer.json()["emulated"] is True
        assert answer.headers["x-clipmlu-emulated"] == "true"
        with lock:
            count[0] += 1
            at_answer(count[0])
        (result,) = answer.json()["results"]
        return {each["class_name"]: each["score"] for each in result["predictions"]}

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(REQUESTS)))
    with clipmlu.load(bundle) as model:
        classifier = model.classifier(["cat", "dog"], cache=False)
        expected = classifier.predict([png(number) for number in range(REQUESTS)])
    for answer, wanted in zip(answers, expected, strict=True):
        scores = [answer[name] for name in wanted.class_names]
        np.testing.assert_allclose(scores, wanted.scores, atol=1e-6)


def test_a_killed_worker_costs_no_answer(card: CompiledBundle) -> None:
    options = ServeOptions(labels=["cat", "dog"])
    encoder = Model(card, SessionOptions(worker=emulated_worker()))
    served = ServedModel("tiny", encoder, options)
    served.warm_up()
    service = Service({"tiny": served}, options)
    session: Any = encoder._session("image")

    def kill(count: int) -> None:
        if count in (8, 24):
            os.kill(session._peer._link._process.pid, signal.SIGKILL)

    try:
        ask_all(make_app(service), card.path, kill)
        assert encoder.worker_restarts() >= 1
        assert service.why_not_ready() is None
        assert served.admission.images.waiting == 0
    finally:
        service.close()


def test_a_lost_card_costs_no_answer(card: CompiledBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPMLU_EMULATOR_DEVICES", "2")
    monkeypatch.setenv("CLIPMLU_EMULATOR_FAULTS", "sync@1:3:device_lost")
    app = clipmlu.create_app({"tiny": card.path}, labels=["cat", "dog"], devices="0,1")
    try:
        ask_all(app, card.path)
        cards: Any = app.state.service.model(None).encoder._session("image")
        assert [each.index for each in cards._cards if each.lost] == [1]
        assert app.state.service.why_not_ready() is None
    finally:
        app.state.service.close()


@pytest.mark.slow
def test_lost_cards_are_used_again_when_they_work(card: CompiledBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPMLU_EMULATOR_DEVICES", "2")
    seconds = [0.0]
    monkeypatch.setattr(several_devices, "now", lambda: seconds[0])
    options = ServeOptions(labels=["cat", "dog"])
    worker = emulated_worker()
    environment: Any = worker.environment  # of workers that are started later, too
    encoder = Model(card, SessionOptions(worker=worker), devices="0,1")
    served = ServedModel("tiny", encoder, options)
    served.warm_up()
    app = make_app(Service({"tiny": served}, options))

    def classify() -> tuple[int, Any]:
        answer = call_app(app, "POST", "/v1/classify", content=png(1), headers={"Content-Type": "image/png"})
        return answer.status_code, answer.json().get("results")

    def ready() -> int:
        return call_app(app, "GET", "/ready").status_code

    try:
        before = classify()
        assert before[0] == 200
        environment["CLIPMLU_EMULATOR_FAULTS"] = "sync@0:1:device_lost,sync@1:1:device_lost"
        cards: Any = encoder._session("image")
        for each in cards._cards:
            os.kill(each.session._peer._link._process.pid, signal.SIGKILL)
        assert classify()[0] == 503
        assert all(each.lost for each in cards._cards)
        del environment["CLIPMLU_EMULATOR_FAULTS"]
        assert [ready(), ready(), classify()[0]] == [503, 503, 503]
        seconds[0] = 10.0
        support.wait_until(lambda: ready() == 200)
        assert classify() == before
    finally:
        app.state.service.close()
