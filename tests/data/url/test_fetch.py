"""Fetching from servers that behave, and from servers that lie, drip, cut, loop and redirect to where nobody should go."""

from __future__ import annotations

import gzip
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from clipmlu.data.url.connection import tls_context
from clipmlu.data.url.fetch import fetch_image
from clipmlu.data.url.found import FoundUrl
from clipmlu.data.url.options import UrlOptions
from clipmlu.errors import InputError, OptionError
from image_server import ImageServer, content, redirect, serving
from name_servers import Resolver, record_connections

BODY = bytes(range(256)) * 40
LOCAL = UrlOptions(allow_private=True, timeout_s=20)
HOST_HEADERS = ("Host", "Accept-Encoding", "User-Agent", "Authorization", "Cookie")


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with serving() as started:
        yield started


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The parts of all pauses that were asked for; none is made."""
    asked: list[float] = []
    monkeypatch.setattr(time, "sleep", asked.append)
    return asked


def fails(url: str, reason: str, options: UrlOptions = LOCAL) -> str:
    with pytest.raises(InputError) as caught:
        fetch_image(url, options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"Cannot read image '{url}': ")
    assert reason in message
    return message


def test_content_arrives_unchanged(server: ImageServer) -> None:
    server.answers["/a%20b.jpg?id=1"] = content(BODY)
    assert fetch_image(server.url("/a b.jpg?id=1#top"), LOCAL) == BODY
    head = dict(line.split(": ", 1) for line in server.heads[0].splitlines()[1:] if line)
    assert {name: head.get(name) for name in HOST_HEADERS} == {
        "Host": f"127.0.0.1:{server.port}",
        "Accept-Encoding": "identity",
        "User-Agent": head["User-Agent"],
        "Authorization": None,
        "Cookie": None,
    }
    assert head["User-Agent"].startswith("clipmlu/")


def test_content_without_length_and_in_chunks(server: ImageServer) -> None:
    server.answers["/open"] = b"HTTP/1.0 200 OK\r\n\r\n" + BODY
    server.answers["/chunks"] = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (BODY[:1], BODY[1:9000], BODY[9000:]))
        + b"0\r\n\r\n"
    )
    assert fetch_image(server.url("/open"), LOCAL) == BODY
    assert fetch_image(server.url("/chunks"), LOCAL) == BODY


def test_gzip_that_was_not_asked_for_is_undone_within_the_limit(server: ImageServer) -> None:
    server.answers["/a"] = content(gzip.compress(BODY), Content_Encoding="gzip")
    server.answers["/bomb"] = content(gzip.compress(bytes(50 << 20)), Content_Encoding="gzip")
    server.answers["/wrong"] = content(BODY, Content_Encoding="gzip")
    server.answers["/br"] = content(BODY, Content_Encoding="br")
    server.answers["/odd"] = content(BODY, Content_Encoding="a\r\n b\x1b[31m")
    assert fetch_image(server.url("/a"), LOCAL) == BODY
    small = UrlOptions(allow_private=True, max_bytes=1 << 20)
    fails(server.url("/bomb"), "it has more than 1,048,576 bytes", small)
    fails(server.url("/wrong"), "the result is damaged")
    fails(server.url("/br"), "compressed it with 'br'")
    fails(server.url("/odd"), "compressed it with 'a\\x0d\\x0a b\\x1b[31m'")


def test_decompression_holds_little_more_than_the_limit_in_memory(server: ImageServer) -> None:
    server.answers["/bomb"] = content(gzip.compress(bytes(60 << 20)), Content_Encoding="gzip")
    tracemalloc.start()
    try:
        fails(server.url("/bomb"), "it has more than", UrlOptions(allow_private=True, max_bytes=1 << 20))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_size_limit_holds_for_announced_and_for_sent_bytes(server: ImageServer) -> None:
    limit = UrlOptions(allow_private=True, max_bytes=len(BODY))
    server.answers["/fits"] = content(BODY)
    assert fetch_image(server.url("/fits"), limit) == BODY
    server.answers["/announced"] = content(b"", length=len(BODY) + 1)  # nothing is waited for
    server.answers["/sent"] = b"HTTP/1.0 200 OK\r\n\r\n" + BODY + b"x"
    chunk = b"%x\r\n%s\r\n" % (len(BODY), BODY)
    server.answers["/chunks"] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 2 + b"0\r\n\r\n"
    for path in ("/announced", "/sent", "/chunks"):
        assert "--url-max-bytes" in fails(server.url(path), "it has more than 10,240 bytes", limit)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",  # http.client then reads to the end at once
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffff\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",  # lines after the content
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
    ],
    ids=["no length", "negative chunk", "huge chunk", "trailer", "negative length"],
)
def test_endless_answer_is_left_early(server: ImageServer, head: bytes) -> None:
    sent = 0

    def pour(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(head)
        while sent < 256 << 20:
            sent += connection.send(b"x" * 998 + b"\r\n")

    server.answers["/a"] = pour
    with pytest.raises(InputError) as caught:
        fetch_image(server.url("/a"), UrlOptions(allow_private=True, max_bytes=1_000_000))
    refused = "does not answer with valid HTTP" in str(caught.value)  # http.client of new Pythons counts trailers
    assert "it has more than 1,000,000 bytes" in str(caught.value) or (refused and b"\r\n0\r\n" in head)
    assert sent < 32 << 20


def _dripping(head: bytes) -> Callable[[socket.socket], None]:
    def drip(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(b"x")
            threading.Event().wait(0.02)

    return drip


@pytest.mark.parametrize(
    "head", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n"], ids=len
)
def test_time_limit_is_for_everything_also_for_single_bytes(server: ImageServer, head: bytes) -> None:
    server.answers["/a"] = _dripping(head)
    start = time.monotonic()
    message = fails(server.url("/a"), "it took longer than 0.3 s", UrlOptions(allow_private=True, timeout_s=0.3))
    assert "--url-timeout" in message
    assert time.monotonic() - start < 30


def _mute(connection: socket.socket) -> None:
    connection.settimeout(60)
    connection.recv(1)


def test_time_limit_is_for_a_server_that_says_nothing(server: ImageServer) -> None:
    server.answers["/a"] = _mute
    fails(server.url("/a"), "it took longer than 0.2 s", UrlOptions(allow_private=True, timeout_s=0.2))


def test_all_attempts_share_the_time_limit(server: ImageServer) -> None:
    server.answers["/a"] = content(b"", status="503 Service Unavailable", Retry_After="60")
    start = time.monotonic()
    fails(
        server.url("/a"),
        "its server answers 503 Service Unavailable, and to try again after 60 s",
        UrlOptions(allow_private=True, timeout_s=50),
    )
    assert time.monotonic() - start < 45
    assert server.asked["/a"] == 1


@pytest.mark.parametrize("answer", [_mute, content(b"", status="503 Busy", Retry_After="15")], ids=["silence", "pause"])
def test_download_can_be_cancelled(server: ImageServer, answer: Any) -> None:
    server.answers["/a"] = answer
    download = FoundUrl(server.url("/a"), LOCAL).source
    start = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(download)
        while not server.heads:
            time.sleep(0.01)
        download.cancel()
        with pytest.raises(InputError, match="the run was stopped"):
            result.result()
    assert time.monotonic() - start < 12
    with pytest.raises(InputError, match="the run was stopped"):  # also if it was cancelled before it began
        download()


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize(
    "answer",
    [
        content(BODY[:100], length=len(BODY)),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20\r\nabc",
        b"",
        b"HTTP/1.1 200",
        _reset,
        content(gzip.compress(BODY)[:-20], Content_Encoding="gzip"),
    ],
    ids=["length", "chunk", "nothing", "head", "reset", "gzip"],
)
def test_connection_that_is_cut_is_tried_again(server: ImageServer, pauses: list[float], answer: Any) -> None:
    server.answers["/a"] = [answer, answer, content(BODY)]
    assert fetch_image(server.url("/a"), LOCAL) == BODY
    assert sum(pauses) == pytest.approx(0.5 + 1.5)
    server.answers["/b"] = answer
    fails(server.url("/b"), "end")
    assert server.asked["/b"] == 3


@pytest.mark.parametrize("status", ["429 Too Many Requests", "500 Internal Server Error", "503 Service Unavailable"])
def test_busy_server_is_asked_again(server: ImageServer, pauses: list[float], status: str) -> None:
    busy = content(b"", status=status)
    server.answers["/a"] = [busy, content(b"", status=status, Retry_After="7"), content(BODY)]
    assert fetch_image(server.url("/a"), LOCAL) == BODY
    assert sum(pauses) == pytest.approx(0.5 + 7)
    server.answers["/b"] = busy
    fails(server.url("/b"), f"its server answers {status}.")
    assert server.asked["/b"] == 3


def test_pause_that_lasts_longer_than_asked_is_no_traceback(
    server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy machine may wake a thread late, or give it the answer when the time has passed."""
    server.answers["/a"] = content(b"", status="503 Service Unavailable", Retry_After="1")
    clock = time.monotonic
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 100 * len(slept))
    fails(server.url("/a"), "its server answers 503 Service Unavailable, and to try again after 1 s.")


