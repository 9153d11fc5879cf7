"""The edge of the server: who may ask, limits of bodies, deadlines, clients that leave, and the log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import clipmlu
from clipmlu.cli import main
from clipmlu.errors import OptionError
from clipmlu.serve.http.options import HttpOptions
from http_client import base64_images, call_app, png

KEY = "0123456789abcdef0123"
PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    return []


@pytest.fixture(scope="module")
def app(compiled_once: Path, lines: list[dict[str, Any]]) -> Iterator[Any]:
    app = clipmlu.create_app(
        {"tiny": compiled_once},
        labels=["cat", "dog"],
        api_key=KEY,
        allow_origins=["https://example.org"],
        max_body=10_000,
        max_images=2,
        write_log=lambda line: lines.append(json.loads(line)),
    )
    yield app
    app.state.service.close()


@pytest.fixture(scope="module")
def large(compiled_once: Path) -> Iterator[Any]:
    """An application without small limits."""
    app = clipmlu.create_app({"tiny": compiled_once})
    yield app
    app.state.service.close()


def ask(app: Any, path: str = "/v1/classify", method: str = "POST", **request: Any) -> httpx.Response:
    headers = {"X-API-Key": KEY, **PNG, **request.pop("headers", {})}
    content = request.pop("content", png(1)) if method == "POST" and not {"json", "files"} & request.keys() else None
    if {"json", "files"} & request.keys():
        headers.pop("Content-Type")
    return call_app(app, method, path, headers=headers, content=content, **request)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_the_key_is_needed_but_for_probes_and_the_page(app: Any) -> None:
    assert ask(app).status_code == 200
    assert ask(app, headers={"X-API-Key": "", "Authorization": f"Bearer {KEY}"}).status_code == 200
    for wrong in ("", "0123456789abcdef0124", KEY[:-1]):
        assert code(ask(app, headers={"X-API-Key": wrong})) == (401, "unauthorized")
    assert call_app(app, "GET", "/metrics").status_code == 401
    for path in ("/health", "/ready", "/", "/docs", "/openapi.json", "/v2/health/live"):
        assert call_app(app, "GET", path).status_code == 200, path


def test_other_hosts_and_origins_are_refused(app: Any) -> None:
    assert code(ask(app, headers={"Host": "evil.example"})) == (403, "forbidden_host")
    assert code(ask(app, headers={"Host": "127.0.0.1.evil.example"})) == (403, "forbidden_host")
    assert code(ask(app, headers={"Origin": "https://evil.example"})) == (403, "forbidden_origin")
    assert ask(app, headers={"Host": "[::1]:8000"}).status_code == 200
    assert "access-control-allow-origin" not in ask(app).headers
    allowed = ask(app, headers={"Origin": "https://example.org"})
    assert allowed.headers["access-control-allow-origin"] == "https://example.org"


def test_bodies_are_limited_while_they_are_read(app: Any) -> None:
    assert code(ask(app, content=b"x" * 10_001)) == (413, "too_large")

    async def chunks() -> Any:
        for _ in range(11):
            yield b"x" * 1000

    assert code(ask(app, content=chunks())) == (413, "too_large")
    files = [("image", (f"{n}.png", png(n), "image/png")) for n in range(3)]
    assert code(ask(app, files=files)) == (413, "too_large")
    assert app._body_bytes == 0


def test_forms_queries_and_json_give_the_same(app: Any) -> None:
    form = ask(app, files={"image": ("1.png", png(1), "image/png")}, data={"labels": "ant,bee", "top_k": "1"})
    query = ask(app, "/v1/classify?labels=ant&labels=bee&top_k=1")
    given = ask(app, json={"images": base64_images(png(1)), "labels": ["ant", "bee"], "top_k": 1})
    answers = [each.json()["results"][0] for each in (form, query, given)]
    assert answers[0]["source"] == "1.png"
    assert answers[0]["predictions"] == answers[1]["predictions"] == answers[2]["predictions"]


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"content": b"no image"}, (400, "bad_image")),
        ({"json": {"images": ["%%%"]}}, (400, "bad_request")),
        ({"json": {"images": [], "label": ["a"]}}, (400, "bad_request")),
        ({"json": {"images": [{"url": "http://127.0.0.1/x.png"}]}}, (403, "urls_not_allowed")),
        ({"json": {"images": base64_images(b"x"), "model": "other"}}, (404, "unknown_model")),
        ({"headers": {"Content-Type": "text/plain"}}, (415, "unsupported_media_type")),
        ({"headers": {"X-Timeout-Ms": "soon"}}, (400, "bad_request")),
        ({"path": "/v1/nothing"}, (404, "not_found")),
        ({"path": "/health"}, (405, "method_not_allowed")),
    ],
)
def test_mistakes_have_a_code(app: Any, request_: dict[str, Any], expected: tuple[int, str]) -> None:
    assert code(ask(app, **request_)) == expected


def form(*parts: bytes, end: bytes = b"\r\n--X--\r\n") -> bytes:
    return b"\r\n".join(b"--X\r\nContent-Disposition: form-data; " + part for part in parts) + end


@pytest.mark.parametrize("end", [b"", b"\r\n", b"\r\n--X", b"\r\n--X-"])
def test_a_form_that_is_cut_is_refused_as_its_last_part_would_be_missing(app: Any, end: bytes) -> None:
    parts = (b'name="image"; filename="1.png"\r\n\r\n' + png(1), b'name="labels"\r\n\r\nant,bee')
    headers = {"Content-Type": "multipart/form-data; boundary=X"}
    assert ask(app, content=form(*parts), headers=headers).json()["results"][0]["source"] == "1.png"
    assert code(ask(app, content=form(*parts, end=end), headers=headers)) == (400, "bad_request")


def test_a_form_of_a_charset_that_cannot_be_decoded_is_refused(app: Any) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=X; charset=undefined"}
    assert code(ask(app, content=form(b'name="labels"\r\n\r\nant'), headers=headers)) == (400, "bad_request")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embed", {"texts": ["a" * 65_537]}),
        ("/v1/classify", {"images": [""], "labels": ["a" * 65_537]}),
        ("/v1/classify", {"images": [""], "labels": {"ant": ["a", "b" * 65_537]}}),
        ("/v1/classify", {"images": [""], "labels": ["a" * 600], "templates": "{}" * 200}),
        ("/v1/classify", {"images": [""], "labels": ["a"], "background": ["b" * 65_537]}),
        ("/v1/embed", {"texts": ["a" * 60_000] * 18}),
    ],
)
def test_the_length_of_texts_is_limited(large: Any, path: str, body: dict[str, Any]) -> None:
    assert code(call_app(large, "POST", path, json=body)) == (413, "too_large")


def test_json_of_very_many_values_is_refused_before_it_is_built(large: Any) -> None:
    content = b'{"images":[' + b"{}," * (1 << 18) + b"{}]}"
    answer = call_app(large, "POST", "/v1/classify", content=content, headers={"Content-Type": "application/json"})
    assert code(answer) == (413, "too_large")


def test_deep_json_in_a_form_is_refused(app: Any) -> None:
    assert code(ask(app, "/v1/classify?labels=" + "[" * 5000)) == (400, "bad_request")


def test_ids_are_kept_if_they_are_harmless(app: Any) -> None:
    assert ask(app, headers={"X-Request-Id": "a-1.b_2"}).headers["x-request-id"] == "a-1.b_2"
    made = ask(app, headers={"X-Request-Id": "a b\tc"}).headers["x-request-id"]
    assert len(made) == 16


def test_the_metrics_count_routes_and_batches(app: Any) -> None:
    ask(app)
    text = ask(app, "/metrics", "GET").text
    assert 'clipmlu_requests_total{code="200",route="/v1/classify"}' in text
    assert 'clipmlu_rows_total{device="0",emulated="false",kind="images",model="tiny"}' in text
    assert 'route="other"' in text or "nothing" not in text


def test_a_client_that_leaves_ends_its_request(app: Any, lines: list[dict[str, Any]]) -> None:
    model = app.state.service.model(None)

    async def leave() -> None:
        messages = iter([{"type": "http.request", "body": png(1)}, {"type": "http.disconnect"}])
        scope = {
            "type": "http", "method": "POST", "path": "/v1/classify", "raw_path": b"/v1/classify", "query_string": b"",
            "headers": [(b"host", b"127.0.0.1"), (b"x-api-key", KEY.encode()), (b"x-request-id", b"left"), (b"content-type", b"image/png")],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000), "scheme": "http", "http_version": "1.1", "root_path": "",
        }  # fmt: skip
        sent: list[Any] = []

        async def receive() -> Any:
            return next(messages)

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope, receive, send)
        assert sent == []

    with model.images._changed:  # no batch begins before the client has left
        asyncio.run(leave())
    assert ask(app).status_code == 200
    assert model.admission.images.waiting == 0


def test_requests_that_outlast_the_stop_are_told(large: Any) -> None:
    sent: list[Any] = []

    async def stop() -> None:
        scope = {
            "type": "http", "method": "POST", "path": "/v1/classify", "raw_path": b"/v1/classify", "query_string": b"",
            "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"image/png")],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000), "scheme": "http", "http_version": "1.1", "root_path": "",
        }  # fmt: skip

        async def send(message: Any) -> None:
            sent.append(message)

        waits = asyncio.Event()

        async def receive() -> Any:
            waits.set()
            await asyncio.Event().wait()

        request = asyncio.create_task(large(scope, receive, send))
        await waits.wait()
        large.state.service.stopping = True
        request.cancel()
        await request

    try:
        asyncio.run(stop())
    finally:
        large.state.service.stopping = False
    assert sent[0]["status"] == 503
    assert json.loads(sent[1]["body"])["error"]["code"] == "stopping"


@pytest.mark.parametrize(
    "host", ["localhost:80@example.org", "[::1].example.org", "127.0.0.1/x", "[::1", "localhost:a"]
)
def test_a_host_that_only_begins_like_the_loopback_is_refused(app: Any, host: str) -> None:
    assert code(ask(app, headers={"Host": host})) == (403, "forbidden_host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.:8000", "127.0.0.1:1", "[::1]", "[::1]:8000"])
def test_names_of_the_loopback_are_taken(app: Any, host: str) -> None:
    assert ask(app, headers={"Host": host}).status_code == 200


def test_labels_of_requests_are_not_logged(large: Any, caplog: pytest.LogCaptureFixture) -> None:
    for labels in (["secret"], ["secret", "secret"], ["\u79d8\u5bc6", "secret"]):
        answer = call_app(large, "POST", "/v1/classify", json={"images": base64_images(png(1)), "labels": labels})
        assert answer.status_code == 200
    assert caplog.text == ""


def test_a_server_for_other_machines_needs_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLIPMLU_API_KEY", raising=False)
    with pytest.raises(OptionError, match=r"host is '0\.0\.0\.0'.*no API key; give --api-key-file"):
        HttpOptions(host="0.0.0.0").rules()
    assert HttpOptions(host="::1").rules().api_key is None
    file = tmp_path / "key.txt"
    file.write_text("short\n")
    with pytest.raises(OptionError, match="16 or more printable"):
        HttpOptions(host="0.0.0.0", api_key_file=file).rules()
    file.write_text(f"{KEY}\n")
    rules = HttpOptions(host="0.0.0.0", api_key_file=file).rules()
    assert rules.api_key == KEY
    assert KEY not in repr(rules)
    with pytest.raises(OptionError, match=r"allow origin is 'example\.org'"):
        HttpOptions(allow_origin=["example.org"])


def test_a_taken_port_is_told_before_a_model_is_loaded(compiled_once: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(compiled_once), "--port", str(port)]) == 2
    assert f"port {port} cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("bundles", "message"),
    [
        (["a/demo", "b/demo"], "bundle 'b/demo': the name 'demo' is that of another bundle"),
        (["x=a", "x=b"], "bundle 'x=b': the name 'x' is that of another bundle"),
        (["=a"], "bundle '=a': the name is empty"),
    ],
)
def test_two_bundles_of_one_name_are_refused(
    bundles: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *bundles, "--port", "0"]) == 2
    assert message in capsys.readouterr().err
