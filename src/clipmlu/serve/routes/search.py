"""``POST /v1/search`` and the small pictures of what it finds."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from fastapi import APIRouter, Request, Response

from clipmlu.clock import now
from clipmlu.serve.http.answer_types import SearchAnswer
from clipmlu.serve.http.answers import json_response
from clipmlu.serve.http.bodies import (
    SearchBody,
    image_inputs,
    kind_of,
    parse_json,
    read_images_and_fields,
    reason_of_type,
)
from clipmlu.serve.http.embedding import embed_request
from clipmlu.serve.http.openapi import answers, content, image_body
from clipmlu.serve.http.state import deadline_of, note_model, service_of
from clipmlu.serve.refusal import Refusal
from clipmlu.serve.requests import ImageInput
from clipmlu.serve.searching import SearchRequest, ServedIndex

router = APIRouter()
_SINGLE = ("model", "top_k", "exact")  # options that are no lists


@router.post(
    "/v1/search",
    response_class=Response,
    responses=answers(SearchAnswer),
    openapi_extra=image_body(SearchBody, ("text", "weights", "include", "exclude")),
)
async def search(request: Request) -> Response:
    """Find the images of the index that are most similar to a text, an image, or both."""
    start = now()
    service = service_of(request)
    index = _index_of(request)
    given = await _read(request, service.options.max_images)
    index.check(given, service.options)
    model = service.model(index.model_name(given.model))
    note_model(request, model, emulated=index.emulated, images=len(given.images), texts=len(given.texts))
    found = await embed_request(model, given.images, given.texts, deadline_of(request))
    if found.errors:
        raise Refusal("bad_image", next(iter(found.errors.values())))
    result = await asyncio.to_thread(index.search, given, np.asarray(found.rows, np.float32))
    return json_response(
        {
            "model": model.name,
            **result,
            "emulated": index.emulated or model.emulated,
            "time_ms": round((now() - start) * 1000, 3),
        }
    )


@router.get("/v1/thumbnail/{row}", response_class=Response, responses=content("image/jpeg"))
async def thumbnail(request: Request, row: int, id: str) -> Response:  # noqa: A002 -- a name of the API
    """Return a small picture of a hit, by its row and id."""
    picture = await asyncio.to_thread(_index_of(request).thumbnail, row, id)
    headers = {"Cache-Control": "private, max-age=300", "X-Content-Type-Options": "nosniff"}
    return Response(picture, media_type="image/jpeg", headers=headers)


def _index_of(request: Request) -> ServedIndex:
    index = service_of(request).index
    if index is None:
        raise Refusal("not_found", "The server has no index; start it with --index DIR.")
    return index


async def _read(request: Request, max_images: int) -> SearchRequest:
    kind = kind_of(request)
    if kind == "application/json":
        given = await parse_json(await request.body(), SearchBody)
        return _request(given, image_inputs(given.image if isinstance(given.image, list) else [given.image]))
    images, fields = await read_images_and_fields(request, kind, max_images)
    return _request(_from_texts(fields), images)


def _from_texts(given: Mapping[str, list[str]]) -> SearchBody:
    """Return the options of a form or a query; each is a text, or several of the same name."""
    values: dict[str, Any] = {name: texts[-1] if name in _SINGLE else texts for name, texts in given.items()}
    try:
        return msgspec.convert(values, SearchBody, strict=False)
    except msgspec.ValidationError as error:
        raise Refusal(
            "bad_request", f"An option of the request is wrong: {reason_of_type(error, SearchBody)}."
        ) from error


def _request(given: SearchBody, images: Sequence[ImageInput]) -> SearchRequest:
    return SearchRequest(
        model=given.model,
        texts=_list(given.text),
        images=images,
        weights=given.weights,
        top_k=given.top_k,
        include=_list(given.include),
        exclude=_list(given.exclude),
        exact=given.exact,
    )


def _list(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given
