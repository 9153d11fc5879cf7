"""An ASGI application that answers on a port of this machine while tests run."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def serving(app: Any, bound: socket.socket | None = None) -> Iterator[str]:
    """Yield the address of a server in a thread, such as ``http://127.0.0.1:41234``; requests wait until it accepts them.

    Args:
        app: the application.
        bound: a socket to use, which is closed afterwards; None for a free port.
    """
    import uvicorn

    with bound or socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
