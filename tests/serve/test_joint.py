"""A bundle of the joint layout: what it answers, what it refuses, and whether its card answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import clipmlu
import support
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.embed.encoder import Encoder
from clipmlu.errors import DeviceError, SessionError
from http_client import base64_images, call_app, png


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joint")
    source = support.write_exported(folder / "exported", layout="joint")
    return compile_bundle(source, folder / "joint", CompileOptions(target="cpu", batch_size=4)).path


@pytest.fixture(params=[["cat", "dog"], None], ids=["classes of the server", "classes of requests"])
def app(request: pytest.FixtureRequest, bundle: Path) -> Iterator[Any]:
    app = clipmlu.create_app({"joint": bundle}, labels=request.param)
    yield app
    app.state.service.close()


def classify(app: Any) -> Any:
    return call_app(app, "POST", "/v1/classify", json={"images": base64_images(png(1)), "labels": ["cat", "dog"]})


def test_embeddings_are_refused_with_the_way_to_get_them(app: Any) -> None:
    for path in ("/v1/embed", "/v2/models/joint/infer"):
        answer = call_app(app, "POST", path, content=png(1), headers={"Content-Type": "image/png"})
        assert answer.status_code == 400
        assert "has the layout 'joint', whose graph gives no embeddings" in answer.text
        assert "export the model again without '--layout joint'" in answer.text


def test_ready_follows_the_card(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = classify(app).json()["results"]
    assert call_app(app, "GET", "/ready").status_code == 200
    works = Encoder.submit_pairs
    lost = DeviceError("the card is lost", "sync", "LOST", "device_lost")

    def fail(*_arguments: object) -> None:
        raise lost

    monkeypatch.setattr(Encoder, "submit_pairs", fail)
    failed = classify(app)
    assert (failed.status_code, failed.json()["error"]["code"]) == (503, "device_failed")
    refused = call_app(app, "GET", "/ready")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
    assert "the card is lost" in refused.text
    monkeypatch.setattr(Encoder, "submit_pairs", works)
    support.wait_until(lambda: call_app(app, "GET", "/ready").status_code == 200)
    assert classify(app).json()["results"] == scores
    assert app.state.service.model(None).admission.images.waiting == 0


def test_a_card_that_does_not_work_is_told_at_the_start(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise SessionError("the card does not work")

    monkeypatch.setattr(Encoder, "submit_pairs", fail)
    with pytest.raises(clipmlu.ClipmluError, match="the card does not work"):
        clipmlu.create_app({"joint": bundle})
