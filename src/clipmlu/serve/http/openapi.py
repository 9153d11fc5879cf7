"""The OpenAPI document: what the routes take and answer, from the types that read requests and describe answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI

from clipmlu.serve.http import answer_types, bodies
from clipmlu.serve.http.answer_types import ErrorAnswer

_REFERENCE = "#/components/schemas/{name}"
_BINARY = {"type": "string", "format": "binary"}
_IMAGES = ("image", "images")
_TYPES = (
    bodies.ClassifyBody,
    bodies.EmbedBody,
    bodies.SearchBody,
    answer_types.ClassifyAnswer,
    answer_types.EmbedAnswer,
    answer_types.SearchAnswer,
    answer_types.ModelsAnswer,
    answer_types.StatusAnswer,
    answer_types.ErrorAnswer,
    answer_types.KserveError,
    answer_types.KserveServer,
    answer_types.KserveHealth,
    answer_types.KserveModelReady,
    answer_types.KserveModel,
    answer_types.KserveRequest,
    answer_types.KserveAnswer,
)


class DescribedApi(FastAPI):
    """An application whose OpenAPI document has the schemas that ``answers`` and ``image_body`` refer to."""

    def openapi(self) -> dict[str, Any]:
        """Return the document."""
        document: dict[str, Any] = super().openapi()
        _, schemas = msgspec.json.schema_components(_TYPES, ref_template=_REFERENCE)
        document.setdefault("components", {})["schemas"] = schemas
        return document


def answers(
    kind: type, *, error: type = ErrorAnswer, others: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[int | str, dict[str, Any]]:
    """Return the argument ``responses`` of a route.

    Args:
        kind: the answer in JSON.
        error: the answer to a request that is refused or fails.
        others: other forms of the answer: schemas by media type.
    """
    more = {media_type: {"schema": schema} for media_type, schema in (others or {}).items()}
    return {
        200: {"description": "The answer.", "content": {**_json(kind), **more}},
        "default": {"description": "Why the request was refused, or failed.", "content": _json(error)},
    }


def content(media_type: str, schema: Mapping[str, Any] | None = None) -> dict[int | str, dict[str, Any]]:
    """Return the argument ``responses`` of a route whose answer is no JSON; None for binary data."""
    return {
        200: {"description": "The answer.", "content": {media_type: {"schema": schema or _BINARY}}},
        "default": {"description": "Why the request was refused, or failed.", "content": _json(ErrorAnswer)},
    }


def image_body(kind: type, lists: Sequence[str]) -> dict[str, Any]:
    """Return the argument ``openapi_extra`` of a route that takes JSON, a form, or the bytes of one image.

    Args:
        kind: the type of the JSON.
        lists: the options that may be repeated in a form or a query.
    """
    _, schemas = msgspec.json.schema_components([kind], ref_template=_REFERENCE)
    properties: Mapping[str, Any] = schemas[kind.__name__]["properties"]
    options = {
        name: {"type": "array", "items": {"type": "string"}} if name in lists else _plain(schema)
        for name, schema in properties.items()
        if name not in _IMAGES
    }
    form = {"type": "object", "properties": {"image": {"type": "array", "items": _BINARY}, **options}}
    parts = {"application/json": _json(kind)["application/json"], "multipart/form-data": {"schema": form}}
    raw = {media_type: {"schema": _BINARY} for media_type in ("image/*", "application/octet-stream")}
    return {
        "requestBody": {"required": True, "content": {**parts, **raw}},
        "parameters": [
            {
                "name": name,
                "in": "query",
                "required": False,
                "schema": schema,
                "description": "For a form, or the bytes of an image.",
            }
            for name, schema in options.items()
        ],
    }


def json_body(kind: type, *others: str) -> dict[str, Any]:
    """Return the argument ``openapi_extra`` of a route that takes JSON, or binary data of other media types."""
    binary = {media_type: {"schema": _BINARY} for media_type in others}
    return {"requestBody": {"required": True, "content": {**_json(kind), **binary}}}


def _json(kind: type) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFERENCE.format(name=kind.__name__)}}}


def _plain(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of an option as one text: in a form or a query it is left out instead of null."""
    found = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    return {name: value for name, value in found[0].items() if name != "default"}
