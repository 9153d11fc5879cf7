"""A server as a graph of the load scenarios: each query is one HTTP request with image files.

A thread that waits costs the server nothing, so queries run on threads with a connection each, and on Python's own client.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import threading
import urllib.parse
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

from clipmlu.errors import OptionError, SessionError
from clipmlu.measure.speed.scenarios import Timer

_TIMEOUT_S = 60.0
_PATIENCE_S = 30.0  # for a server that is busy
_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_BUSY = (429, 503)
_LONGEST_ANSWER = 64 * 2**20


class ServerAddress(NamedTuple):
    """Where a server listens.

    Attributes:
        url: its URL, without a slash at the end.
        host: name or address.
        port: port number.
        prefix: path before every route; empty, or with a slash at the start.
        secure: HTTPS.
    """

    url: str
    host: str
    port: int
    prefix: str
    secure: bool


def parse_server_url(url: str) -> ServerAddress:
    """Return the address of a server.

    Raises:
        OptionError: it is not an http or https URL of a server.
    """
    expected = "expected the URL of a server, such as http://127.0.0.1:8000"
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise OptionError(f"http is '{url}' ({error}); {expected}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise OptionError(f"http is '{url}'; {expected}")
    if parts.username is not None:
        raise OptionError("http holds a user name; " + expected)
    secure = parts.scheme == "https"
    return ServerAddress(
        url.rstrip("/"), parts.hostname, port or (443 if secure else 80), parts.path.rstrip("/"), secure
    )


class HttpClient:
    """Sends requests to one server, with a kept connection for each thread. A context manager.

    Args:
        address: the server.
        headers: headers of every request.
        timer: the clock of the pauses while the server is busy.
    """

    def __init__(
        self, address: ServerAddress, headers: Mapping[str, str] | None = None, timer: Timer | None = None
    ) -> None:
        self.address = address
        self._headers = headers or {}
        self._timer = timer or Timer()
        self._own = threading.local()
        self._all: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for connection in self._all:
            connection.close()

    def get(self, route: str) -> Any:
        """Return the JSON that a route answers.

        Raises:
            SessionError: the server does not answer, or answers something else.
        """
        status, body, _pause = self._send("GET", route, None, {})
        if status != 200:
            raise self._refusal(status, body, route)
        try:
            return json.loads(body)
        except ValueError as error:
            raise SessionError(
                f"Server '{self.address.url}' answers {route} without JSON; is it clipmlu serve?"
            ) from error

    def post(self, route: str, body: bytes, headers: dict[str, str]) -> bytes:
        """Return the answer to a request; while the server is busy, the request waits as long as it says, and is sent again.

        Raises:
            SessionError: the server does not answer, answers an error, or is busy for half a minute.
        """
        begun = self._timer.now()
        while True:
            status, answer, pause = self._send("POST", route, body, headers)
            if status == 200:
                return answer
            again = self._timer.now() + pause
            if status not in _BUSY or again - begun > _PATIENCE_S:
                raise self._refusal(status, answer, route)
            self._timer.sleep_until(again)

    def _send(self, method: str, route: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes, float]:
        """Return status, body and the seconds after which a busy server wants to be asked again."""
        connection = self._connection()
        kept = connection.sock is not None
        try:
            connection.request(method, self.address.prefix + route, body, {**self._headers, **headers})
            answer = connection.getresponse()
            content = answer.read(_LONGEST_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            if kept and isinstance(error, ConnectionError):  # the server closes connections that were idle
                return self._send(method, route, body, headers)
            raise SessionError(
                f"Server '{self.address.url}' does not answer {route}: {error or type(error).__name__}. "
                "Start one with clipmlu serve, or check the URL."
            ) from error
        return answer.status, content, _pause_of(answer.getheader("Retry-After"))

    def _connection(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        if connection is None:
            host, port = self.address.host, self.address.port
            if self.address.secure:
                context = ssl.create_default_context()
                connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=context)
            else:
                connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
            self._own.connection = connection
            with self._lock:
                self._all.append(connection)
        return connection

    def _refusal(self, status: int, body: bytes, route: str) -> SessionError:
        return SessionError(f"Server '{self.address.url}' answers {route} with status {status}: {_message_of(body)}")


def _pause_of(header: str | None) -> float:
    with contextlib.suppress(TypeError, ValueError):
        return min(max(float(header or ""), _PAUSE_S), _LONGEST_PAUSE_S)
    return _PAUSE_S


def _message_of(body: bytes) -> str:
    """Return the message of an error's JSON, or the beginning of the body."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        error = json.loads(body)["error"]
        return str(error if isinstance(error, str) else error["message"])[:500]
    return body[:200].decode(errors="replace") or "an empty answer"


class ServedGraph:
    """The image tower of a served model, for the scenarios; see ``scenarios.Graph``.

    A query is one request of the KServe v2 protocol: image files as binary tensor data, embeddings as binary tensor data.

    Args:
        client: client of the server.
        name: name of the model.
        files: contents of image files.
    """

    def __init__(self, client: HttpClient, name: str, files: Sequence[bytes]) -> None:
        self._client = client
        self._route = f"{model_route(name)}/infer"
        self._files = files

    def submit(self, first: int, rows: int) -> PendingRequest:
        """Return the request with ``rows`` images from number ``first`` on; it is sent when its result is asked for."""
        files = [self._files[(first + row) % len(self._files)] for row in range(rows)]
        return PendingRequest(self._client, self._route, files)


class PendingRequest(NamedTuple):
    """A request with image files that is not sent yet."""

    client: HttpClient
    route: str
    files: list[bytes]

    def result(self) -> bytes:
        """Send the request, and return the answer's body.

        Raises:
            SessionError: see ``HttpClient.post``.
        """
        body, headers = inference_request(self.files)
        return self.client.post(self.route, body, headers)


def model_route(name: str) -> str:
    """Return the route of a model in the KServe v2 protocol."""
    return f"/v2/models/{urllib.parse.quote(name, safe='')}"


def inference_request(files: Sequence[bytes]) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a request for the embeddings of image files; see ``serve.kserve`` for the protocol."""
    elements = b"".join(part for file in files for part in (len(file).to_bytes(4, "little"), file))
    images = {
        "name": "images",
        "shape": [len(files)],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(elements)},
    }
    wanted = {"name": "image_embeds", "parameters": {"binary_data": True}}
    text = json.dumps({"inputs": [images], "outputs": [wanted]}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(text))}
    return text + elements, headers
