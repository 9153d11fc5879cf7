"""The FastAPI application."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request, Response

from clipmlu._version import __version__
from clipmlu.errors import ClipmluError, InputError, OptionError
from clipmlu.serve.http.answers import error_response
from clipmlu.serve.http.state import request_id_of
from clipmlu.serve.refusal import STATUS_OF, Refusal
from clipmlu.serve.routes import all_routers
from clipmlu.serve.service import Service


def make_app(service: Service) -> FastAPI:
    """Return the application of a service, which closes the service when it ends."""

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            service.close()

    app = FastAPI(title="clipmlu", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.service = service
    for router in all_routers():
        app.include_router(router)
    app.add_exception_handler(ClipmluError, _answer_error)
    return app


async def _answer_error(request: Request, error: Exception) -> Response:
    code = "bad_request" if isinstance(error, (InputError, OptionError)) else "internal"
    headers: dict[str, str] = {}
    if isinstance(error, Refusal):
        code, headers = error.code, error.headers
    path = request.url.path
    return error_response(code, str(error), STATUS_OF[code], request_id_of(request), headers, path=path)
