"""``POST /v1/embed``."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from clipmlu.clock import now
from clipmlu.serve.http.answers import json_response
from clipmlu.serve.http.bodies import read_embed
from clipmlu.serve.http.state import service_of

router = APIRouter()


@router.post("/v1/embed")
async def embed(request: Request) -> Response:
    """Return the embeddings of images and texts."""
    start = now()
    service = service_of(request)
    given = await read_embed(request)
    model = service.model(given.model)
    pending = model.embed(given.images, given.texts, start + service.options.timeout_s)
    found = await asyncio.wrap_future(pending)
    count = len(given.images)
    rows = [None if position in found.errors else row.tolist() for position, row in enumerate(found.rows)]
    return json_response(
        {
            "model": model.name,
            "image_embeddings": rows[:count],
            "text_embeddings": rows[count:],
            "errors": [
                {"source": given.images[position].id, "index": position, "error": error}
                for position, error in found.errors.items()
            ],
            "emulated": model.emulated,
            "time_ms": round((now() - start) * 1000, 3),
        }
    )
