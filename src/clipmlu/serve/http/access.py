"""Who may ask: the API key, names of the host, and origins of web pages."""

from __future__ import annotations

import dataclasses
import hmac
import ipaddress
import os
import re
from collections.abc import Mapping

from clipmlu.arguments import as_path
from clipmlu.errors import InputError, OptionError, reason_of
from clipmlu.host import serve_api_key
from clipmlu.serve.refusal import Refusal

_LEAST_KEY = 16
_MOST_KEY_BYTES = 4096
_OPEN_PATHS = frozenset({"/", "/health", "/ready", "/openapi.json", "/docs", "/v2/health/live", "/v2/health/ready"})
_OPEN_FOLDER = "/page/"
_HOST = re.compile(r"(?:\[([^][]+)\]|([^][:@/]+))(?::\d*)?")
_HOW = "Make one with: openssl rand -hex 32 > key.txt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AccessRules:
    """Who may ask.

    Attributes:
        api_key: the key that requests need; None for none.
        allow_hosts: names that requests may use for the host, besides those of the loopback; None allows any.
        allow_origins: origins of other web pages that may ask, such as ``https://example.org``.
    """

    api_key: str | None = dataclasses.field(default=None, repr=False)
    allow_hosts: tuple[str, ...] | None = ()
    allow_origins: tuple[str, ...] = ()

    def check(self, path: str, headers: Mapping[bytes, bytes], *, preflight: bool) -> None:
        """Check a request before its body is read.

        Args:
            path: path of the request.
            headers: the headers, names in lower case.
            preflight: it asks what another origin may send, so it has no key.

        Raises:
            Refusal: the host, the origin or the key is wrong.
        """
        host = headers.get(b"host", b"").decode("latin-1")
        if self.allow_hosts is not None and not _is_loopback(host) and _name_of(host) not in self.allow_hosts:
            raise Refusal(
                "forbidden_host", f"Host '{host[:100]}' is not a name of this server; add it with --allow-host."
            )
        origin = headers.get(b"origin")
        if origin is not None and not self.allows_origin(origin.decode("latin-1"), host):
            raise Refusal(
                "forbidden_origin",
                f"Origin '{origin.decode('latin-1')[:100]}' is another web page; allow it with --allow-origin.",
            )
        if self.api_key is not None and not preflight and not _is_open(path):
            self._check_key(headers)

    def allows_origin(self, origin: str, host: str) -> bool:
        """Return whether a web page of an origin may ask: the server's own page, and those that are allowed."""
        return origin in self.allow_origins or origin.partition("://")[2] == host

    def _check_key(self, headers: Mapping[bytes, bytes]) -> None:
        assert self.api_key is not None, "the caller has checked it"
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        given = headers.get(b"x-api-key") or (token.strip() if scheme.lower() == b"bearer" else b"")
        if not hmac.compare_digest(given, self.api_key.encode()):
            what = "is wrong" if given else "is missing"
            raise Refusal(
                "unauthorized",
                f"The API key {what}; send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'.",
                {"WWW-Authenticate": "Bearer"},
            )


def read_api_key(path: str | os.PathLike[str] | None) -> str | None:
    """Return the API key of a file, or of the environment, or None.

    Raises:
        InputError: the file cannot be read.
        OptionError: the key is too short, or has other characters than printable ASCII.
    """
    if path is None:
        key, where = serve_api_key(), "the environment variable CLIPMLU_API_KEY"
        if key is None:
            return None
    else:
        file = as_path(path, "the API key file")
        where = f"API key file '{file}'"
        try:
            with file.open("rb") as stream:
                key = stream.read(_MOST_KEY_BYTES).decode("ascii", "replace")
        except OSError as error:
            raise InputError(f"Cannot read {where}: {reason_of(error)}. {_HOW}") from error
    key = key.strip()
    if len(key) < _LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise OptionError(
            f"{where} has no usable key; expected {_LEAST_KEY} or more printable ASCII characters without spaces. {_HOW}"
        )
    return key


def is_loopback_address(host: str) -> bool:
    """Return whether a server that listens on a host can be reached from this machine only."""
    return _is_loopback(host if ":" not in host or host.startswith("[") else f"[{host}]")


def _is_open(path: str) -> bool:
    return path in _OPEN_PATHS or path.startswith(_OPEN_FOLDER)


def _name_of(host: str) -> str:
    """Return the name in a Host header, without the port; empty if it is no such header."""
    found = _HOST.fullmatch(host)
    return "" if found is None else (found[1] or found[2]).rstrip(".").lower()


def _is_loopback(host: str) -> bool:
    name = _name_of(host)
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
