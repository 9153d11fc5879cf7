"""``GET /health``, ``/ready``, ``/metrics`` and ``/v1/models``."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from clipmlu.serve.http.answer_types import ModelsAnswer, StatusAnswer
from clipmlu.serve.http.answers import json_response
from clipmlu.serve.http.openapi import answers, content
from clipmlu.serve.http.state import service_of
from clipmlu.serve.refusal import Refusal

router = APIRouter()


@router.get("/health", response_class=Response, responses=answers(StatusAnswer))
async def health() -> Response:
    """Answer while the process does."""
    return json_response({"status": "ok"})


@router.get("/ready", response_class=Response, responses=answers(StatusAnswer))
async def ready(request: Request) -> Response:
    """Answer whether requests can be answered now."""
    service = service_of(request)
    reason = service.why_not_ready()
    if reason is not None:
        raise Refusal("stopping" if service.stopping else "not_ready", reason)
    return json_response({"status": "ready"})


@router.get("/metrics", response_class=Response, responses=content("text/plain", {"type": "string"}))
async def metrics(request: Request) -> Response:
    """Return the figures for Prometheus."""
    figures = await asyncio.to_thread(request.app.state.metrics.render)
    return Response(figures, media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/models", response_class=Response, responses=answers(ModelsAnswer))
async def models(request: Request) -> Response:
    """Describe the served bundles, the index and the limits of requests."""
    service = service_of(request)
    options = service.options
    limits = {"max_images": options.max_images, "max_texts": options.max_texts, "max_body": options.max_body}
    index = None if service.index is None else service.index.describe()
    described = [model.describe() for model in service.models.values()]
    return json_response({"models": described, "index": index, "limits": limits})