def test_retry_after_may_be_a_date(server: ImageServer, pauses: list[float]) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=10), usegmt=True)
    past = format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)
    answers = [content(b"", status="429 Slow", Retry_After=each) for each in (date, past)]
    server.answers["/a"] = [*answers, content(BODY)]
    assert fetch_image(server.url("/a"), LOCAL) == BODY
    assert 8 < sum(pauses) <= 10
    pauses.clear()
    server.answers["/b"] = [content(b"", status="429 Slow", Retry_After="tomorrow"), content(BODY)]
    assert fetch_image(server.url("/b"), LOCAL) == BODY
    assert sum(pauses) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ("404 Gone fishing", "404 Not Found"),
        ("403 No", "403 Forbidden"),
        ("204 Empty", "204 No Content"),
        ("299 Odd", "with status 299"),
    ],
)
def test_other_answers_are_errors_at_once(server: ImageServer, status: str, shown: str) -> None:
    server.answers["/a"] = content(BODY, status=status)
    fails(server.url("/a"), f"its server answers {shown}.")
    assert server.asked["/a"] == 1


def test_server_that_speaks_no_http(server: ImageServer) -> None:
    server.answers["/a"] = b"220 mail.example ESMTP\r\n"
    server.answers["/b"] = b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 1000 + b"\r\n"
    server.answers["/c"] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n"
    for path in ("/a", "/b", "/c"):
        fails(server.url(path), "does not answer with valid HTTP")


