"""Answers while the bundles are loaded: the process lives, and is not ready."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
from collections.abc import Iterator
from typing import Any

import msgspec

from clipmlu.clock import now
from clipmlu.serve.http.answers import error_body
from clipmlu.serve.refusal import STATUS_OF

_ALIVE = {"/health": {"status": "ok"}, "/v2/health/live": {"live": True}}
_READ_SECONDS = 5.0
_MOST_UNREAD = 64 << 20
_MOST_CONNECTIONS = 64


@contextlib.contextmanager
def answering_while_loading(bound: socket.socket) -> Iterator[None]:
    """Answer requests on a bound socket while the context lasts: 200 to whether the process lives, 503 to everything else.

    Connections that arrive after it wait until the server accepts them.

    Args:
        bound: the socket; it listens afterwards.
    """
    server = _Server(bound)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="clipmlu-loading")
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Answer(http.server.BaseHTTPRequestHandler):
    """Answers one request, without a look at its body, and closes the connection."""

    timeout = _READ_SECONDS
    server_version, sys_version = "clipmlu", ""  # of the answers to what is no HTTP

    def do_GET(self) -> None:
        """Answer any method."""
        path = self.path.partition("?")[0]
        alive = _ALIVE.get(path)
        status = 200 if alive is not None else STATUS_OF["not_ready"]
        message = "The server loads its bundles; try again in 1 s."
        body = msgspec.json.encode(alive or error_body("not_ready", message, "", path))
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        if alive is None:
            self.send_header("Retry-After", "1")
        if path == "/":
            self.send_header("Refresh", "1")  # a browser then shows the page when it is there
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.close_connection = True
        self._skip_body()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_GET  # noqa: N815

    def _skip_body(self) -> None:
        """Read what the client still sends: closing a connection with unread bytes would take the answer from it."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            left, end = _MOST_UNREAD, now() + _READ_SECONDS
            while left > 0 and now() < end and (found := self.rfile.read1(min(left, 1 << 16))):
                left -= len(found)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- a name of the standard library
        """Log nothing, as the access log has no probes."""


class _Server(http.server.ThreadingHTTPServer):
    """Serves a socket that was bound before."""

    daemon_threads = True
    request_queue_size = 2 * _MOST_CONNECTIONS
    block_on_close = False

    def __init__(self, bound: socket.socket) -> None:
        super().__init__(bound.getsockname()[:2], _Answer, bind_and_activate=False)
        self.socket.close()
        self.socket = bound.dup()
        self._places = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self.server_activate()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer on a thread; close the connection if there are too many."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that left, or sent no HTTP."""
