"""Name servers and connections of tests that ask for URLs: no question and no connection leaves the machine."""

from __future__ import annotations

import socket
from typing import Any

import pytest


class Resolver:
    """The system's resolver, with names of its own; stands for the name servers of an attacker.

    Attributes:
        answers: maps a name to the addresses of each question in turn, the last one for ever; other names below .test are unknown.
        asked: the names that were asked for.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._getaddrinfo)

    def _getaddrinfo(self, host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        given = host.decode() if isinstance(host, bytes) else host
        self.asked.append(given)
        name = given.rstrip(".")  # as name servers do
        if name not in self.answers:
            if name.endswith(".test"):
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return self._real(name, port, *arguments, **options)
        left = self.answers[name]
        return self._real(left.pop(0) if len(left) > 1 else left[0], port, *arguments, **options)


def record_connections(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Return a list that gets the addresses to which sockets connect; all lead to loopback."""
    seen: list[tuple[Any, ...]] = []

    class Recorded(socket.socket):
        def connect(self, address: Any) -> None:
            seen.append(address)
            super().connect(("127.0.0.1", address[1]))

    monkeypatch.setattr(socket, "socket", Recorded)
    return seen