def test_refused_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    fails(f"http://127.0.0.1:{port}/a", "the connection failed: Connection refused.")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(server: ImageServer, status: int) -> None:
    server.answers["/a"] = redirect("folder/b", f"{status} Elsewhere")
    server.answers["/folder/b"] = redirect(server.url("/c"))
    server.answers["/c"] = content(BODY)
    assert fetch_image(server.url("/a"), LOCAL) == BODY


def test_redirects_are_limited(server: ImageServer) -> None:
    for step in range(7):
        server.answers[f"/{step}"] = redirect(f"/{step + 1}")
    server.answers["/loop"] = redirect("/loop")
    server.answers["/5"] = content(BODY)
    assert fetch_image(server.url("/0"), LOCAL) == BODY
    server.answers["/5"] = redirect("/6")
    fails(server.url("/0"), "it redirects more than 5 times")
    fails(server.url("/loop"), "it redirects more than 5 times")
    assert server.asked["/loop"] == 6
    none = UrlOptions(allow_private=True, max_redirects=0)
    fails(server.url("/loop"), "it redirects more than 0 times", none)


def test_redirect_without_a_target_or_to_another_scheme(server: ImageServer) -> None:
    server.answers["/a"] = content(b"", status="302 Found")
    server.answers["/b"] = redirect("file:///etc/passwd")
    server.answers["/c"] = redirect("http://me:secret@127.0.0.1/")
    fails(server.url("/a"), "its server answers 302 Found without a target")
    fails(server.url("/b"), "it redirects to 'file:///etc/passwd': only http and https are allowed.")
    assert "secret" not in fails(server.url("/c"), "it redirects to 'http://***@127.0.0.1/': the URL holds a user name")


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    return Resolver(monkeypatch)


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    return record_connections(monkeypatch)


PUBLIC = UrlOptions(timeout_s=20)


def test_private_addresses_are_refused_before_a_connection(server: ImageServer) -> None:
    server.answers["/a"] = content(BODY)
    for host in ("127.0.0.1", "127.1", "2130706433", "0x7f.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"):
        message = fails(server.url("/a", host), "its host has no public address", PUBLIC)
        assert "--allow-private-urls" in message
    for host in ("169.254.169.254", "10.0.0.1", "192.168.1.1", "[fd00:ec2::254]", "[64:ff9b::a9fe:a9fe]"):
        fails(f"http://{host}/latest/meta-data", "its host has no public address", PUBLIC)
    assert server.heads == []


def test_address_that_was_checked_is_the_one_that_is_connected_to(
    server: ImageServer, resolver: Resolver, connected: list[tuple[Any, ...]]
) -> None:
    """A name server that answers with a public address first, and then with loopback."""
    server.answers["/a"] = content(BODY)
    resolver.answers["images.test"] = ["8.8.8.8", "127.0.0.1"]
    assert fetch_image(server.url("/a", "images.test"), PUBLIC) == BODY
    assert connected == [("8.8.8.8", server.port)]
    assert resolver.asked == ["images.test"]
    assert f"Host: images.test:{server.port}" in server.heads[0]
    fails(server.url("/a", "images.test"), "its host has no public address (127.0.0.1)", PUBLIC)


