"""Images with the texts that describe them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from clipmlu.data.images import ImageSource


@dataclasses.dataclass(frozen=True)
class PairRow:
    """A row of an input: an image and some of its texts.

    Attributes:
        name: the image as the input names it; equal names with the same ``base`` are one image.
        load: returns the image's path or bytes, or raises ``InputError``; any thread may call it.
        texts: texts of the image, as they stand in the input.
        split: split of the row, or None if it names none.
        base: folder to which names of the input refer; empty if they do not depend on the input.
    """

    name: str
    load: Callable[[], ImageSource]
    texts: Sequence[str]
    split: str | None = None
    base: str = ""


@dataclasses.dataclass(frozen=True)
class PairedImage:
    """An image with its texts.

    Attributes:
        name: the image's name, for people.
        load: see ``PairRow``.
        texts: its texts without surrounding white space, each once; at least one.
    """

    name: str
    load: Callable[[], ImageSource]
    texts: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairSet:
    """Images with texts, in the order of the input.

    Attributes:
        name: names of the files.
        split: the split that was chosen, or an empty text.
        images: the images that have texts.
        empty_texts: number of texts that are empty or white space; they are left out.
        repeated_pairs: number of texts that were given again for the same image; they are left out.
        images_without_texts: names of images without any text; they are left out.
        max_pixels: largest width x height of an image; larger images are errors.
    """

    name: str
    split: str
    images: tuple[PairedImage, ...]
    empty_texts: int
    repeated_pairs: int
    images_without_texts: tuple[str, ...]
    max_pixels: int | None = None

    def __len__(self) -> int:
        return len(self.images)


def collect_pairs(rows: Iterable[PairRow], name: str, split: str, max_pixels: int | None) -> PairSet:
    """Return the images of rows, each once with the texts of all its rows."""
    loads: dict[tuple[str, str], Callable[[], ImageSource]] = {}
    texts: dict[tuple[str, str], dict[str, None]] = {}
    empty = repeated = 0
    for row in rows:
        key = (row.base, row.name)
        loads.setdefault(key, row.load)
        known = texts.setdefault(key, {})
        for text in map(str.strip, row.texts):
            empty += not text
            repeated += text in known
            if text:
                known[text] = None
    return PairSet(
        name=name,
        split=split,
        images=tuple(PairedImage(key[1], loads[key], tuple(known)) for key, known in texts.items() if known),
        empty_texts=empty,
        repeated_pairs=repeated,
        images_without_texts=tuple(name for (_base, name), known in texts.items() if not known),
        max_pixels=max_pixels,
    )
