"""A web server on loopback whose answers are written byte by byte, so that it can break any rule of HTTP."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypeVar

Answer = bytes | Callable[[socket.socket], None]
"""The bytes of an answer, or a function that sends it."""


class ImageServer(socketserver.ThreadingTCPServer):
    """Answers each path with its answers in turn, the last one for ever; the connection is closed after an answer.

    Attributes:
        answers: maps a path with its query to one answer or several.
        asked: number of requests for each path.
        heads: head of every request, as text.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.answers: dict[str, Answer | list[Answer]] = {}
        self.asked: Counter[str] = Counter()
        self.heads: list[str] = []
        self._tls = tls
        super().__init__((host, 0), _Handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"{'http' if self._tls is None else 'https'}://{host}:{self.port}{path}"

    def answer_for(self, path: str) -> Answer:
        answers = self.answers.get(path, content(b"", status="404 Not Found"))
        place = self.asked[path]
        self.asked[path] += 1
        return answers[min(place, len(answers) - 1)] if isinstance(answers, list) else answers

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep quiet: clients that give up early are meant."""


class _Handler(socketserver.BaseRequestHandler):
    server: ImageServer

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            connection = self.request
            if self.server._tls is not None:
                connection = self.server._tls.wrap_socket(connection, server_side=True)
            with contextlib.closing(connection):
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (piece := connection.recv(65536)):
                return
            head += piece
            if head.startswith(b"\x16"):  # TLS
                connection.sendall(content(b"", status="400 Bad Request"))
                return
        self.server.heads.append(head.decode())
        answer = self.server.answer_for(head.split(b" ")[1].decode())
        if isinstance(answer, bytes):
            connection.sendall(answer)
        else:
            answer(connection)


def content(body: bytes, *, status: str = "200 OK", length: int | None = None, **headers: str) -> bytes:
    """An answer with a body.

    Args:
        body: its bytes.
        status: code and phrase.
        length: what Content-Length says, if it is to be wrong.
        headers: further ones, with ``_`` for ``-``.
    """
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def redirect(target: str, status: str = "302 Found") -> bytes:
    """A redirect."""
    return content(b"", status=status, Location=target)


Server = TypeVar("Server", bound=ImageServer)


@contextlib.contextmanager
def serving(tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Iterator[ImageServer]:
    """A server for the block, in threads of this process."""
    with running(ImageServer(tls, host)) as server:
        yield server


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """Runs a server for the block, in threads of this process."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
