"""``POST /v1/embed``."""

from __future__ import annotations

import io

import numpy as np
from fastapi import APIRouter, Request, Response

from clipmlu.clock import now
from clipmlu.serve.http.answer_types import EmbedAnswer
from clipmlu.serve.http.answers import json_response
from clipmlu.serve.http.bodies import EMBED_LISTS, EmbedBody, read_embed
from clipmlu.serve.http.embedding import embed_request
from clipmlu.serve.http.openapi import answers, image_body
from clipmlu.serve.http.state import deadline_of, note_model, service_of
from clipmlu.serve.refusal import Refusal

router = APIRouter()
_NPY = "application/x-npy"


@router.post(
    "/v1/embed",
    response_class=Response,
    responses=answers(EmbedAnswer, others={_NPY: {"type": "string", "format": "binary"}}),
    openapi_extra=image_body(EmbedBody, EMBED_LISTS),
)
async def embed(request: Request) -> Response:
    """Return the embeddings of images and texts."""
    start = now()
    service = service_of(request)
    given = await read_embed(request, service.options.max_images)
    model = service.model(given.model)
    note_model(request, model, images=len(given.images), texts=len(given.texts))
    found = await embed_request(model, given.images, given.texts, deadline_of(request))
    count = len(given.images)
    if count and len(found.errors) == count and not given.texts:
        raise Refusal("bad_image", found.errors[0])
    if _NPY in str(request.headers.get("accept", "")):
        return Response(_npy_file(found.rows), media_type=_NPY, headers={"X-Clipmlu-Unreadable": _places(found.errors)})
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


def _npy_file(rows: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(rows, np.float32), allow_pickle=False)
    return file.getvalue()


def _places(errors: dict[int, str]) -> str:
    return ",".join(map(str, errors))
