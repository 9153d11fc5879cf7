"""The edge of the server: every request passes it before the routes, and every answer after them.

It is a plain ASGI application, since it runs for every request: it checks who asks, limits the body while it is read, ends
requests whose time is over or whose client left, and counts and logs.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import msgspec

from clipmlu.clock import now
from clipmlu.serve.http.access import AccessRules
from clipmlu.serve.http.access_log import AccessLog
from clipmlu.serve.http.answers import error_body
from clipmlu.serve.http.metrics import ServerMetrics
from clipmlu.serve.refusal import Refusal
from clipmlu.serve.service import Service

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CLIENT_LEFT = 499  # as in nginx; nobody receives it
_IDS = random.Random()  # noqa: S311 -- ids are no secrets; the system's numbers cost a call that gives up the interpreter's lock
_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_BODIES_AT_ONCE = 4  # largest bodies in memory together
_log = logging.getLogger(__name__)


class Edge:
    """The ASGI application around the routes.

    Args:
        app: the routes.
        service: the service.
        rules: who may ask.
        access_log: the log.

    Attributes:
        metrics: the figures of the server.
    """

    def __init__(self, app: App, service: Service, rules: AccessRules, access_log: AccessLog) -> None:
        self.metrics = ServerMetrics(service)
        self.app = app
        self._service = service
        self._rules = rules
        self._access_log = access_log
        self._body_bytes = 0

    @property
    def state(self) -> Any:
        """The state of the FastAPI application."""
        return getattr(self.app, "state")  # noqa: B009 -- the routes are a FastAPI application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await _Exchange(self, scope, receive, send).run()

    def reserve_body(self, count: int, limit: int) -> None:
        """Count bytes of bodies in memory.

        Raises:
            Refusal: bodies of other requests take too much.
        """
        if self._body_bytes and self._body_bytes + count > _BODIES_AT_ONCE * limit:
            raise Refusal(
                "overloaded", "Too many large requests are being received; try again in 1 s.", {"Retry-After": "1"}
            )
        self._body_bytes += count

    def free_body(self, count: int) -> None:
        """Forget bytes of a body."""
        self._body_bytes -= count

    def admit(self, exchange: _Exchange) -> None:
        """Check a request before its body is read."""
        scope, headers = exchange.scope, exchange.headers
        self._rules.check(scope["path"], headers, preflight=exchange.preflight)
        if self._service.stopping and scope["method"] == "POST":
            raise Refusal("stopping", "The server is stopping; ask another one.")
        limit = self._service.options.max_body
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > limit:
            raise too_large(limit)

    def deadline(self, headers: Mapping[bytes, bytes], start: float) -> float:
        """Return the time of ``clock.now`` at which the answer is useless.

        Raises:
            Refusal: the header is no number.
        """
        longest = self._service.options.timeout_s
        given = headers.get(b"x-timeout-ms")
        if given is None:
            return start + longest
        if not given.isdigit() or not 0 < len(given) < 10 or not int(given):
            raise Refusal(
                "bad_request", f"X-Timeout-Ms is '{given.decode('latin-1')[:40]}'; expected milliseconds, such as 500."
            )
        return start + min(longest, int(given) / 1000)

    def cors_headers(self, headers: Mapping[bytes, bytes], *, preflight: bool) -> list[tuple[bytes, bytes]]:
        """Return the headers that let an allowed origin read an answer."""
        origin = headers.get(b"origin")
        if origin is None or origin.decode("latin-1") not in self._rules.allow_origins:
            return []
        found = [(b"access-control-allow-origin", origin), (b"vary", b"Origin")]
        if preflight:
            found += [
                (b"access-control-allow-methods", b"GET, POST"),
                (
                    b"access-control-allow-headers",
                    b"authorization, content-type, x-api-key, x-request-id, x-timeout-ms",
                ),
                (b"access-control-max-age", b"600"),
            ]
        else:
            found.append((b"access-control-expose-headers", b"x-request-id, x-clipmlu-emulated, retry-after"))
        return found

    def finish(self, exchange: _Exchange) -> None:
        """Count and log an ended request."""
        seconds = now() - exchange.start
        scope = exchange.scope
        route = getattr(scope.get("route"), "path", "other")
        self.metrics.count(route, exchange.status, seconds, exchange.reason)
        if route in ("/health", "/ready", "/metrics") and exchange.status < 400:
            return  # probes would be most of the log
        client = scope.get("client")
        self._access_log.add(
            request_id=exchange.id,
            client=client[0] if client else None,
            method=scope["method"],
            path=scope["path"],
            status=exchange.status,
            ms=round(seconds * 1000, 3),
            bytes_in=exchange.body_bytes,
            **({"error": exchange.reason} if exchange.reason else {}),
            **scope.get("clipmlu.log", {}),
        )


class _Exchange:
    """One request and its answer."""

    def __init__(self, edge: Edge, scope: Scope, receive: Receive, send: Send) -> None:
        self.start = now()
        self.scope = scope
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self.headers.get(b"x-request-id", b"")
        self.id = given.decode() if _ID.fullmatch(given) else f"{_IDS.getrandbits(64):016x}"
        self.preflight = scope["method"] == "OPTIONS" and b"access-control-request-method" in self.headers
        self.status = 500
        self.reason: str | None = None
        self.body_bytes = 0
        self._edge = edge
        self._receive = receive
        self._send = send
        self._max_body = edge._service.options.max_body
        self._started = False
        self._body_read = scope["method"] in ("GET", "HEAD")
        self._left = False
        self._watcher: asyncio.Task[None] | None = None
        self._task: asyncio.Task[Any] | None = None

    async def run(self) -> None:
        """Answer the request; never raises for what a client does."""
        scope = self.scope
        scope["clipmlu.request_id"] = self.id
        try:
            await self._answer()
        except asyncio.CancelledError:
            if self._left:
                self.status, self.reason = CLIENT_LEFT, "client_left"
            elif self._edge._service.stopping:
                await self._refuse(Refusal("stopping", "The server stopped before it could finish the request."))
            else:
                raise
        except TimeoutError:
            await self._time_out()
        except Refusal as error:
            await self._refuse(error)
        except Exception:
            _log.exception("Request %s failed", self.id)
            await self._refuse(Refusal("internal", "An error of the server; its log has the details."))
        finally:
            if self._watcher is not None:
                self._watcher.cancel()
            self._edge.free_body(self.body_bytes)
            self._edge.finish(self)

    async def _answer(self) -> None:
        edge, scope = self._edge, self.scope
        edge.admit(self)
        if self.preflight:
            await self._send_all(204, b"", [])
            return
        deadline = edge.deadline(self.headers, self.start)
        scope["clipmlu.deadline"] = deadline
        self._task = asyncio.current_task()
        async with asyncio.timeout(deadline - self.start):
            await edge.app(scope, self._limited_receive, self._marked_send)

    async def _limited_receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._left = True
            raise asyncio.CancelledError
        count = len(message.get("body", b""))
        if count:
            if self.body_bytes + count > self._max_body:
                raise too_large(self._max_body)
            self._edge.reserve_body(count, self._max_body)
            self.body_bytes += count
        if not message.get("more_body", False) and not self._body_read:
            self._body_read = True
            self._watcher = asyncio.create_task(self._watch())
        return message

    async def _watch(self) -> None:
        """End the request when its client leaves."""
        while (await self._receive())["type"] != "http.disconnect":
            continue
        if self._task is not None and not self._started:
            self._left = True
            self._task.cancel()

    async def _marked_send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            self.status = message["status"]
            self.reason = self.scope.get("clipmlu.reason")
            message["headers"] = [*message.get("headers", ()), *self._own_headers()]
        await self._send(message)

    def _own_headers(self) -> list[tuple[bytes, bytes]]:
        found = [(b"x-request-id", self.id.encode()), (b"x-content-type-options", b"nosniff")]
        if self.scope.get("clipmlu.emulated"):
            found.append((b"x-clipmlu-emulated", b"true"))
        if not self._body_read or self._edge._service.stopping:
            found.append((b"connection", b"close"))
        return found + self._edge.cors_headers(self.headers, preflight=self.preflight)

    async def _time_out(self) -> None:
        if self._body_read:
            await self._refuse(
                Refusal("deadline_exceeded", "The time of the request is over; its images were dropped.")
            )
        else:
            await self._refuse(Refusal("request_timeout", "The body of the request did not arrive in time."))

    async def _refuse(self, error: Refusal) -> None:
        self.reason = error.code
        if self._started:
            return  # the server closes the connection of an answer without end
        body = msgspec.json.encode(error_body(error.code, str(error), self.id, self.scope["path"]))
        headers = [(b"content-type", b"application/json")]
        headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
        self.scope["clipmlu.reason"] = error.code
        await self._send_all(error.status, body, headers)

    async def _send_all(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        length = [] if status == 204 else [(b"content-length", str(len(body)).encode())]
        await self._marked_send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
        await self._send({"type": "http.response.body", "body": body})


def too_large(limit: int) -> Refusal:
    """Return the refusal of a body above the limit."""
    return Refusal("too_large", f"The body is larger than {limit:,} bytes; send fewer or smaller images.")
