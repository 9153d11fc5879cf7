"""Reading the body of a request, and what it asks for in any of its forms: JSON, a form, or the bytes of one image."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from clipmlu.data.class_names import COMMAS
from clipmlu.errors import wrong_choice
from clipmlu.serve.refusal import Refusal
from clipmlu.serve.requests import ClassesInput, ClassifyRequest, EmbedRequest, ImageInput

logging.getLogger("python_multipart").addHandler(logging.NullHandler())  # what clients send is no matter of the log
Parsed = TypeVar("Parsed")
_INLINE_BYTES = 256 << 10  # JSON up to this size takes less time to parse than to hand to a thread
_LONGEST_ID = 500
_MOST_FIELDS = 10_000
_FIELD_BYTES = 1 << 20
_FILE_PARTS = ("image", "images")
CLASSIFY_LISTS = ("labels", "templates", "background")
"""Options of a request for classes that are lists."""
EMBED_LISTS = ("texts",)
"""Options of a request for embeddings that are lists."""
_UNKNOWN = re.compile("Object contains unknown field `(.*)`", re.DOTALL)
_MOST_VALUES = 1 << 17  # of a JSON body: as objects, small values take twenty times the memory of their text


class JsonImage(msgspec.Struct, forbid_unknown_fields=True):
    """An image of a JSON body that is more than base64 text."""

    data: bytes | None = None
    url: str | None = None
    id: str | None = None


class _Classes(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    model: str | None = None
    labels: list[str] | dict[str, str | list[str]] | None = None
    templates: str | list[str] | None = None
    top_k: int | None = None
    none_label: str | None = None
    background: list[str] | None = None
    reject_below: float | None = None


class ClassifyBody(_Classes, forbid_unknown_fields=True, kw_only=True):
    """A request for the classes of images in JSON."""

    images: list[bytes | JsonImage]


class EmbedBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A request for embeddings in JSON."""

    model: str | None = None
    images: list[bytes | JsonImage] = []
    texts: list[str] = []


class SearchBody(msgspec.Struct, forbid_unknown_fields=True):
    """A search in JSON: its texts and images together are one query."""

    model: str | None = None
    text: str | list[str] = []
    image: bytes | JsonImage | list[bytes | JsonImage] = []
    weights: list[float] | None = None
    top_k: int | None = None
    include: str | list[str] = []
    exclude: str | list[str] = []
    exact: bool = False


class _Form(MultiPartParser):
    spool_max_size = 1 << 40  # files stay in memory: the body is limited, and a disk would be slower and fill
    complete = False

    def on_end(self) -> None:
        self.complete = True


async def read_classify(request: Request, max_images: int) -> ClassifyRequest:
    """Read a request for the classes of images.

    Raises:
        Refusal: it cannot be parsed, or is too large.
    """
    kind = kind_of(request)
    if kind == "application/json":
        given = await parse_json(await request.body(), ClassifyBody)
        return _classify_request(given, image_inputs(given.images))
    images, fields = await read_images_and_fields(request, kind, max_images)
    return _classify_request(_from_fields(fields, _Classes, CLASSIFY_LISTS), images)


async def read_embed(request: Request, max_images: int) -> EmbedRequest:
    """Read a request for embeddings.

    Raises:
        Refusal: it cannot be parsed, or is too large.
    """
    kind = kind_of(request)
    if kind == "application/json":
        given = await parse_json(await request.body(), EmbedBody)
        if not given.images and not given.texts:
            raise Refusal("bad_request", "The request has neither images nor texts.")
        return EmbedRequest(model=given.model, images=image_inputs(given.images), texts=given.texts)
    images, fields = await read_images_and_fields(request, kind, max_images)
    found = _from_fields(fields, EmbedBody, EMBED_LISTS)
    return EmbedRequest(model=found.model, images=images, texts=found.texts)


def kind_of(request: Request) -> str:
    """Return the media type of the body, in lower case and without parameters."""
    return str(request.headers.get("content-type", "")).partition(";")[0].strip().lower()


async def parse_json(body: bytes, kind: type[Parsed]) -> Parsed:
    """Return the JSON of a body as a struct; base64 becomes bytes.

    Raises:
        Refusal: it is no such JSON.
    """
    if len(body) <= _INLINE_BYTES:
        return _decode(body, kind)
    return await asyncio.to_thread(_decode, body, kind)


class _File(NamedTuple):
    name: str | None
    content: bytes


async def _read_form(request: Request, max_files: int) -> list[tuple[str, str | _File]]:
    """Return the parts of a form, by their names.

    Raises:
        Refusal: it is no form, or has too many parts.
    """
    try:
        parser = _Form(
            request.headers, request.stream(), max_files=max_files, max_fields=_MOST_FIELDS, max_part_size=_FIELD_BYTES
        )
        parts = (await parser.parse()).multi_items()
    except (MultiPartException, KeyError, UnicodeError) as error:
        reason = getattr(error, "message", "it has no boundary, or another charset").rstrip(".")
        code = "too_large" if reason.startswith("Too many") or "maximum size" in reason else "bad_request"
        raise Refusal(code, f"The form cannot be read: {reason}. At most {max_files} files are taken.") from error
    found = [(name, part if isinstance(part, str) else await _content_of(part)) for name, part in parts]
    if not parser.complete:  # its last part would be missing
        raise Refusal("bad_request", "The form cannot be read: it ends without its closing boundary.")
    return found


