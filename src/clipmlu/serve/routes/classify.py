"""``POST /v1/classify``."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from clipmlu.clock import now
from clipmlu.serve.http.answer_types import ClassifyAnswer
from clipmlu.serve.http.answers import json_response
from clipmlu.serve.http.bodies import CLASSIFY_LISTS, ClassifyBody, read_classify
from clipmlu.serve.http.openapi import answers, image_body
from clipmlu.serve.http.state import deadline_of, note_model, service_of
from clipmlu.serve.refusal import Refusal

router = APIRouter()


@router.post(
    "/v1/classify",
    response_class=Response,
    responses=answers(ClassifyAnswer),
    openapi_extra=image_body(ClassifyBody, CLASSIFY_LISTS),
)
async def classify(request: Request) -> Response:
    """Return the classes of images."""
    start = now()
    service = service_of(request)
    given = await read_classify(request, service.options.max_images)
    model = service.model(given.model)
    note_model(request, model, images=len(given.images))
    pending = model.classify(given.images, given.classes, given.top_k, deadline_of(request))
    predictions = await asyncio.wrap_future(pending)
    if len(predictions.errors) == len(predictions):
        raise Refusal("bad_image", predictions.errors[0])
    return json_response(
        {
            "model": model.name,
            **predictions.to_dict(),
            "emulated": model.emulated,
            "time_ms": round((now() - start) * 1000, 3),
        }
    )
