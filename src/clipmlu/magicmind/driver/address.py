"""Addresses of a worker: parsing them, and removing the socket of a worker that was killed."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
from typing import Any

from .errors import GreetingError


def parse_address(text: str, *, least_port: int = 1) -> tuple[str, Any]:
    """Parse ``unix:PATH`` as ("unix", path), ``tcp:HOST:PORT`` as ("tcp", (host, port)), ``fd:N`` as ("fd", n).

    Args:
        text: the address.
        least_port: smallest allowed port; 0 allows any free port.
    """
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest:
        return kind, rest
    if kind == "fd" and re.match(r"[0-9]{1,9}\Z", rest):
        return kind, int(rest)
    host, _, port = rest.rpartition(":")
    if kind == "tcp" and host.strip("[]") and re.match(r"[0-9]{1,9}\Z", port):
        if not least_port <= int(port) <= 65535:
            raise GreetingError(f"'{text}' has the port {port}; expected {least_port} to 65535")
        return kind, (host.strip("[]"), int(port))
    raise GreetingError(f"'{text}' is no address; expected unix:PATH or tcp:HOST:PORT")


def remove_stale(path: str) -> None:
    """Remove the socket of a worker that was killed; raise if the path is anything else or the worker still runs."""
    if not os.path.lexists(path):
        return
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise GreetingError(f"'{path}' exists and is no socket; give another path")
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            raise GreetingError(f"cannot tell whether '{path}' is served: {error}") from error
    raise GreetingError(f"something is serving on '{path}' already")
