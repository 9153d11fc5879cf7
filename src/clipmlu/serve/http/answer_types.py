"""The answers of the routes as types, which the OpenAPI document describes."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType


class _Type(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An answer, or a part of one."""


class ClassScore(_Type):
    """A class of an image: its position among the classes, and its score, 0..1."""

    class_name: str
    index: int
    score: float


class ImageClasses(_Type):
    """The classes of an image, best first; none if it cannot be read, for the reason in ``error``."""

    source: str
    predictions: list[ClassScore]
    error: str | UnsetType = UNSET
    rejected: bool | UnsetType = UNSET
    emulated: bool | UnsetType = UNSET


class ClassifyAnswer(_Type):
    """The classes of the images of a request, in order."""

    model: str
    results: list[ImageClasses]
    emulated: bool
    time_ms: float


class UnreadableImage(_Type):
    """An image that cannot be read: its name, its position in the request, and the reason."""

    source: str
    index: int
    error: str


class EmbedAnswer(_Type):
    """Embeddings of unit length; null for an image that cannot be read."""

    model: str
    image_embeddings: list[list[float] | None]
    text_embeddings: list[list[float]]
    errors: list[UnreadableImage]
    emulated: bool
    time_ms: float


class SearchHit(_Type):
    """An image that was found: its name, its cosine similarity to the query, and its row in the index."""

    id: str
    score: float
    row: int


class SearchAnswer(_Type):
    """The images that were found, best first; ``recall`` is null if all rows were searched."""

    model: str
    query: str
    hits: list[SearchHit]
    rows: int
    recall: float | None
    emulated: bool
    time_ms: float


class ModelFacts(_Type):
    """A served bundle; ``labels`` are the classes of requests that give none."""

    name: str
    model: str
    target: str
    precision: str
    layout: str
    embedding_dim: int
    emulated: bool
    labels: list[str] | None
    digest: str


class IndexFacts(_Type):
    """The index of ``/v1/search``: its rows, and the bundles that embed queries for it."""

    rows: int
    models: list[str]
    emulated: bool
    recall: float | None


class RequestLimits(_Type):
    """The limits of one request: images, texts, and bytes of its body."""

    max_images: int
    max_texts: int
    max_body: int


class ModelsAnswer(_Type):
    """The served bundles, the index, and the limits of requests."""

    models: list[ModelFacts]
    index: IndexFacts | None
    limits: RequestLimits


class StatusAnswer(_Type):
    """Whether the process answers, or is ready."""

    status: str


class ErrorFacts(_Type):
    """A code for programs, a message for people, and the id of the request."""

    code: str
    message: str
    request_id: str


class ErrorAnswer(_Type):
    """Why a request was refused, or failed."""

    error: ErrorFacts


class KserveError(_Type):
    """Why a request below ``/v2`` was refused, or failed."""

    error: str


class KserveServer(_Type):
    """The server, its version, and the extensions of the protocol that it has."""

    name: str
    version: str
    extensions: list[str]


class KserveHealth(_Type):
    """Whether the process lives, and whether all models can answer."""

    live: bool
    ready: bool | UnsetType = UNSET


class KserveModelReady(_Type):
    """Whether a model can answer."""

    name: str
    ready: bool


class KserveTensorFacts(_Type):
    """An input or output of a model; -1 in the shape stands for any number."""

    name: str
    datatype: str
    shape: list[int]


class KserveModel(_Type):
    """A model: its inputs and outputs, and the facts of its bundle."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[KserveTensorFacts]
    outputs: list[KserveTensorFacts]
    parameters: dict[str, str | bool | int]


class KserveInput(msgspec.Struct, kw_only=True):
    """An input: its values in ``data``, or as binary data after the JSON (``binary_data_size`` in ``parameters``)."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | UnsetType = UNSET
    data: list[Any] | UnsetType = UNSET


class KserveWanted(msgspec.Struct, kw_only=True):
    """An output that a request asks for."""

    name: str
    parameters: dict[str, Any] | UnsetType = UNSET


class KserveRequest(msgspec.Struct, kw_only=True):
    """An inference request; see docs/howto/kserve.md of the package."""

    inputs: list[KserveInput]
    id: str | UnsetType = UNSET
    parameters: dict[str, Any] | UnsetType = UNSET
    outputs: list[KserveWanted] | UnsetType = UNSET


class KserveOutput(_Type):
    """An output: its values in ``data``, or as binary data after the JSON (``binary_data_size`` in ``parameters``)."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | UnsetType = UNSET
    data: list[Any] | UnsetType = UNSET


class KserveAnswer(_Type):
    """The outputs of an inference request."""

    model_name: str
    model_version: str
    outputs: list[KserveOutput]
    id: str | UnsetType = UNSET
    parameters: dict[str, Any] | UnsetType = UNSET
