"""The OpenAPI document: real requests and answers fit to it, by an independent reader of JSON schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import clipmlu
from http_client import base64_images, call_app, png
from pages import DOCS, blocks

METHODS = ("get", "post")


@pytest.fixture(scope="module")
def app(place: Path, compiled_once: Path) -> Iterator[Any]:
    app = clipmlu.create_app({"tiny": compiled_once}, labels=["cat", "dog"], index=place / "job")
    yield app
    app.state.service.close()


@pytest.fixture(scope="module")
def document(app: Any) -> Any:
    return call_app(app, "GET", "/openapi.json").json()


def operations(document: Any) -> list[tuple[str, str, Any]]:
    return [(path, method, facts) for path, methods in document["paths"].items() for method, facts in methods.items()]


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from ([value["$ref"]] if "$ref" in value else [])
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from references(each)


def test_every_route_says_what_it_takes_and_answers(document: Any) -> None:
    assert document["openapi"].startswith("3.1")
    found = operations(document)
    assert {path for path, _, _ in found} >= {
        "/v1/classify",
        "/v1/embed",
        "/v1/search",
        "/v2/models/{name}/infer",
        "/ready",
    }
    for path, method, facts in found:
        assert method in METHODS
        assert facts["responses"].keys() == {"200", "default"}, path
        for each in facts["responses"].values():
            assert all(content["schema"] for content in each["content"].values()), path
        assert ("requestBody" in facts) == (method == "post"), path
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references(document)) == known


def test_a_form_has_the_options_of_the_json(document: Any) -> None:
    for path, kind in (("/v1/classify", "ClassifyBody"), ("/v1/embed", "EmbedBody"), ("/v1/search", "SearchBody")):
        facts = document["paths"][path]["post"]
        content = facts["requestBody"]["content"]
        form = content["multipart/form-data"]["schema"]["properties"]
        options = document["components"]["schemas"][kind]["properties"].keys() - {"image", "images"}
        assert form.keys() - {"image"} == options
        assert {each["name"] for each in facts["parameters"]} == options
        assert content["image/*"]["schema"] == {"type": "string", "format": "binary"}


IMAGE = base64_images(png(1))
TENSOR = {"name": "texts", "shape": [1], "datatype": "BYTES", "data": ["a dog"]}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/classify", {"images": [*IMAGE, {"data": "AAAA", "id": "broken"}], "top_k": 1}),
        ("POST", "/v1/classify", {"images": IMAGE, "labels": {"cat": ["a cat"], "dog": "a dog"}, "reject_below": 1}),
        ("POST", "/v1/classify", {"images": IMAGE, "model": "none"}),
        ("POST", "/v1/embed", {"images": [*IMAGE, "AAAA"], "texts": ["a dog"]}),
        (
            "POST",
            "/v1/search",
            {"text": "a dog", "image": {"data": IMAGE[0]}, "weights": [1, -0.5], "include": "*.png"},
        ),
        ("POST", "/v2/models/tiny/infer", {"inputs": [TENSOR], "outputs": [{"name": "text_embeds"}]}),
        ("POST", "/v2/models/tiny/infer", {"inputs": []}),
        ("GET", "/v1/models", None),
        ("GET", "/v1/thumbnail/a", None),
        ("GET", "/health", None),
        ("GET", "/ready", None),
        ("GET", "/v2", None),
        ("GET", "/v2/health/live", None),
        ("GET", "/v2/health/ready", None),
        ("GET", "/v2/models/tiny", None),
        ("GET", "/v2/models/other", None),
        ("GET", "/v2/models/tiny/ready", None),
    ],
)
def test_requests_and_answers_fit(app: Any, document: Any, method: str, path: str, body: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="an independent reader of JSON schemas")
    route = (
        path.replace("/tiny", "/{name}")
        .replace("/other", "/{name}")
        .replace("/a", "/{row}" if "thumb" in path else "/a")
    )
    facts = document["paths"][route][method.lower()]

    def check(value: Any, content: Any) -> None:
        jsonschema.validate(value, {**content["application/json"]["schema"], "components": document["components"]})

    request = {} if body is None else {"json": body}
    answer = call_app(app, method, path, **request)
    if body is not None:
        check(body, facts["requestBody"]["content"])
    kind = str(answer.status_code) if answer.status_code == 200 else "default"
    check(answer.json(), facts["responses"][kind]["content"])
    wrong = {**answer.json(), "more": 1}
    with pytest.raises(jsonschema.ValidationError):
        check(wrong, facts["responses"][kind]["content"])


def test_the_json_of_the_page_on_serving_fits(document: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="an independent reader of JSON schemas")
    texts = [block.text for block in blocks(DOCS / "serving.md") if block.language == "json"]
    request, *answers = (json.loads(text.replace(", ...]", "]")) for text in texts)
    classify, embed, search = (document["paths"][f"/v1/{name}"]["post"] for name in ("classify", "embed", "search"))
    jsonschema.validate(
        request,
        {**classify["requestBody"]["content"]["application/json"]["schema"], "components": document["components"]},
    )
    kinds = ((classify, "200"), (embed, "200"), (search, "200"), (classify, "default"))
    for answer, (facts, kind) in zip(answers, kinds, strict=True):
        schema = facts["responses"][kind]["content"]["application/json"]["schema"]
        jsonschema.validate(answer, {**schema, "components": document["components"]})


def test_a_wrong_parameter_is_named(app: Any) -> None:
    answer = call_app(app, "GET", "/v1/thumbnail/abc")
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert message.startswith("The path parameter 'row' is 'abc': input should be a valid integer")
    assert message.endswith("The query parameter 'id' is missing.")
