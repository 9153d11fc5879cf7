"""Running the server until it is stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import uvicorn

from clipmlu.serve.http.app import make_app
from clipmlu.serve.service import Service


class HttpServer(uvicorn.Server):
    """A uvicorn server that tells where it listens.

    Args:
        config: settings of uvicorn.
        on_listen: called with the URL when the server accepts connections.
    """

    def __init__(self, config: uvicorn.Config, on_listen: Callable[[str], object] = lambda _url: None) -> None:
        super().__init__(config)
        self._on_listen = on_listen

    async def startup(self, sockets: Any = None) -> None:
        """Start to listen."""
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        self._on_listen(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")


def serve(service: Service, *, host: str, port: int, on_listen: Callable[[str], object] = lambda _url: None) -> None:
    """Serve until SIGTERM or SIGINT; then finish what was taken, and close the service.

    Args:
        service: the service.
        host: address to listen on.
        port: port to listen on; 0 for any free one.
        on_listen: called with the URL when the server accepts connections.
    """
    config = uvicorn.Config(
        make_app(service),
        host=host,
        port=port,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="on",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=int(service.options.stop_timeout_s),
    )
    HttpServer(config, on_listen).run()
