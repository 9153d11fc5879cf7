"""Pairs in tar archives of WebDataset: an image and its texts are the members with one key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from clipmlu.data.containers.tar import TarSample, tar_samples
from clipmlu.data.pairs.fields import TEXT_NAMES
from clipmlu.data.pairs.pairs import PairRow
from clipmlu.data.pairs.records import texts_from
from clipmlu.data.textfile import decode_text, split_lines
from clipmlu.errors import InputError
from clipmlu.files.read import decode_json

_TEXT, _JSON = "txt", "json"


def read_archive(path: Path, where: str, *, text: str | None) -> Iterator[PairRow]:
    """Yield the samples of an archive that have an image.

    The texts of a sample are the lines of its members ``.txt``, of which there may be several (``7.txt``, or ``7.0.txt`` and ``7.1.txt``),
    as CLIP_benchmark writes and reads them (``build_wds_dataset``); without one, those in a field of its member ``.json``, as img2dataset writes it.

    Args:
        path: the archive, which must not be compressed.
        where: the archive, for messages.
        text: field of the texts in members ``.json``; None for the first of ``TEXT_NAMES``.

    Raises:
        InputError: the archive is damaged or compressed, a sample has several images, or a text cannot be read.
    """
    for sample in tar_samples(path, (_TEXT, _JSON)):
        if len(sample.images) > 1:
            names = ", ".join(f"'{each.name}'" for each in sample.images[:3])
            raise InputError(f"Sample '{sample.key}' of {where} has several images: {names}. Expected one.")
        for image in sample.images:
            yield PairRow(image.name, image.load, _texts(sample, where, text))


def _texts(sample: TarSample, where: str, field: str | None) -> list[str]:
    texts = [text for name, content in sample.members if _ends(name, _TEXT) for text in _lines(name, content, where)]
    if texts:
        return texts
    for name, content in sample.members:
        if _ends(name, _JSON):
            place = f"'{name}' in {where}"
            try:
                record = decode_json(content, dict)
            except ValueError as error:  # msgspec's error is one
                raise InputError(f"{place} is no JSON object: {error}.") from error
            chosen = field or next((each for each in TEXT_NAMES if each in record), None)
            return [] if chosen is None else texts_from(record.get(chosen), place, chosen)
    return []


def _ends(name: str, suffix: str) -> bool:
    return name.lower().endswith(f".{suffix}")


def _lines(name: str, content: bytes, where: str) -> list[str]:
    return [line for line in split_lines(decode_text(content, f"'{name}' in {where}")) if line.strip()]
