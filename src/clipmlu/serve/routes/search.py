"""``POST /v1/search`` and the small pictures of what it finds."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from fastapi import APIRouter, Request, Response
from starlette.datastructures import UploadFile

from clipmlu.clock import now
from clipmlu.serve.http.answers import json_response
from clipmlu.serve.http.state import service_of
from clipmlu.serve.refusal import Refusal
from clipmlu.serve.requests import ImageInput
from clipmlu.serve.searching import SearchRequest, ServedIndex

router = APIRouter()


class _Image(msgspec.Struct, forbid_unknown_fields=True):
    data: bytes
    id: str | None = None


class _Search(msgspec.Struct, forbid_unknown_fields=True):
    model: str | None = None
    text: str | list[str] = []
    image: bytes | _Image | list[bytes | _Image] = []
    weights: list[float] | None = None
    top_k: int | None = None
    include: str | list[str] = []
    exclude: str | list[str] = []
    exact: bool = False


@router.post("/v1/search")
async def search(request: Request) -> Response:
    """Find the images of the index that are most similar to a text, an image, or both."""
    start = now()
    service = service_of(request)
    index = _index_of(request)
    given = await _read(request)
    index.check(given, service.options)
    model = service.model(index.model_name(given.model))
    found = await asyncio.wrap_future(model.embed(given.images, given.texts, start + service.options.timeout_s))
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


@router.get("/v1/thumbnail/{row}")
async def thumbnail(request: Request, row: int, id: str) -> Response:  # noqa: A002 -- a name of the API
    """Return a small picture of a hit, by its row and id."""
    content = await asyncio.to_thread(_index_of(request).thumbnail, row, id)
    headers = {"Cache-Control": "private, max-age=300", "X-Content-Type-Options": "nosniff"}
    return Response(content, media_type="image/jpeg", headers=headers)


def _index_of(request: Request) -> ServedIndex:
    index = service_of(request).index
    if index is None:
        raise Refusal("not_found", "The server has no index; start it with --index DIR.")
    return index


async def _read(request: Request) -> SearchRequest:
    kind = str(request.headers.get("content-type", "")).partition(";")[0].strip().lower()
    if kind == "application/json":
        return _request(_decoded(await request.body()), [])
    query = {name: request.query_params.getlist(name) for name in request.query_params}
    if kind != "multipart/form-data":
        return _request(_from_texts(query), [ImageInput("image 0", await request.body())])
    texts: dict[str, list[str]] = {}
    images: list[ImageInput] = []
    async with request.form() as form:
        for name, part in form.multi_items():
            if isinstance(part, UploadFile):
                if name != "image":
                    raise Refusal("bad_request", f"The form has a file in the part '{name}'; expected 'image'.")
                images.append(ImageInput(part.filename or f"image {len(images)}", await part.read()))
            else:
                texts.setdefault(name, []).append(part)
    return _request(_from_texts({**query, **texts}), images)


def _decoded(body: bytes) -> _Search:
    try:
        return msgspec.json.decode(body, type=_Search)
    except msgspec.DecodeError as error:
        raise Refusal("bad_request", f"The JSON body cannot be read: {error}.") from error


def _from_texts(given: Mapping[str, list[str]]) -> _Search:
    """Return the options of a form or a query; each is a text, or several of the same name."""
    values: dict[str, Any] = dict(given)
    for name in ("model", "top_k", "exact"):
        if name in values:
            values[name] = values[name][-1]
    try:
        return msgspec.convert(values, _Search, strict=False)
    except msgspec.ValidationError as error:
        raise Refusal("bad_request", f"The options cannot be read: {error}.") from error


def _request(given: _Search, files: Sequence[ImageInput]) -> SearchRequest:
    images = given.image if isinstance(given.image, list) else [given.image]
    inputs = [_image(position, image) for position, image in enumerate(images)]
    return SearchRequest(
        model=given.model,
        texts=[given.text] if isinstance(given.text, str) else given.text,
        images=[*inputs, *files],
        weights=given.weights,
        top_k=given.top_k,
        include=[given.include] if isinstance(given.include, str) else given.include,
        exclude=[given.exclude] if isinstance(given.exclude, str) else given.exclude,
        exact=given.exact,
    )


def _image(position: int, image: bytes | _Image) -> ImageInput:
    if isinstance(image, bytes):
        return ImageInput(f"image {position}", image)
    return ImageInput(image.id or f"image {position}", image.data)
