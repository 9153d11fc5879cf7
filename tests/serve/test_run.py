"""A real server on a socket: slow clients, and stopping."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from clipmlu.serve import loading
from clipmlu.serve.http.options import HttpOptions
from clipmlu.serve.loading import answering_while_loading
from clipmlu.serve.options import ServeOptions
from clipmlu.serve.run import bind, make_server
from clipmlu.serve.service import open_service
from http_client import png


@pytest.fixture(scope="module")
def url(compiled_once: Path) -> Iterator[str]:
    options = HttpOptions(port=0, max_connections=4)
    listening, urls = threading.Event(), []

    def on_listen(url: str) -> None:
        urls.append(url)
        listening.set()

    with bind(options) as bound:
        service = open_service({"tiny": compiled_once}, ServeOptions(labels=["cat", "dog"], timeout_s=5.0))
        server = make_server(service, options, on_listen=on_listen)
        server.config.http.header_seconds = 0.2
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        assert listening.wait(30)
        yield urls[0]
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()
    assert service.stopping


def connect(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def test_a_client_without_complete_headers_is_disconnected(url: str) -> None:
    with connect(url) as slow, connect(url) as silent:
        slow.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        assert slow.recv(100) == b""
        assert silent.recv(100) == b""


def test_one_connection_answers_many_requests(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        for number in range(3):
            answer = client.post("/v1/classify", content=png(number), headers={"Content-Type": "image/png"})
            assert answer.status_code == 200


def test_a_body_that_does_not_arrive_ends_by_its_deadline(url: str) -> None:
    with connect(url) as slow:
        slow.sendall(
            b"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: 1000\r\nX-Timeout-Ms: 100\r\n\r\nx"
        )
        answer = slow.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in answer.lower()


def test_too_many_connections_are_told(url: str) -> None:
    held = [connect(url) for _ in range(6)]
    try:
        assert any(each.recv(100).startswith(b"HTTP/1.1 503") for each in held)
    finally:
        for each in held:
            each.close()


def test_while_it_loads_the_server_lives_and_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading._Answer, "timeout", 60.0)  # no silent connection ends by itself
    with bind(HttpOptions(port=0)) as bound:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with answering_while_loading(bound):
            health, live = httpx.get(f"{url}/health"), httpx.get(f"{url}/v2/health/live?x=1")
            assert (health.status_code, health.json()) == (200, {"status": "ok"})
            assert (live.status_code, live.json()) == (200, {"live": True})
            ready = httpx.get(f"{url}/ready")
            assert (ready.status_code, ready.headers["retry-after"]) == (503, "1")
            assert ready.json()["error"]["code"] == "not_ready"
            assert "server" not in ready.headers
            posted = httpx.post(f"{url}/v1/classify", content=bytes(8_000_000), headers={"Content-Type": "image/png"})
            assert posted.status_code == 503
            for method in ("PUT", "PATCH", "DELETE", "OPTIONS"):
                assert httpx.request(method, f"{url}/v1/models").status_code == 503
            with connect(url) as other:
                other.sendall(b"no HTTP at all\r\n\r\n")
                assert b"Python" not in other.makefile("rb").read()
            assert isinstance(httpx.get(f"{url}/v2/health/ready").json()["error"], str)
            assert httpx.head(f"{url}/ready").status_code == 503
            silent = [connect(url) for _ in range(70)]  # more than are held
            assert any(each.recv(100) == b"" for each in silent[64:])
            for each in silent:
                each.close()
        with connect(url) as early:  # waits for the server
            early.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            heads = []
            while not heads or not heads[-1]:  # those that were closed meanwhile come first
                accepted, _ = bound.accept()
                with accepted:
                    heads.append(accepted.recv(100))
            assert heads[-1].startswith(b"GET /health")
