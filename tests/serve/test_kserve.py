"""The KServe v2 routes: through HTTP written by hand, and with NVIDIA's client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clipmlu
import support
from clipmlu._version import __version__
from http_client import base64_images, call_app, png
from http_server import serving

LABELS = ["cat", "dog", "elk"]


@pytest.fixture(scope="module")
def app(compiled_once: Path) -> Iterator[Any]:
    app = clipmlu.create_app({"tiny": compiled_once}, labels=LABELS)
    yield app
    app.state.service.close()


def infer(app: Any, content: dict[str, Any], name: str = "tiny") -> Any:
    return call_app(app, "POST", f"/v2/models/{name}/infer", json=content)


def outputs(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return {output["name"]: output for output in answer.json()["outputs"]}


def array(output: dict[str, Any]) -> Any:
    return np.array(output["data"], np.float32).reshape(output["shape"])


def image_input(*contents: bytes) -> dict[str, Any]:
    return {
        "name": "images",
        "shape": [len(contents)],
        "datatype": "BYTES",
        "data": base64_images(*contents),
        "parameters": {"content_type": "base64"},
    }


def text_input(*texts: str) -> dict[str, Any]:
    return {"name": "texts", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}


def test_server_and_health(app: Any) -> None:
    assert call_app(app, "GET", "/v2").json() == {
        "name": "clipmlu",
        "version": __version__,
        "extensions": ["binary_tensor_data", "classification"],
    }
    assert call_app(app, "GET", "/v2/health/live").json() == {"live": True}
    assert call_app(app, "GET", "/v2/health/ready").json() == {"live": True, "ready": True}


@pytest.mark.parametrize("path", ["/v2/models/tiny", "/v2/models/tiny/versions/1"])
def test_model_metadata(app: Any, model: clipmlu.Model, path: str) -> None:
    assert call_app(app, "GET", path).json() == {
        "name": "tiny",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "pixel_values", "datatype": "FP32", "shape": [-1, 3, support.SIDE, support.SIDE]},
            {"name": "images", "datatype": "BYTES", "shape": [-1]},
            {"name": "input_ids", "datatype": "INT64", "shape": [-1, support.CONTEXT]},
            {"name": "texts", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [
            {"name": "image_embeds", "datatype": "FP32", "shape": [-1, support.DIM]},
            {"name": "text_embeds", "datatype": "FP32", "shape": [-1, support.DIM]},
            {"name": "logits_per_image", "datatype": "FP32", "shape": [-1, -1]},
            {"name": "scores", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "class_names", "datatype": "BYTES", "shape": [3]},
        ],
        "parameters": {"bundle_digest": model.bundle.digest, "target": "cpu", "precision": "force_float32"},
    }
    assert call_app(app, "GET", f"{path}/ready").json() == {"name": "tiny", "ready": True}


def test_prepared_tensors_give_the_towers_outputs(app: Any) -> None:
    """Compared with the towers in NumPy, which the tiny model's graphs are written after."""
    pixels = np.random.default_rng(1).standard_normal((2, 3, support.SIDE, support.SIDE), np.float32)
    tokens = np.random.default_rng(2).integers(0, 200, (3, support.CONTEXT))
    content = {
        "inputs": [
            {"name": "pixel_values", "shape": list(pixels.shape), "datatype": "FP32", "data": pixels.ravel().tolist()},
            {"name": "input_ids", "shape": list(tokens.shape), "datatype": "INT64", "data": tokens.tolist()},
        ],
        "outputs": [{"name": "image_embeds"}, {"name": "text_embeds"}, {"name": "logits_per_image"}],
        "id": "a request",
    }
    answer = infer(app, content)
    assert answer.json()["id"] == "a request"
    found = outputs(answer)
    images, texts = support.embed_images(pixels), support.embed_tokens(tokens)
    np.testing.assert_allclose(array(found["image_embeds"]), images, atol=1e-6)
    np.testing.assert_allclose(array(found["text_embeds"]), texts, atol=1e-6)
    np.testing.assert_allclose(array(found["logits_per_image"]), images @ texts.T * support.LOGIT_SCALE, atol=1e-4)


def test_image_files_give_embeddings_and_the_scores_of_the_servers_classes(app: Any, model: clipmlu.Model) -> None:
    found = outputs(infer(app, {"inputs": [image_input(png(1), png(2))]}))
    assert list(found) == ["image_embeds", "scores", "class_names"]
    expected = model.classifier(LABELS, cache=False).predict([png(1), png(2)], top_k=3)
    assert found["class_names"]["data"] == LABELS
    for row, prediction in zip(array(found["scores"]), expected, strict=True):
        np.testing.assert_allclose(row[list(prediction.indices)], prediction.scores, atol=1e-6)
    pixels = np.stack([support.preprocess(support.picture(number)) for number in (1, 2)])
    np.testing.assert_allclose(array(found["image_embeds"]), support.embed_images(pixels), atol=1e-6)


def test_texts_and_images_together(app: Any, model: clipmlu.Model) -> None:
    found = outputs(infer(app, {"inputs": [text_input("a cat", "一只狗"), image_input(png(3))]}))
    texts = model.embed_texts(["a cat", "一只狗"])
    np.testing.assert_allclose(array(found["text_embeds"]), texts, atol=1e-6)
    logits = model.embed_images([png(3)]) @ texts.T * support.LOGIT_SCALE
    np.testing.assert_allclose(array(found["logits_per_image"]), logits, atol=1e-4)


