"""The HTTP/1.1 protocol of uvicorn, with time limits for the headers of a request, and a limit of connections."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: 92\r\n\r\n"
    b'{"error":{"code":"overloaded","message":"Too many connections; try again.","request_id":""}}'
)


class LimitedProtocol(H11Protocol):
    """Closes a connection whose request has no complete headers in time.

    Attributes:
        max_connections: connections at a time; set by the server on a subclass.
    """

    max_connections = 512
    header_seconds = HEADER_SECONDS

    def connection_made(self, transport: Any) -> None:
        """Start the time limit; refuse the connection if there are too many."""
        self._header_timer: asyncio.TimerHandle | None = None
        _send_at_once(transport)
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.write(_BUSY)
            transport.close()
            return
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the time limit."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read; the time limit runs while the headers of a request are incomplete."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self._header_timer is None and self.conn.trailing_data[0]:
            self._start_timer()

    def _start_timer(self) -> None:
        self._header_timer = self.loop.call_later(self.header_seconds, self._headers_are_late)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _headers_are_late(self) -> None:
        self._header_timer = None
        if self.conn.their_state is h11.IDLE:
            self.transport.close()


def _send_at_once(transport: Any) -> None:
    """Send the body of an answer without waiting until the client acknowledges its headers, which takes 40 ms.

    asyncio does so only for sockets whose protocol number is given, which those of ``socket.socket()`` is not.
    """
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def limited_protocol(limit: int) -> type[LimitedProtocol]:
    """Return the protocol with a limit of connections."""
    return type("LimitedProtocol", (LimitedProtocol,), {"max_connections": limit})
