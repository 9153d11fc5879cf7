"""Options of the HTTP side of the server."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from clipmlu.arguments import check_fields
from clipmlu.errors import OptionError
from clipmlu.serve.http.access import AccessRules, is_loopback_address, read_api_key
from clipmlu.serve.options import Port
from clipmlu.specs import PositiveInt


@dataclasses.dataclass(frozen=True, kw_only=True)
class HttpOptions:
    """Options of the HTTP side of the server.

    Attributes:
        host: address to listen on.
        port: port to listen on; 0 for any free one.
        api_key_file: file with the key that requests need; None for ``CLIPMLU_API_KEY``, or for no key.
        allow_host: names of this server in requests, besides those of the loopback; with a host other than the loopback,
            none allows any.
        allow_origin: origins of other web pages that may ask, such as ``https://example.org``.
        max_connections: connections at a time.
    """

    host: str = "127.0.0.1"
    port: Port = 8000
    api_key_file: str | os.PathLike[str] | None = None
    allow_host: Sequence[str] = ()
    allow_origin: Sequence[str] = ()
    max_connections: PositiveInt = 512

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            OptionError: a field has another type, or an origin is none.
        """
        check_fields(self)
        for origin in self.allow_origin:
            scheme, found, name = origin.partition("://")
            if scheme not in ("http", "https") or not found or not name or "/" in name or "*" in name:
                raise OptionError(
                    f"allow origin is '{origin}'; expected one such as 'https://example.org', without a path"
                )

    def rules(self) -> AccessRules:
        """Return who may ask.

        Raises:
            OptionError: other machines can reach the server, and there is no API key.
            InputError: the file of the key cannot be read.
        """
        key = read_api_key(self.api_key_file)
        local = is_loopback_address(self.host)
        if not local and key is None:
            raise OptionError(
                f"host is '{self.host}', which other machines can reach, and there is no API key; give --api-key-file FILE or the "
                "environment variable CLIPMLU_API_KEY, or leave --host out. Make a key with: openssl rand -hex 32 > key.txt"
            )
        names = tuple(name.lower() for name in self.allow_host)
        return AccessRules(
            api_key=key, allow_hosts=names if local or names else None, allow_origins=tuple(self.allow_origin)
        )