def test_one_image_as_the_whole_body(app: Any, model: clipmlu.Model) -> None:
    """A raw binary request, and its answer read by hand."""
    headers = {"Inference-Header-Content-Length": "0"}
    answer = call_app(app, "POST", "/v2/models/tiny/versions/1/infer", content=png(1), headers=headers)
    length = int(answer.headers["Inference-Header-Content-Length"])
    described = {output["name"]: output for output in json.loads(answer.content[:length])["outputs"]}
    assert described["image_embeds"]["shape"] == [1, support.DIM]
    row = np.frombuffer(answer.content, "<f4", support.DIM, length)
    np.testing.assert_allclose(row, model.embed_images(png(1)), atol=1e-6)


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/v2/models/tinny", 404, "Unknown model 'tinny'"),
        ("/v2/models/tiny/versions/2", 404, "no version '2'"),
        ("/v2/models/tiny/versions/2/ready", 404, "no version '2'"),
    ],
)
def test_unknown_models_are_errors_of_the_protocol(app: Any, path: str, status: int, message: str) -> None:
    answer = call_app(app, "GET", path)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert message in answer.json()["error"]


BAD = {
    "both kinds of images": (
        [image_input(png(1)), {"name": "pixel_values", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": [0.5] * 192}],
        None,
        "'pixel_values', 'images' exclude each other",
    ),
    "a broken image": ([image_input(png(1), b"no image")], None, "not a supported image format"),
    "a token beyond the vocabulary": (
        [{"name": "input_ids", "shape": [1, support.CONTEXT], "datatype": "INT64", "data": [2**40] * support.CONTEXT}],
        None,
        "1099511627776; expected 0 to",
    ),
    "a long text": ([text_input("x" * 100_000)], None, "texts[0] has 100000 bytes; expected 65536 at most"),
    "an output that does not follow": (
        [text_input("x")],
        [{"name": "image_embeds"}],
        "Output 'image_embeds' does not follow from the inputs 'texts'",
    ),
}


@pytest.mark.parametrize(("inputs", "wanted", "message"), BAD.values(), ids=BAD)
def test_wrong_requests_are_errors_of_the_protocol(app: Any, inputs: Any, wanted: Any, message: str) -> None:
    answer = infer(app, {"inputs": inputs, **({} if wanted is None else {"outputs": wanted})})
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]
    assert message in answer.json()["error"]


def test_texts_are_utf8(app: Any) -> None:
    text = json.dumps({"inputs": [{**text_input("x"), "parameters": {"binary_data_size": 5}, "data": None}]})
    text = text.replace(', "data": null', "")
    headers = {"Inference-Header-Content-Length": str(len(text))}
    body = text.encode() + b"\x01\x00\x00\x00\xff"
    answer = call_app(app, "POST", "/v2/models/tiny/infer", content=body, headers=headers)
    assert (answer.status_code, list(answer.json())) == (400, ["error"])
    assert "texts[0] is no UTF-8" in answer.json()["error"]


def test_a_large_body_is_read_too(app: Any) -> None:
    """Larger than what the event loop reads itself."""
    pictures = [png(1) + bytes(400_000)] * 4  # bytes after the end of a PNG are ignored
    found = outputs(infer(app, {"inputs": [image_input(*pictures)], "outputs": [{"name": "image_embeds"}]}))
    assert found["image_embeds"]["shape"] == [4, support.DIM]


def test_nvidias_client_gets_what_the_model_gives(app: Any, model: clipmlu.Model) -> None:
    triton = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]", exc_type=ImportError)
    contents = np.array([png(1), png(2)], object)
    tokens = model.tokenizer(["a cat", "a dog"])
    with serving(app) as url, triton.InferenceServerClient(url.removeprefix("http://")) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("tiny")
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "classification"]
        assert client.get_model_metadata("tiny", "1")["platform"] == "onnxruntime_onnx"

        images = triton.InferInput("images", [2], "BYTES").set_data_from_numpy(contents)
        found = client.infer("tiny", [images], request_id="7")
        assert found.get_response()["id"] == "7"
        rows = model.embed_images(contents.tolist())
        np.testing.assert_allclose(found.as_numpy("image_embeds"), rows, atol=1e-6)
        assert [name.decode() for name in found.as_numpy("class_names")] == LABELS

        best = triton.InferRequestedOutput("scores", class_count=2)
        found = client.infer("tiny", [images], outputs=[best]).as_numpy("scores")
        expected = model.classifier(LABELS, cache=False).predict(contents.tolist(), top_k=2)
        assert [[text.decode().split(":")[1:] for text in row] for row in found] == [
            [[str(index), name] for index, name in zip(each.indices, each.class_names, strict=True)]
            for each in expected
        ]
        assert float(found[0][0].decode().split(":")[0]) == pytest.approx(expected[0].score, abs=1e-6)

        texts = triton.InferInput("input_ids", list(tokens.shape), "INT64")
        as_json = triton.InferRequestedOutput("text_embeds", binary_data=False)
        for binary in (True, False):
            texts.set_data_from_numpy(tokens, binary_data=binary)
            found = client.infer("tiny", [texts], model_version="1", outputs=[as_json]).as_numpy("text_embeds")
            np.testing.assert_allclose(found, model.embed_texts(["a cat", "a dog"]), atol=1e-6)

        with pytest.raises(triton.InferenceServerException, match=r"Unknown model 'tinny'.*Did you mean 'tiny'"):
            client.get_model_metadata("tinny")
