"""Limits the connections that have not proved the secret yet."""

from __future__ import annotations

import collections
import threading

from .wire import Connection

MAX_UNAUTHENTICATED = 256  # connections before the proof of the secret


class UnauthenticatedConnections:
    """Connections before the proof of the secret: at most ``most``, so that silent clients use few resources.

    Beyond that, the oldest connection of the host with the most connections is closed, so that clients of other hosts
    are not affected.
    """

    def __init__(self, most: int = MAX_UNAUTHENTICATED) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._hosts: dict[Connection, str] = {}  # oldest first

    def add(self, connection: Connection, host: str) -> None:
        """Add a new connection."""
        with self._lock:
            self._hosts[connection] = host
            if len(self._hosts) > self._most:
                self._drop_one()

    def remove(self, connection: Connection) -> bool:
        """Remove a connection after its proof or its end; return whether it was still open."""
        with self._lock:
            return self._hosts.pop(connection, None) is not None

    def close_one(self) -> None:
        """Close one connection, if there is one."""
        with self._lock:
            if self._hosts:
                self._drop_one()

    def _drop_one(self) -> None:
        counts = collections.Counter(self._hosts.values())
        most = max(counts.values())
        dropped = next(each for each, host in self._hosts.items() if counts[host] == most)
        del self._hosts[dropped]
        dropped.abort()  # its thread closes it
