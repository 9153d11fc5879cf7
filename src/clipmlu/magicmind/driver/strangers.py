"""Limits the connections that have not proved the secret yet."""

from __future__ import annotations

import collections
import threading

from .wire import Connection

MAX_STRANGERS = 256  # connections that have proved nothing yet


class Strangers:
    """Connections that have proved nothing yet: not more than ``most``, so that a silent one costs next to nothing.

    One too many ends the oldest one of whoever has the most of them, so that a client of another host is not in their way.
    """

    def __init__(self, most: int = MAX_STRANGERS) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._hosts: dict[Connection, str] = {}  # the oldest first

    def enter(self, connection: Connection, host: str) -> None:
        """Note a new one."""
        with self._lock:
            self._hosts[connection] = host
            if len(self._hosts) > self._most:
                self._drop_one()

    def leave(self, connection: Connection) -> bool:
        """It has proved itself, or has ended; whether it had not been dropped."""
        with self._lock:
            return self._hosts.pop(connection, None) is not None

    def make_room(self) -> None:
        """Drop one, if there is one."""
        with self._lock:
            if self._hosts:
                self._drop_one()

    def _drop_one(self) -> None:
        counts = collections.Counter(self._hosts.values())
        most = max(counts.values())
        dropped = next(each for each, host in self._hosts.items() if counts[host] == most)
        del self._hosts[dropped]
        dropped.abort()  # its thread closes it
