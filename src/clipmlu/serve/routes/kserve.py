"""``/v2``: the KServe v2 inference protocol; see ``serve.kserve``."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from clipmlu._version import __version__
from clipmlu.embed.rows import FloatArray
from clipmlu.errors import InputError
from clipmlu.serve.http.answer_types import (
    KserveAnswer,
    KserveError,
    KserveHealth,
    KserveModel,
    KserveModelReady,
    KserveRequest,
    KserveServer,
)
from clipmlu.serve.http.answers import json_response
from clipmlu.serve.http.embedding import embed_request
from clipmlu.serve.http.openapi import answers, json_body
from clipmlu.serve.http.state import deadline_of, note_model, service_of
from clipmlu.serve.kserve.request import LENGTH_HEADER, InferenceRequest, read_request
from clipmlu.serve.kserve.response import write_response
from clipmlu.serve.kserve.view import VERSION, ModelView, server_metadata
from clipmlu.serve.refusal import Refusal
from clipmlu.serve.requests import ImageInput
from clipmlu.serve.served_model import ServedModel
from clipmlu.serve.text_limits import LONGEST_TEXT

router = APIRouter()
_SMALL_BODY = 1 << 20  # read in a fraction of a millisecond if it is binary data, and in a few if it is JSON
_LENGTH = "Bytes of the JSON, after which binary data follow."
_OCTETS = "application/octet-stream"
_BODY = {
    **json_body(KserveRequest, _OCTETS),
    "parameters": [
        {
            "name": LENGTH_HEADER,
            "in": "header",
            "required": False,
            "schema": {"type": "integer"},
            "description": _LENGTH,
        }
    ],
}
_ANSWERS = answers(KserveAnswer, error=KserveError, others={_OCTETS: {"type": "string", "format": "binary"}})


@router.get("/v2", response_class=Response, responses=answers(KserveServer, error=KserveError))
@router.get("/v2/", response_class=Response, responses=answers(KserveServer, error=KserveError))
async def server() -> Response:
    """Describe the server."""
    return json_response(server_metadata(__version__))


@router.get("/v2/health/live", response_class=Response, responses=answers(KserveHealth, error=KserveError))
async def live() -> Response:
    """Answer while the process does."""
    return json_response({"live": True})


@router.get("/v2/health/ready", response_class=Response, responses=answers(KserveHealth, error=KserveError))
async def ready(request: Request) -> Response:
    """Answer whether all models can answer."""
    is_ready = service_of(request).why_not_ready() is None
    return json_response({"live": True, "ready": is_ready}, 200 if is_ready else 503)


@router.get("/v2/models/{name}", response_class=Response, responses=answers(KserveModel, error=KserveError))
@router.get(
    "/v2/models/{name}/versions/{version}", response_class=Response, responses=answers(KserveModel, error=KserveError)
)
async def model(request: Request, name: str, version: str = VERSION) -> Response:
    """Describe a model: its inputs and outputs."""
    _served, view = await _find(request, name, version)
    return json_response(view.metadata())


@router.get("/v2/models/{name}/ready", response_class=Response, responses=answers(KserveModelReady, error=KserveError))
@router.get(
    "/v2/models/{name}/versions/{version}/ready",
    response_class=Response,
    responses=answers(KserveModelReady, error=KserveError),
)
async def model_ready(request: Request, name: str, version: str = VERSION) -> Response:
    """Answer whether a model can answer."""
    await _find(request, name, version)
    is_ready = service_of(request).why_not_ready() is None
    return json_response({"name": name, "ready": is_ready}, 200 if is_ready else 503)


@router.post("/v2/models/{name}/infer", response_class=Response, responses=_ANSWERS, openapi_extra=_BODY)
@router.post(
    "/v2/models/{name}/versions/{version}/infer", response_class=Response, responses=_ANSWERS, openapi_extra=_BODY
)
async def infer(request: Request, name: str, version: str = VERSION) -> Response:
    """Compute the outputs of a model."""
    deadline = deadline_of(request)
    served, view = await _find(request, name, version)
    note_model(request, served)
    body = await request.body()
    arguments = (body, request.headers.get(LENGTH_HEADER), view.inputs, view.outputs)
    # Large bodies are read beside the other requests.
    given = read_request(*arguments) if len(body) <= _SMALL_BODY else await asyncio.to_thread(read_request, *arguments)
    wanted = view.check(given)
    image_rows, text_rows = await _rows(served, given, deadline)
    answer = write_response(name, VERSION, given, view.results(wanted, image_rows, text_rows), view.parameters())
    return Response(answer.body, headers=answer.headers)


async def _find(request: Request, name: str, version: str) -> tuple[ServedModel, ModelView]:
    service = service_of(request)
    served = service.model(name)
    if version != VERSION:
        raise Refusal("unknown_model", f"Model '{name}' has no version '{version}'; its only version is '{VERSION}'.")
    views: dict[str, ModelView] = request.app.state.__dict__.setdefault("kserve_views", {})
    if name not in views:
        # The classes are prepared once.
        classifier = await asyncio.to_thread(lambda: served.classifier)
        options = service.options
        views[name] = ModelView(name, served.encoder, classifier, images=options.max_images, texts=options.max_texts)
    return served, views[name]


async def _rows(
    served: ServedModel, given: InferenceRequest, deadline: float
) -> tuple[FloatArray | None, FloatArray | None]:
    """Return the embeddings of the images and of the texts of a request."""
    values: dict[str, Any] = {name: tensor.values for name, tensor in given.inputs.items()}
    pixels, tokens = values.get("pixel_values"), values.get("input_ids")
    images = [ImageInput(f"images[{position}]", content) for position, content in enumerate(values.get("images", ()))]
    texts = [_text(element, position) for position, element in enumerate(values.get("texts", ()))]
    image_rows = text_rows = None
    if pixels is not None or tokens is not None:
        image_rows, text_rows = await asyncio.wrap_future(served.embed_tensors(pixels, tokens, deadline))
    if images or texts:
        found = await embed_request(served, images, texts, deadline)
        for error in found.errors.values():
            raise InputError(error)
        image_rows = found.rows[: len(images)] if images else image_rows
        text_rows = found.rows[len(images) :] if texts else text_rows
    return image_rows, text_rows


def _text(element: bytes, position: int) -> str:
    if len(element) > LONGEST_TEXT:
        raise InputError(f"texts[{position}] has {len(element)} bytes; expected {LONGEST_TEXT} at most.")
    try:
        return element.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"texts[{position}] is no UTF-8 ({error}).") from error