async def _content_of(part: UploadFile) -> _File:
    try:
        return _File(part.filename, await part.read())
    finally:
        await part.close()


async def read_images_and_fields(
    request: Request, kind: str, max_images: int
) -> tuple[list[ImageInput], dict[str, list[str]]]:
    """Read the images of a body that is no JSON, and the texts of each option of the form or the query.

    Raises:
        Refusal: it is no form and no image, or is too large.
    """
    query: dict[str, list[str]] = {}
    for name, value in request.query_params.multi_items():
        query.setdefault(name, []).append(value)
    if kind == "multipart/form-data":
        return await _form(request, query, max_images)
    if not kind.startswith("image/") and kind != "application/octet-stream":
        raise Refusal(
            "unsupported_media_type",
            f"Content-Type is '{kind[:100]}'; expected application/json, multipart/form-data, or image/* for the bytes of one image.",
        )
    content = await request.body()
    if not content:
        raise Refusal("bad_request", "The body is empty; expected the bytes of an image.")
    return [ImageInput("image 0", content)], query


async def _form(
    request: Request, fields: dict[str, list[str]], max_images: int
) -> tuple[list[ImageInput], dict[str, list[str]]]:
    images: list[ImageInput] = []
    for name, value in await _read_form(request, max_images):
        if isinstance(value, str):
            fields.setdefault(name, []).append(value)
        elif name in _FILE_PARTS:
            images.append(ImageInput(_id(value.name, len(images)), value.content))
        else:
            raise Refusal(
                "bad_request", f"The form has a file in part '{name[:100]}'; expected files in parts named 'image'."
            )
    return images, fields


def _from_fields(fields: Mapping[str, Sequence[str]], kind: type[Parsed], lists: Sequence[str]) -> Parsed:
    values: dict[str, Any] = {
        name: _list(name, texts) if name in lists else texts[-1] for name, texts in fields.items()
    }
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise Refusal("bad_request", f"An option of the request is wrong: {reason_of_type(error, kind)}.") from error


def reason_of_type(error: Exception, kind: type) -> str:
    """Return why JSON or options are not of a type; of an unknown field also which there are."""
    unknown = _UNKNOWN.fullmatch(str(error))
    if unknown is None:
        return str(error)
    return wrong_choice("a field", unknown[1], [field.name for field in msgspec.structs.fields(kind)])


def _list(name: str, texts: Sequence[str]) -> Any:
    """Return the values of an option that is a list: repeated, as JSON, or for labels separated by commas."""
    if len(texts) > 1:
        return list(texts)
    text = texts[0].strip()
    if (text[:1] in ("[", "{") and name != "templates") or text[:1] == "[":
        try:
            return msgspec.json.decode(text.encode())
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
            raise Refusal("bad_request", f"Option '{name}' is no JSON list: {error}.") from error
    if name == "labels":
        return [label.strip() for label in re.split(f"[{COMMAS}]", text) if label.strip()]
    return [text]


def _decode(body: bytes, kind: type[Parsed]) -> Parsed:
    if body.count(b",") >= _MOST_VALUES:  # counted before anything is built of it
        raise Refusal("too_large", f"The JSON body has more than {_MOST_VALUES:,} values; send several requests.")
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal("bad_request", f"The JSON body cannot be read: {reason_of_type(error, kind)}.") from error


def _classify_request(given: _Classes, images: list[ImageInput]) -> ClassifyRequest:
    labels = given.labels
    if isinstance(labels, dict):
        labels = {name: [each] if isinstance(each, str) else each for name, each in labels.items()}
    if given.top_k is not None and given.top_k < 1:
        raise Refusal("bad_request", f"top_k is {given.top_k}; expected 1 or more.")
    return ClassifyRequest(
        model=given.model,
        images=images,
        classes=ClassesInput(
            labels=labels,
            templates=[given.templates] if isinstance(given.templates, str) else given.templates,
            none_label=given.none_label,
            background=given.background,
            reject_below=given.reject_below,
        ),
        top_k=given.top_k,
    )


def image_inputs(given: Sequence[bytes | JsonImage]) -> list[ImageInput]:
    """Return the images of a JSON body.

    Raises:
        Refusal: one has neither data nor a URL, or both.
    """
    return [_image(image, position) for position, image in enumerate(given)]


def _image(image: bytes | JsonImage, position: int) -> ImageInput:
    if isinstance(image, bytes):
        return ImageInput(f"image {position}", image)
    if (image.data is None) == (image.url is None):
        raise Refusal("bad_request", f"Image {position} needs either 'data' or 'url'.")
    return ImageInput(_id(image.id or image.url, position), image.data, image.url)


def _id(given: str | None, position: int) -> str:
    """Return the name of an image as one line of text."""
    name = "".join(letter if letter.isprintable() else "?" for letter in given or "")
    return name[:_LONGEST_ID] or f"image {position}"
