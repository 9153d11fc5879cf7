"""Images of requests that are URLs: a client reaches no address of the server's own network, and learns of none."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import clipmlu
from http_client import call_app, png
from image_server import ImageServer, content, redirect, serving
from name_servers import Resolver, record_connections

SECRET = png(5)
INSIDE = {"inside.test": "10.1.2.3", "loop.test": "127.0.0.1", "link.test": "169.254.169.254", "six.test": "fd00::1"}


@pytest.fixture(scope="module")
def app(compiled_once: Path) -> Iterator[Any]:
    app = clipmlu.create_app({"tiny": compiled_once}, labels=["cat", "dog"], allow_urls=True, url_timeout=5)
    yield app
    app.state.service.close()


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with serving() as server:
        server.answers["/a.png"] = content(SECRET)
        yield server


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Names of the tests, with the addresses of each question in turn."""
    resolver = Resolver(monkeypatch)
    resolver.answers |= {name: [ip] for name, ip in INSIDE.items()}
    resolver.answers |= {"rebinding.test": ["8.8.8.8", "127.0.0.1"], "images.test": ["8.8.8.8"]}
    return resolver.answers


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Addresses to which sockets connect; 8.8.8.8 stands for the server on loopback."""
    return record_connections(monkeypatch)


def ask(app: Any, url: str) -> tuple[int, str]:
    answer = call_app(app, "POST", "/v1/classify", json={"images": [{"url": url, "id": "picture"}]})
    return answer.status_code, answer.text


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.0.0.1.", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "0.0.0.0", "0", "localhost",
        "localhost.", "LOCALHOST", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[0:0:0:0:0:ffff:7f00:1]", "[::7f00:1]",
        "[64:ff9b::7f00:1]", *INSIDE,
    ],
)  # fmt: skip
@pytest.mark.usefixtures("resolver")
def test_no_spelling_of_a_private_address_is_reached(
    app: Any, server: ImageServer, connected: list[Any], host: str
) -> None:
    assert ask(app, server.url("/a.png", host))[0] == 400
    assert connected == []
    server.answers["/r"] = redirect(server.url("/a.png", host))
    status, text = ask(app, f"http://images.test:{server.port}/r")
    assert status == 400
    assert connected == [("8.8.8.8", server.port)]
    assert server.asked["/a.png"] == 0
    assert "has no public address" in text
    assert not any(known in text for known in INSIDE.values())


@pytest.mark.usefixtures("resolver")
def test_a_private_host_and_its_address_are_not_told(app: Any, server: ImageServer) -> None:
    status, text = ask(app, server.url("/a.png", "inside.test"))
    assert status == 400
    assert "Cannot read image 'picture': its host, or that of a redirect, has no public address" in text
    assert "10.1.2.3" not in text


def test_a_name_is_resolved_once(app: Any, server: ImageServer, resolver: Any, connected: list[Any]) -> None:
    assert ask(app, server.url("/a.png", "rebinding.test"))[0] == 200
    assert connected == [("8.8.8.8", server.port)]
    assert resolver["rebinding.test"] == ["127.0.0.1"]
    assert ask(app, server.url("/a.png", "rebinding.test"))[0] == 400


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://images.test/a", "gopher://images.test/a", "data:image/png;base64,AAAA", "//images.test/a",
        "http:images.test", "http://", "http://user@images.test/a", "http://images.test@127.0.0.1/a", "http://[::1", "http://a b/",
        "http://images.test:99999/a", "\n http://127.0.0.1/", "http://127.0.0.1\\@images.test/", "http://images.test#@127.0.0.1/",
    ],
)  # fmt: skip
@pytest.mark.usefixtures("resolver", "connected")
def test_other_schemes_and_malformed_urls_are_refused(app: Any, url: str) -> None:
    status, text = ask(app, url)
    assert status == 400
    assert "Cannot read image" in text


@pytest.mark.usefixtures("resolver", "connected")
def test_content_is_what_it_is_and_not_what_its_server_says(app: Any, server: ImageServer) -> None:
    url = f"http://images.test:{server.port}"
    server.answers["/html"] = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n" + SECRET
    server.answers["/png"] = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nConnection: close\r\n\r\nroot:x:0:0"
    assert ask(app, f"{url}/html")[0] == 200
    status, text = ask(app, f"{url}/png")
    assert status == 400
    assert "root:x" not in text


@pytest.mark.usefixtures("resolver", "connected")
def test_a_client_that_waits_no_longer_ends_a_slow_download(app: Any, server: ImageServer) -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(100):
            connection.sendall(b"x")
            time.sleep(0.02)

    server.answers["/slow"] = drip
    body = {"images": [{"url": f"http://images.test:{server.port}/slow"}]}
    start = time.monotonic()
    answer = call_app(app, "POST", "/v1/classify", json=body, headers={"X-Timeout-Ms": "200"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert time.monotonic() - start < 1.5
