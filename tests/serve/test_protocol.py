"""The HTTP/1.1 protocol of the server, on a socket as the server makes it."""

from __future__ import annotations

import http.client
import socket
import threading
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")

import uvicorn

from clipmlu.serve.http.protocol import limited_protocol


async def answer(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def test_the_body_of_an_answer_does_not_wait_for_the_acknowledgement_of_its_headers() -> None:
    with socket.socket() as listener:  # without a protocol number, as ``run.bind`` makes it
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(answer, http=limited_protocol(8), log_config=None, lifespan="off", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            listener.listen()
            connection = http.client.HTTPConnection(*listener.getsockname(), timeout=20)
            connection.request("GET", "/")
            assert connection.getresponse().read() == b"ok"
            (protocol,) = server.server_state.connections
            accepted = protocol.transport.get_extra_info("socket")
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            connection.close()
        finally:
            server.should_exit = True
            thread.join(20)
