"""One HTTP request on a connection of its own, within a time limit for all of it."""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import socket
import ssl
import zlib
from collections.abc import Iterator
from typing import Any

from clipmlu._version import __version__
from clipmlu.data.url.address import SocketAddress, resolve
from clipmlu.data.url.errors import CutError, UrlError
from clipmlu.data.url.location import Location
from clipmlu.data.url.time_limit import TimeLimit
from clipmlu.file_names import name_from_path

CUT = "the connection ended before the whole file was sent."

_CHUNK_BYTES = 1 << 16
_FRAMING_BYTES = 1 << 20
"""Bytes of headers and of chunk sizes that a server may send beside the content."""
_HEADERS = {
    "Accept": "image/*,*/*;q=0.5",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": f"clipmlu/{__version__}",
}


class Response:
    """The answer of a server.

    Attributes:
        status: HTTP status code.
        headers: of the answer; lookups ignore case.
    """

    def __init__(self, response: http.client.HTTPResponse, max_bytes: int) -> None:
        self.status = response.status
        self.headers = response.headers
        self._response = response
        self._max_bytes = max_bytes

    def read(self) -> bytes:
        """Return the content, which is decompressed if the server compressed it with gzip although it was not asked to.

        Raises:
            UrlError: it has more than ``max_bytes`` bytes, or another encoding, or is damaged.
            CutError: the server sent less than it announced.
            OSError, http.client.HTTPException: the connection failed.
        """
        if (self._response.length or 0) > self._max_bytes:
            raise too_large(self._max_bytes)
        content = bytearray()
        for piece in self._decoded():
            content += piece
            if len(content) > self._max_bytes:
                raise too_large(self._max_bytes)
        # Without a length the end of the connection ends the file; if nothing was sent, it may have ended in the headers.
        if self._response.length or not (content or "Content-Length" in self.headers):
            raise CutError(CUT)
        return bytes(content)

    def _pieces(self) -> Iterator[bytes]:
        while piece := self._response.read(_CHUNK_BYTES):
            yield piece

    def _decoded(self) -> Iterator[bytes]:
        """Yield pieces of the content, each of limited size."""
        encoding = self.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding in ("", "identity"):
            yield from self._pieces()
            return
        if encoding not in ("gzip", "x-gzip"):
            raise UrlError(f"its server compressed it with '{name_from_path(encoding[:20])}', which is not supported.")
        gzip = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        for piece in self._pieces():
            yield gzip.decompress(piece, _CHUNK_BYTES)
            while gzip.unconsumed_tail:
                yield gzip.decompress(gzip.unconsumed_tail, _CHUNK_BYTES)
        if not gzip.eof:
            raise CutError("the compressed file ends too early.")


def too_large(max_bytes: int) -> UrlError:
    """Return the error for a file that is larger than the limit."""
    return UrlError(
        f"it has more than {max_bytes:,} bytes. If its source is trusted, allow more with --url-max-bytes (max_bytes in "
        "Python)."
    )


@contextlib.contextmanager
def request(location: Location, limit: TimeLimit, *, max_bytes: int, allow_private: bool) -> Iterator[Response]:
    """Send a GET request and give the answer; the connection is closed at the end of the block.

    Proxies, credentials and cookies are not used.

    Args:
        location: what to get.
        limit: time limit for everything, from resolving the name to the last byte of the content.
        max_bytes: size limit of the content.
        allow_private: whether addresses that are not public are allowed.

    Raises:
        UrlError: no address of the host is allowed.
        OSError, http.client.HTTPException: the request failed; ``TimeoutError`` after the time limit.
    """
    addresses = resolve(location.host, location.port, limit, allow_private=allow_private)
    with (
        contextlib.closing(_connect(addresses, limit)) as plain,
        contextlib.closing(_secured(plain, location, limit)) as connected,
    ):
        connection = _Connection(_TimedSocket(connected, limit, max_bytes), location)
        connection.request("GET", location.target, headers={"Host": location.host_header, **_HEADERS})
        with contextlib.closing(connection.getresponse()) as response:
            yield Response(response, max_bytes)


def _connect(addresses: list[SocketAddress], limit: TimeLimit) -> socket.socket:
    """Connect to the first address that answers; each gets an equal part of the time that is left."""
    for position, address in enumerate(addresses):
        connection = socket.socket(address.family, socket.SOCK_STREAM)
        try:
            limit.apply_to(connection)
            connection.settimeout(limit.left() / (len(addresses) - position))
            connection.connect(address.value)
        except BaseException as error:
            connection.close()
            if not isinstance(error, OSError) or position == len(addresses) - 1:
                raise
        else:
            return connection
    raise AssertionError("there is no address")


def _secured(plain: socket.socket, location: Location, limit: TimeLimit) -> socket.socket:
    """Return the connection itself for http, or one that is encrypted for https, with the name of the URL verified."""
    if location.scheme == "http":
        return plain
    name = location.host.rstrip(".")
    connected = tls_context().wrap_socket(plain, server_hostname=name, do_handshake_on_connect=False)
    try:
        limit.apply_to(connected)  # a socket's time limit is for the whole handshake
        connected.do_handshake()
    except BaseException:
        connected.close()
        raise
    return connected


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Certificates of the system, or of the variables SSL_CERT_FILE and SSL_CERT_DIR."""
    return ssl.create_default_context()


class _Connection(http.client.HTTPConnection):
    """Speaks HTTP on a socket that is connected already."""

    def __init__(self, connected: _TimedSocket, location: Location) -> None:
        super().__init__(location.host, location.port)
        self._connected: Any = connected

    def connect(self) -> None:
        self.sock = self._connected


class _TimedSocket:
    """What ``http.client`` needs of a socket; every wait is within the time limit, and all bytes by ``max_bytes``."""

    def __init__(self, connected: socket.socket, limit: TimeLimit, max_bytes: int) -> None:
        self._connected = connected
        self._limit = limit
        self._max_bytes = max_bytes

    def sendall(self, content: bytes) -> None:
        self._limit.apply_to(self._connected)
        self._connected.sendall(content)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._connected, self._limit, self._max_bytes), _CHUNK_BYTES)

    def close(self) -> None:
        """Leave the socket to ``request``, which closes it."""


class _TimedReader(io.RawIOBase):
    """Reads a socket. A socket's own time limit is for each read, so a server that sends single bytes would prolong it."""

    def __init__(self, connected: socket.socket, limit: TimeLimit, max_bytes: int) -> None:
        self._connected = connected
        self._limit = limit
        self._max_bytes = max_bytes
        self._left = max_bytes + _FRAMING_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._limit.apply_to(self._connected)
        count = self._connected.recv_into(buffer)
        self._left -= count
        if self._left < 0:
            raise too_large(self._max_bytes)
        return count
