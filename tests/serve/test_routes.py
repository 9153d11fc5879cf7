"""The routes of the server: forms of requests, and their answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clipmlu
from http_client import base64_images, call_app, png


@pytest.fixture(scope="module")
def app(compiled_once: Path) -> Iterator[Any]:
    app = clipmlu.create_app({"tiny": compiled_once}, labels=["cat", "dog"])
    yield app
    app.state.service.close()


def test_bytes_of_an_image_are_classified_as_offline(app: Any, model: clipmlu.Model) -> None:
    answer = call_app(app, "POST", "/v1/classify", content=png(1), headers={"Content-Type": "image/png"})
    assert answer.status_code == 200, answer.text
    expected = model.classifier(["cat", "dog"], cache=False).predict(png(1)).to_dict()["predictions"]
    assert answer.json()["results"][0]["predictions"] == expected
    assert answer.json()["model"] == "tiny"
    assert answer.json()["emulated"] is False


def test_labels_of_a_request_and_several_images(app: Any, model: clipmlu.Model) -> None:
    body = {"images": base64_images(png(1), png(2)), "labels": ["\u732b", "\u72d7", "bird"], "top_k": 3}
    answer = call_app(app, "POST", "/v1/classify", json=body).json()
    expected = model.classifier(["\u732b", "\u72d7", "bird"], cache=False).predict([png(1), png(2)], top_k=3)
    for found, wanted in zip(answer["results"], expected, strict=True):
        assert [each["class_name"] for each in found["predictions"]] == list(wanted.class_names)
        np.testing.assert_allclose([each["score"] for each in found["predictions"]], wanted.scores, atol=1e-6)


def test_embeddings_of_images_and_texts(app: Any, model: clipmlu.Model) -> None:
    body = {"images": base64_images(png(1)), "texts": ["a cat", "a dog"]}
    answer = call_app(app, "POST", "/v1/embed", json=body).json()
    np.testing.assert_allclose(answer["image_embeddings"], [model.embed_images(png(1))], atol=1e-6)
    np.testing.assert_allclose(answer["text_embeddings"], model.embed_texts(["a cat", "a dog"]), atol=1e-6)


def test_status(app: Any) -> None:
    assert call_app(app, "GET", "/health").json() == {"status": "ok"}
    assert call_app(app, "GET", "/ready").status_code == 200
    assert call_app(app, "GET", "/v1/models").json()["models"][0]["name"] == "tiny"
