"""Reading the body of a request, and what it asks for in any of its forms."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import Request

from clipmlu.serve.refusal import Refusal
from clipmlu.serve.requests import ClassesInput, ClassifyRequest, EmbedRequest, ImageInput


class _Image(msgspec.Struct, forbid_unknown_fields=True):
    data: bytes | None = None
    url: str | None = None
    id: str | None = None


class _Classify(msgspec.Struct, forbid_unknown_fields=True):
    images: list[bytes | _Image]
    model: str | None = None
    labels: list[str] | dict[str, str | list[str]] | None = None
    templates: str | list[str] | None = None
    top_k: int | None = None
    none_label: str | None = None
    background: list[str] | None = None
    reject_below: float | None = None


class _Embed(msgspec.Struct, forbid_unknown_fields=True):
    model: str | None = None
    images: list[bytes | _Image] = []
    texts: list[str] = []


async def read_classify(request: Request) -> ClassifyRequest:
    """Read a request for the classes of images."""
    body = await request.body()
    if _kind(request) == "application/json":
        given = _decode(body, _Classify)
        labels = given.labels
        if isinstance(labels, dict):
            labels = {name: [each] if isinstance(each, str) else each for name, each in labels.items()}
        templates = [given.templates] if isinstance(given.templates, str) else given.templates
        return ClassifyRequest(
            model=given.model,
            images=_images(given.images),
            classes=ClassesInput(
                labels=labels,
                templates=templates,
                none_label=given.none_label,
                background=given.background,
                reject_below=given.reject_below,
            ),
            top_k=given.top_k,
        )
    query = request.query_params
    return ClassifyRequest(
        model=query.get("model"),
        images=[ImageInput("image 0", body)],
        classes=ClassesInput(labels=query.getlist("labels") or None, templates=query.getlist("templates") or None),
        top_k=int(query["top_k"]) if "top_k" in query else None,
    )


async def read_embed(request: Request) -> EmbedRequest:
    """Read a request for embeddings."""
    body = await request.body()
    if _kind(request) == "application/json":
        given = _decode(body, _Embed)
        return EmbedRequest(model=given.model, images=_images(given.images), texts=given.texts)
    return EmbedRequest(model=request.query_params.get("model"), images=[ImageInput("image 0", body)])


def _kind(request: Request) -> str:
    return str(request.headers.get("content-type", "")).partition(";")[0].strip().lower()


def _decode(body: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise Refusal("bad_request", f"The JSON body cannot be read: {error}.") from error


def _images(given: list[bytes | _Image]) -> list[ImageInput]:
    return [
        ImageInput(f"image {position}", image)
        if isinstance(image, bytes)
        else ImageInput(image.id or image.url or f"image {position}", image.data, image.url)
        for position, image in enumerate(given)
    ]
