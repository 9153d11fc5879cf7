"""Serves one connection: replies in order, and starts runs before earlier ones have ended."""

from __future__ import annotations

import collections
import contextlib
import functools
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

from .channel import SocketChannel
from .errors import DeadlineError, DriverError, GreetingError, ProtocolError
from .greeting import accept_greeting
from .log import log_line
from .request import Reply, Request
from .running import Runner
from .service import Service
from .wire import Connection


def serve_requests(channel: Any, service: Service) -> None:
    """Reply to requests in order until the channel ends (EOFError); runs start before earlier ones have ended.

    Args:
        channel: ``receive(wait)`` returns the next Request, or None if there is none yet and ``wait`` is false;
            ``send(request, fields, arrays)`` replies to one.
        service: handles the requests.
    """
    waiting: collections.deque[tuple[Request, Runner | None, DriverError | None]] = collections.deque()

    def finish_oldest() -> None:
        request, runner, error = waiting.popleft()
        _reply(channel, request, functools.partial(_finish_run, runner, error))

    try:
        while True:
            try:
                request = channel.receive(not waiting)
            except EOFError:
                while waiting:
                    finish_oldest()
                return
            if request is None:
                finish_oldest()
                continue
            if request.fields.get("op") != "run":
                while waiting:
                    finish_oldest()
                _reply(channel, request, functools.partial(service.answer, request))
                continue
            runner, error = None, None
            try:
                runner = service.runner(request)
                while not runner.free_slots:
                    finish_oldest()
                runner.start(request.arrays)
            except DriverError as failure:
                error = failure
            except Exception as failure:
                error = _as_bug(failure)
            waiting.append((request, runner, error))
    except EOFError:
        pass
    finally:
        service.close()


def _finish_run(runner: Runner | None, error: DriverError | None) -> Reply:
    if error is not None:
        raise error
    assert runner is not None, "a run without an error was started"
    results = runner.finish()
    return {"times": runner.times}, results


def _reply(channel: Any, request: Request, work: Callable[[], Reply]) -> None:
    try:
        fields, arrays = work()
    except DriverError as error:
        fields, arrays = {"error": error.to_json()}, []
    except Exception as error:
        fields, arrays = {"error": _as_bug(error).to_json()}, []
    channel.send(request, fields, arrays)


def _as_bug(error: Exception) -> DriverError:
    traceback.print_exc()
    return DriverError("driver", f"{type(error).__name__}: {error}", kind="bug")


def serve_descriptor(descriptor: int, service: Service, *, digest: str, greeted: bool, idle_seconds: float) -> None:
    """Serve one open connection until it ends.

    Args:
        descriptor: its socket.
        service: handles the requests.
        digest: see ``accept_greeting``.
        greeted: the parent process has already accepted the client.
        idle_seconds: end after this time without a request; 0 for never.
    """
    connection = Connection(socket.socket(fileno=descriptor))
    try:
        if not greeted:
            accept_greeting(connection, None, digest)
        serve_requests(SocketChannel(connection, idle_seconds), service)
    except (ProtocolError, GreetingError, DeadlineError) as error:
        log_line(f"ended a connection: {error}")
        with contextlib.suppress(EOFError, DeadlineError):
            refusal = {"error": DriverError("request", str(error), kind="spec").to_json(), "id": None}
            connection.send(refusal, deadline=time.monotonic() + 1)
    except EOFError:
        pass
    finally:
        connection.abort()
        connection.close()
