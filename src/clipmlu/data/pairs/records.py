"""Pairs in JSON: one object a line, or one file with all images, as COCO and Karpathy's splits have it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from clipmlu.arguments import shown
from clipmlu.data.images import ImageSource
from clipmlu.data.pairs.fields import PairFields, choose_fields
from clipmlu.data.pairs.pairs import PairRow
from clipmlu.errors import InputError, first_line
from clipmlu.files.read import decode_json

Locate = Callable[[str], Callable[[], ImageSource]]
_TEXTS_OF_OBJECTS = ("raw", "caption", "text")
"""Fields of a text that is an object; ``raw`` is Karpathy's."""


def read_lines(content: str, where: str, locate: Locate, *, image: str | None, text: str | None) -> Iterator[PairRow]:
    """Yield the rows of a JSON Lines file: an object in each line.

    The text is a string, a list of strings, or a list of objects with one of the fields raw, caption and text.

    Args:
        content: the whole file.
        where: the file, for messages.
        locate: returns how to load the image of a path.
        image: see ``choose_fields``.
        text: see ``choose_fields``.

    Raises:
        InputError: a line is no such object, or a field is missing or has another type.
    """
    fields: PairFields | None = None
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            place = f"Line {number} of {where}"
            record = _decoded(line.encode(), place)
            if not isinstance(record, dict):
                raise InputError(
                    f'{place} is {shown(record)}; expected an object such as {{"image": "a.jpg", "caption": "a dog"}}.'
                )
            fields = fields or choose_fields(list(record), place, image, text)
            yield _row(record, fields, place, locate)


def read_document(
    content: str, where: str, locate: Locate, *, image: str | None, text: str | None
) -> Iterator[PairRow]:
    """Yield the images of one JSON document.

    It is a list of objects as in JSON Lines; or ``{"images": [...]}`` with such objects, as in Karpathy's splits of COCO and Flickr
    (``filename``, perhaps ``filepath`` for its folder, ``split`` and ``sentences``); or COCO's ``images`` (``id``, ``file_name``) and
    ``annotations`` (``image_id``, ``caption``). Arguments and errors are those of ``read_lines``.
    """
    document = _decoded(content.encode(), where)
    if isinstance(document, dict) and isinstance(document.get("images"), list):
        if isinstance(document.get("annotations"), list):
            yield from _coco(document, where, locate)
            return
        document = document["images"]
    if not isinstance(document, list) or not all(isinstance(each, dict) for each in document):
        raise InputError(
            f'{where} is not a list of images; expected [{{"image": ..., "caption": ...}}, ...], {{"images": [...]}} as in Karpathy\'s '
            "splits, or COCO's images and annotations. A file with an object in each line is called .jsonl."
        )
    fields: PairFields | None = None
    for number, record in enumerate(document, 1):
        place = f"Image {number} of {where}"
        fields = fields or choose_fields(list(record), place, image, text)
        yield _row(record, fields, place, locate)


def _decoded(content: bytes, where: str) -> Any:
    try:
        return decode_json(content, Any)
    except msgspec.DecodeError as error:
        raise InputError(f"{where} is not JSON: {first_line(error)}.") from error


def _row(record: Mapping[str, Any], fields: PairFields, where: str, locate: Locate) -> PairRow:
    path = record.get(fields.image)
    if not isinstance(path, str) or not path.strip():
        raise InputError(f"{where} has no path in '{fields.image}': it is {shown(path)}.")
    folder = record.get("filepath")
    if fields.image in ("filename", "file_name") and isinstance(folder, str) and folder:
        path = f"{folder.rstrip('/')}/{path}"
    split = None if fields.split is None else record.get(fields.split)
    return PairRow(
        path,
        locate(path),
        texts_from(record.get(fields.text), where, fields.text),
        None if split is None else str(split),
    )


def texts_from(value: Any, where: str, field: str) -> list[str]:
    """Return the texts in a field: one or several; null is none.

    Raises:
        InputError: it holds something else.
    """
    if value is None:
        return []
    texts = [_text(each) for each in (value if isinstance(value, list) else [value])]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(
            f"{where} has {shown(value)} in '{field}'; expected a text, a list of texts, or a list of objects with 'raw'."
        )
    return texts


def _text(value: Any) -> Any:
    if isinstance(value, dict):
        return next((value[name] for name in _TEXTS_OF_OBJECTS if name in value), value)
    return value


def _coco(document: Mapping[str, Any], where: str, locate: Locate) -> Iterator[PairRow]:
    paths: dict[Any, str] = {}
    for number, image in enumerate(document["images"], 1):
        if (
            not isinstance(image, dict)
            or not isinstance(image.get("file_name"), str)
            or not isinstance(image.get("id"), int | str)
        ):
            raise InputError(
                f"Image {number} of {where} is {shown(image)}; expected 'id' and 'file_name', as COCO has them."
            )
        paths[image["id"]] = image["file_name"]
        yield PairRow(image["file_name"], locate(image["file_name"]), ())
    for number, each in enumerate(document["annotations"], 1):
        place = f"Annotation {number} of {where}"
        if not isinstance(each, dict) or not isinstance(each.get("image_id"), int | str) or "caption" not in each:
            raise InputError(
                f"{place} is {shown(each)}; expected 'image_id' and 'caption', as in COCO's captions_*.json."
            )
        if each["image_id"] not in paths:
            raise InputError(
                f"{place} is about the image {each['image_id']!r}, which is not among the images of that file."
            )
        path = paths[each["image_id"]]
        yield PairRow(path, locate(path), texts_from(each["caption"], place, "caption"))
