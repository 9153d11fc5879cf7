"""Load scenarios through HTTP, against a server that is written here."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import support
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.errors import OptionError, SessionError
from clipmlu.measure.speed.http import HttpClient, ServedGraph, inference_request, parse_server_url
from clipmlu.measure.speed.loads import SpeedOptions
from clipmlu.measure.speed.scenarios import Timer
from clipmlu.measure.speed.served import Server, measure_served
from clipmlu.steps import no_steps

FILES = [b"first", b"second one", b""]


class Clock(Timer):
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def sleep_until(self, moment: float) -> None:
        self.time = moment


class FakeServer(ThreadingHTTPServer):
    """Answers from a list, and the last answer for ever; keeps what was sent and how many requests ran together.

    Attributes:
        answers: status, headers and body of each answer.
        asked: path, headers and body of each request.
        most: largest number of requests at a time.
    """

    daemon_threads = True

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str], bytes]] = [(200, {}, b"rows")]
        self.metadata: Any = {}
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.running = self.most = 0
        self.lock = threading.Lock()
        self.together: threading.Barrier | None = None
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def do_GET(self) -> None:
        self._answer(200, {}, json.dumps(self.server.metadata).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.asked.append((self.path, dict(self.headers), body))
            answers = self.server.answers
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            self.server.running += 1
            self.server.most = max(self.server.most, self.server.running)
        if self.server.together is not None:
            self.server.together.wait(20)
        with self.server.lock:
            self.server.running -= 1
        self._answer(*answer)

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def client(server: FakeServer) -> Iterator[HttpClient]:
    with HttpClient(parse_server_url(server.url), {"X-Key": "k"}, Clock()) as opened:
        yield opened


def test_a_query_is_one_request_with_its_files_as_binary_tensor_data(server: FakeServer, client: HttpClient) -> None:
    assert ServedGraph(client, "my model", FILES).submit(4, 3).result() == b"rows"
    ((path, headers, body),) = server.asked
    assert path == "/v2/models/my%20model/infer"
    assert headers["X-Key"] == "k"
    length = int(headers["Inference-Header-Content-Length"])
    assert json.loads(body[:length]) == {
        "inputs": [{"name": "images", "shape": [3], "datatype": "BYTES", "parameters": {"binary_data_size": 27}}],
        "outputs": [{"name": "image_embeds", "parameters": {"binary_data": True}}],
    }
    assert body[length:] == b"\x0a\0\0\0second one" + b"\0\0\0\0" + b"\x05\0\0\0first", "from number 4 on, cyclically"


def test_a_busy_server_is_asked_again_when_it_says(server: FakeServer, client: HttpClient) -> None:
    server.answers = [(429, {"Retry-After": "2"}, b""), (503, {}, b""), (200, {}, b"rows")]
    assert ServedGraph(client, "m", FILES).submit(0, 1).result() == b"rows"
    assert len(server.asked) == 3
    assert client._timer.now() == pytest.approx(2.1)


def test_a_server_that_stays_busy_is_given_up(server: FakeServer, client: HttpClient) -> None:
    server.answers = [(429, {"Retry-After": "4"}, b'{"error": "The queue is full."}')]
    with pytest.raises(SessionError, match=r"answers /v2/models/m/infer with status 429: The queue is full\."):
        ServedGraph(client, "m", FILES).submit(0, 1).result()
    assert client._timer.now() == 28


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"code": "x", "message": "No such image."}}', "status 400: No such image"),
        (b'{"error": "No such image."}', "status 400: No such image"),
        (b"<html>", "status 400: <html>"),
        (b"[1]", r"status 400: \[1\]"),
        (b"", "status 400: an empty answer"),
    ],
)
def test_an_error_is_shown_with_the_servers_message(
    server: FakeServer, client: HttpClient, body: bytes, message: str
) -> None:
    server.answers = [(400, {}, body)]
    with pytest.raises(SessionError, match=message):
        ServedGraph(client, "m", FILES).submit(0, 1).result()


def test_no_server_is_an_error_that_says_so(server: FakeServer) -> None:
    with FakeServer() as closed:
        url = closed.url
    with (
        HttpClient(parse_server_url(url)) as client,
        pytest.raises(SessionError, match=r"does not answer /v2.*Start one"),
    ):
        client.get("/v2")


def test_a_connection_that_the_server_closed_is_opened_again(server: FakeServer, client: HttpClient) -> None:
    server.answers = [(200, {"Connection": "close"}, b"rows")]
    graph = ServedGraph(client, "m", FILES)
    assert [graph.submit(0, 1).result() for _ in range(2)] == [b"rows"] * 2


def test_a_kept_connection_that_the_server_closed_while_it_was_idle_is_opened_again(
    server: FakeServer, client: HttpClient
) -> None:
    graph = ServedGraph(client, "m", FILES)
    graph.submit(0, 1).result()
    client._all[0].sock.shutdown(socket.SHUT_RDWR)
    assert graph.submit(0, 1).result() == b"rows"
    assert len(client._all) == 1


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:80", "ftp://host", "http://", "http://host:99999", "http://a:b@host", "http://host/?x=1"]
)
def test_what_is_no_url_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(OptionError, match="expected the URL of a server"):
        parse_server_url(url)


def test_a_url_may_have_a_path_and_no_port() -> None:
    assert parse_server_url("https://host/prefix/")[1:] == ("host", 443, "/prefix", True)
    assert parse_server_url("http://[::1]:80")[1:] == ("::1", 80, "", False)


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Path, ...]:
    paths = tuple(tmp_path / f"{number}.png" for number in range(3))
    for number, path in enumerate(paths):
        support.picture(number).save(path)
    return paths


def _options(photos: tuple[Path, ...], **changes: Any) -> SpeedOptions:
    given = {"images": photos, "warmup_ms": 0, "duration_ms": 0, "iterations": 24, **changes}
    return SpeedOptions(**given)


def test_every_scenario_through_http(server: FakeServer, compiled: CompiledBundle, photos: tuple[Path, ...]) -> None:
    server.metadata = {"parameters": {"bundle_digest": compiled.digest}}
    scenarios = ("single-stream", "multi-stream", "server", "offline")
    options = _options(photos, scenarios=scenarios, queries_per_stream=5, latency_bound_ms=1e-6, iterations=3)
    report = measure_served(compiled, Server(server.url, "tiny", {}), options)
    assert report.transport == "http"
    assert report.provenance.bundle_digest == compiled.digest
    results = {result.scenario: result for result in report.towers[0].scenarios}
    assert tuple(results) == scenarios
    assert [results[name].samples_per_query for name in scenarios] == [1, 5, 1, 1]
    assert [results[name].padding_per_query for name in scenarios] == [0] * 4
    assert results["single-stream"].queries >= 3
    assert results["server"].value is None, "no request is answered in a nanosecond"
    bodies = {inference_request([path.read_bytes()])[0] for path in photos}
    assert {body for _path, _headers, body in server.asked if b'"shape": [1]' in body} == bodies


def test_offline_sends_three_batches_of_requests_at_a_time(
    server: FakeServer, compiled: CompiledBundle, photos: tuple[Path, ...]
) -> None:
    server.metadata = {"parameters": {"bundle_digest": compiled.digest}}
    together = 3 * compiled.compilation.batch_size

    @contextlib.contextmanager
    def meet(text: str, **_facts: Any) -> Iterator[Any]:
        if text == "measuring":
            server.together = threading.Barrier(together)  # requests that do not run together break it
        yield no_steps(text)

    options = _options(photos, scenarios=("offline",), iterations=together)
    report = measure_served(compiled, Server(server.url, "tiny", {}), options, on_step=meet)
    assert server.most == together == report.in_flight


def test_another_bundle_is_not_measured(server: FakeServer, compiled: CompiledBundle, photos: tuple[Path, ...]) -> None:
    server.metadata = {"parameters": {"bundle_digest": "f" * 64}}
    with pytest.raises(SessionError, match=f"has the digest ffffffffffff; expected bundle '{compiled.path}'"):
        measure_served(compiled, Server(server.url, "tiny", {}), _options(photos))
    server.metadata = []
    with pytest.raises(SessionError, match="does not say which bundle"):
        measure_served(compiled, Server(server.url, "tiny", {}), _options(photos))
    assert server.asked == []


@pytest.mark.parametrize(("name", "value"), [("tower", "text"), ("batch_size", 2), ("threads", 1), ("workers", 3)])
def test_options_of_the_server_are_refused(
    compiled: CompiledBundle, photos: tuple[Path, ...], name: str, value: Any
) -> None:
    with pytest.raises(OptionError, match=name.replace("_", " ")):
        measure_served(compiled, Server("http://127.0.0.1:1", "tiny", {}), _options(photos, **{name: value}))
