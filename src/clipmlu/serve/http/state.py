"""What a route finds at its request: the service, the request's id and its deadline."""

from __future__ import annotations

from typing import Any, cast

from fastapi import Request

from clipmlu.clock import now
from clipmlu.serve.served_model import ServedModel
from clipmlu.serve.service import Service


def service_of(request: Request) -> Service:
    """Return the service of the application."""
    return cast("Service", request.app.state.service)


def request_id_of(request: Request) -> str:
    """Return the id of the request."""
    return str(request.scope.get("clipmlu.request_id", ""))


def deadline_of(request: Request) -> float:
    """Return the time of ``clock.now`` at which the answer is useless."""
    found = request.scope.get("clipmlu.deadline")
    return now() + service_of(request).options.timeout_s if found is None else float(found)


def note_model(request: Request, model: ServedModel, *, emulated: bool = False, **facts: Any) -> None:
    """Say which bundle answers, for the headers of the answer and for the log; ``emulated``: other data is emulated, too."""
    request.scope["clipmlu.emulated"] = model.emulated or emulated
    request.scope["clipmlu.log"] = {"model": model.name, **facts}
