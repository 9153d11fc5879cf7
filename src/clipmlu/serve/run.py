"""Running the server until it is stopped."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from clipmlu.errors import OptionError, reason_of
from clipmlu.serve.http.app import make_app
from clipmlu.serve.http.options import HttpOptions
from clipmlu.serve.http.protocol import limited_protocol
from clipmlu.serve.service import Service

_KEEP_ALIVE_S = 75
_BACKLOG = 1024


class HttpServer(uvicorn.Server):
    """A uvicorn server that tells where it listens, and when it is stopped.

    Args:
        config: settings of uvicorn.
        service: the service, which refuses requests from the first signal on.
        on_listen: called with the URL when the server accepts connections.
    """

    def __init__(self, config: uvicorn.Config, service: Service, on_listen: Callable[[str], object]) -> None:
        super().__init__(config)
        self._service = service
        self._on_listen = on_listen

    async def startup(self, sockets: Any = None) -> None:
        """Start to listen."""
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        self._on_listen(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop on a signal: finish what was taken, and refuse new requests; a second Ctrl-C does not wait."""
        self._service.stopping = True
        super().handle_exit(sig, frame)


def make_server(
    service: Service,
    options: HttpOptions,
    *,
    on_listen: Callable[[str], object] = lambda _url: None,
    write_log: Callable[[str], object] | None = None,
) -> HttpServer:
    """Return the server of a service; its ``run`` serves until it is stopped, and then closes the service.

    Args:
        service: the service.
        options: where it listens, and who may ask.
        on_listen: called with the URL when the server accepts connections.
        write_log: writes a line of the access log; None for no log.

    Raises:
        OptionError, InputError: as for ``HttpOptions.rules``.
    """
    config = uvicorn.Config(
        make_app(service, options.rules(), write_log),
        host=options.host,
        port=options.port,
        http=limited_protocol(options.max_connections),
        ws="none",
        loop="asyncio",
        lifespan="on",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(service.options.stop_timeout_s),
    )
    return HttpServer(config, service, on_listen)


def bind(options: HttpOptions) -> socket.socket:
    """Return a socket at the address of the options, which does not listen yet.

    Raises:
        OptionError: the address is none of this machine, or the port is taken.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((options.host, options.port))
    except (OSError, UnicodeError) as error:
        bound.close()
        raise OptionError(
            f"host '{options.host}', port {options.port} cannot be used: {reason_of(error)}; give another --port, or 0 for any free "
            "one"
        ) from error
    return bound
