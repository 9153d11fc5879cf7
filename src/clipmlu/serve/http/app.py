"""The application: the routes as a FastAPI application, and the edge around it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from clipmlu._version import __version__
from clipmlu.arguments import shown
from clipmlu.errors import ClipmluError, InputError, OptionError, SessionError, ShapeError
from clipmlu.serve.http.access import AccessRules
from clipmlu.serve.http.access_log import AccessLog
from clipmlu.serve.http.answers import error_response
from clipmlu.serve.http.edge import Edge
from clipmlu.serve.http.openapi import DescribedApi
from clipmlu.serve.http.state import request_id_of
from clipmlu.serve.refusal import Refusal
from clipmlu.serve.routes import all_routers
from clipmlu.serve.service import Service

_log = logging.getLogger(__name__)
_CODE_OF_STATUS = {404: "not_found", 405: "method_not_allowed"}


def make_app(
    service: Service, rules: AccessRules | None = None, write_log: Callable[[str], object] | None = None
) -> Edge:
    """Return the application of a service, which closes the service when it ends.

    Args:
        service: the service.
        rules: who may ask; None for requests to names of the loopback.
        write_log: writes a line of the access log; None for no log.
    """
    access_log = AccessLog(write_log)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            service.close()
            access_log.close()

    app = DescribedApi(title="clipmlu", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.service = service
    for router in all_routers():
        app.include_router(router)
    app.add_exception_handler(ClipmluError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(RequestValidationError, _answer_wrong_value)
    app.add_exception_handler(Exception, _answer_bug)
    edge = Edge(app, service, rules or AccessRules(), access_log)
    app.state.metrics = edge.metrics
    return edge


def _respond(request: Request, error: Refusal) -> Response:
    request.scope["clipmlu.reason"] = error.code
    path = str(request.scope["path"])
    return error_response(error.code, str(error), error.status, request_id_of(request), error.headers, path=path)


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, Refusal):
        return _respond(request, error)
    if isinstance(error, (InputError, OptionError, ShapeError)):
        return _respond(request, Refusal("bad_request", str(error)))
    if isinstance(error, SessionError):
        return _respond(request, Refusal("device_failed", str(error)))
    _log.error("Request %s failed: %s", request_id_of(request), error)
    return _respond(request, Refusal("internal", str(error)))


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "FastAPI calls this for such errors"
    code = _CODE_OF_STATUS.get(error.status_code, "bad_request")
    path = str(request.scope["path"])[:200]
    what = {
        "not_found": f"There is no '{path}'; GET /docs lists the routes.",
        "method_not_allowed": f"'{path}' takes no {request.method}.",
    }
    return _respond(request, Refusal(code, what.get(code, str(error.detail)), error.headers))


async def _answer_wrong_value(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError), "FastAPI calls this for such errors"
    return _respond(request, Refusal("bad_request", " ".join(map(_wrong_value, error.errors()))))


def _wrong_value(found: Mapping[str, Any]) -> str:
    """Return what is wrong with one parameter of a route, from an error of pydantic."""
    place, name = found["loc"][0], found["loc"][-1]
    if found["type"] == "missing":
        return f"The {place} parameter '{name}' is missing."
    message = str(found["msg"])
    return f"The {place} parameter '{name}' is {shown(found['input'])}: {message[:1].lower()}{message[1:]}."


async def _answer_bug(request: Request, _error: Exception) -> Response:
    """Answer an unexpected error, which the edge logs."""
    return _respond(request, Refusal("internal", "An error of the server; its log has the details."))
