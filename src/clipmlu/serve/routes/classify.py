"""``POST /v1/classify``."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from clipmlu.clock import now
from clipmlu.serve.http.answers import json_response
from clipmlu.serve.http.bodies import read_classify
from clipmlu.serve.http.state import service_of

router = APIRouter()


@router.post("/v1/classify")
async def classify(request: Request) -> Response:
    """Return the classes of images."""
    start = now()
    service = service_of(request)
    given = await read_classify(request)
    model = service.model(given.model)
    pending = model.classify(given.images, given.classes, given.top_k, start + service.options.timeout_s)
    predictions = await asyncio.wrap_future(pending)
    return json_response(
        {
            "model": model.name,
            **predictions.to_dict(),
            "emulated": model.emulated,
            "time_ms": round((now() - start) * 1000, 3),
        }
    )