@pytest.mark.parametrize("target", ["127.0.0.1", "2130706433", "inside.test", "[::ffff:10.0.0.1]"])
def test_every_redirect_is_checked(
    server: ImageServer, resolver: Resolver, connected: list[tuple[Any, ...]], target: str
) -> None:
    resolver.answers |= {"images.test": ["8.8.8.8"], "inside.test": ["10.0.0.5"]}
    server.answers["/a"] = redirect(f"http://{target}:{server.port}/secret?token=abc")
    server.answers["/secret?token=abc"] = content(BODY)
    message = fails(server.url("/a", "images.test"), "token=***': its host has no public address", PUBLIC)
    assert "it redirects to 'http://" in message
    assert connected == [("8.8.8.8", server.port)]
    assert server.asked == {"/a": 1}


def test_next_address_is_tried_if_one_does_not_answer(server: ImageServer, resolver: Resolver) -> None:
    server.answers["/a"] = content(BODY)
    resolver.answers["localhost"] = ["localhost"]
    real = resolver._real

    def both(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        return [*real("127.0.0.2", port, *arguments, **options), *real("127.0.0.1", port, *arguments, **options)]

    resolver._real = both  # type: ignore[assignment]
    assert fetch_image(server.url("/a", "localhost"), LOCAL) == BODY


def test_proxies_of_the_environment_are_not_used(server: ImageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server.answers["/a"] = content(BODY)
    assert fetch_image(server.url("/a"), LOCAL) == BODY


def test_messages_hold_no_secrets(server: ImageServer) -> None:
    server.answers["/a?X-Amz-Signature=0a1b2c"] = content(b"", status="403 Forbidden")
    for url in (server.url("/a?X-Amz-Signature=0a1b2c"), "http://me:0a1b2c@127.0.0.1/a"):
        with pytest.raises(InputError) as caught:
            fetch_image(url, LOCAL)
        assert "***" in str(caught.value)
        assert "0a1b2c" not in str(caught.value)


def test_threads_fetch_at_the_same_time(server: ImageServer) -> None:
    paths = [f"/{number}" for number in range(64)]
    for path in paths:
        server.answers[path] = [content(b"", status="503 Busy", Retry_After="0"), content(BODY + path.encode())]
    with ThreadPoolExecutor(16) as pool:
        fetched = list(pool.map(lambda path: fetch_image(server.url(path), LOCAL), paths))
    assert fetched == [BODY + path.encode() for path in paths]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for images.test, with its key, that signs itself."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl")
    folder = tmp_path_factory.mktemp("certificate")
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    named = ["-subj", "/CN=images.test", "-addext", "subjectAltName=DNS:images.test"]
    subprocess.run(
        [*made, *named, "-keyout", "key.pem", "-out", "cert.pem"], cwd=folder, check=True, capture_output=True
    )
    both = folder / "both.pem"
    both.write_bytes((folder / "key.pem").read_bytes() + (folder / "cert.pem").read_bytes())
    return both


@pytest.fixture
def tls_server(certificate: Path) -> Iterator[ImageServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with serving(context) as started:
        yield started


@pytest.fixture
def _trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls_context.cache_clear()
    yield
    tls_context.cache_clear()


def test_certificate_that_nobody_signed_is_refused(tls_server: ImageServer, resolver: Resolver) -> None:
    resolver.answers["images.test"] = ["127.0.0.1"]
    fails(tls_server.url("/a", "images.test"), "the certificate of its server is not valid: self-signed certificate")
    assert tls_server.heads == []


@pytest.mark.usefixtures("_trusted")
def test_https_checks_the_name_of_the_url(tls_server: ImageServer, resolver: Resolver) -> None:
    resolver.answers |= {"images.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]}
    tls_server.answers["/a"] = content(BODY)
    tls_server.answers["/slow"] = _dripping(b"HTTP/1.1 200 OK\r\nX: ")
    assert fetch_image(tls_server.url("/a", "images.test"), LOCAL) == BODY
    assert f"Host: images.test:{tls_server.port}" in tls_server.heads[0]
    fails(tls_server.url("/a", "other.test"), "the certificate of its server is not valid: Hostname mismatch")
    brief = UrlOptions(allow_private=True, timeout_s=0.5)
    fails(tls_server.url("/slow", "images.test"), "it took longer than 0.5 s", brief)


@pytest.mark.usefixtures("_trusted")
def test_time_limit_holds_for_a_handshake(server: ImageServer) -> None:
    """A server that takes the connection and never answers the TLS greeting."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        start = time.monotonic()
        fails(f"https://127.0.0.1:{port}/", "it took longer than 0.2 s", UrlOptions(allow_private=True, timeout_s=0.2))
        assert time.monotonic() - start < 30
    fails(server.url("/a").replace("http", "https"), "no secure connection: ")


@pytest.mark.parametrize(
    "wrong",
    [{"max_bytes": 0}, {"timeout_s": 0}, {"timeout_s": float("nan")}, {"max_redirects": -1}, {"allow_private": 1}],
)
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong)).replace("_", " ")):
        UrlOptions(**wrong)
