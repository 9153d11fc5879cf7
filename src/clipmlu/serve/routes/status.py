"""``GET /health``, ``/ready`` and ``/v1/models``."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from clipmlu.serve.http.answers import json_response
from clipmlu.serve.http.state import service_of
from clipmlu.serve.refusal import Refusal

router = APIRouter()


@router.get("/health")
async def health() -> Response:
    """Answer while the process does."""
    return json_response({"status": "ok"})


@router.get("/ready")
async def ready(request: Request) -> Response:
    """Answer whether requests can be answered now."""
    reason = service_of(request).why_not_ready()
    if reason is not None:
        raise Refusal("not_ready", reason)
    return json_response({"status": "ready"})


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """Describe the served bundles and the index."""
    service = service_of(request)
    index = None if service.index is None else service.index.describe()
    return json_response({"models": [model.describe() for model in service.models.values()], "index": index})
