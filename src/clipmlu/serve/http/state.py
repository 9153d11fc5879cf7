"""What a route finds at its request: the service and the request's id."""

from __future__ import annotations

from typing import cast

from fastapi import Request

from clipmlu.serve.service import Service


def service_of(request: Request) -> Service:
    """Return the service of the application."""
    return cast("Service", request.app.state.service)


def request_id_of(request: Request) -> str:
    """Return the id of the request."""
    return str(request.scope.get("clipmlu.request_id", ""))
