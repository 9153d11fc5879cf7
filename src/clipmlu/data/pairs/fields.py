"""Which columns of a table, or fields of a record, hold the image and the texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from clipmlu.errors import InputError, did_you_mean

IMAGE_NAMES = (
    "image",
    "img",
    "image_path",
    "img_path",
    "image_file",
    "path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "file_path",
)
TEXT_NAMES = ("caption", "captions", "text", "texts", "sentence", "sentences", "title", "description")
SPLIT_NAME = "split"
_NAMES_SHOWN = 12


@dataclasses.dataclass(frozen=True)
class PairFields:
    """Names of the fields of a row, as they stand in the input.

    Attributes:
        image: the image's path.
        text: the text, or the texts.
        split: the split, or None if rows have none.
    """

    image: str
    text: str
    split: str | None


def choose_fields(names: Sequence[str], where: str, image: str | None, text: str | None) -> PairFields:
    """Return the fields to read.

    Without a choice the first of ``IMAGE_NAMES`` and of ``TEXT_NAMES`` that the rows have is taken, in any case.

    Args:
        names: names of the fields of the first row.
        where: the input, for messages.
        image: field of the image as the user gave it, or None.
        text: field of the text as the user gave it, or None.

    Raises:
        InputError: there is no such field; the message lists those that exist.
    """
    return PairFields(
        _find(names, where, "image", image, IMAGE_NAMES),
        _find(names, where, "text", text, TEXT_NAMES),
        next((name for name in names if name.strip().lower() == SPLIT_NAME), None),
    )


def _find(names: Sequence[str], where: str, what: str, given: str | None, usual: Sequence[str]) -> str:
    known = {name.strip(): name for name in names}
    if given is not None:
        if given in known:
            return known[given]
        raise InputError(
            f"{where} has no column '{given}'; it has {_shown(names)}. {did_you_mean(given, known)}".strip()
        )
    lower = {stripped.lower(): name for stripped, name in known.items()}
    found = next((lower[name] for name in usual if name in lower), None)
    if found is None:
        raise InputError(
            f"{where} has no column for the {what}: its columns are {_shown(names)}; expected one of {', '.join(usual)} in its first "
            f"line, or name it with --{what}-column."
        )
    return found


def _shown(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_NAMES_SHOWN])
    return shown + (", ..." if len(names) > _NAMES_SHOWN else "") if names else "none"
