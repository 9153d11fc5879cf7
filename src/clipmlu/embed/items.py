"""Images to embed, each with its name, and what became of each."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from clipmlu.arguments import shown
from clipmlu.data.images import EXPECTED_IMAGE, ImageSource, is_stream, name_of_stream
from clipmlu.errors import InputError
from clipmlu.file_names import expand_home, name_from_path

if TYPE_CHECKING:
    from PIL import Image

    from clipmlu.data.datasets import Dataset
    from clipmlu.embed.encoder import FloatArray


@dataclasses.dataclass(frozen=True)
class ImageItem:
    """One image to embed.

    Attributes:
        id: what it is called.
        load: gives the image, or what it is decoded from.
        check: called with the decoded image; what it raises ends the run, unless it is an ``InputError``.
        max_pixels: largest width x height that is decoded; None for what the encoder allows.
    """

    id: str
    load: Callable[[], ImageSource]
    check: Callable[[Image.Image], object] | None = None
    max_pixels: int | None = None


class Outcome(NamedTuple):
    """What became of one item: a row of numbers, such as its embedding, or the reason why there is none."""

    item: ImageItem
    row: FloatArray | None
    error: InputError | None

    def require_row(self) -> FloatArray:
        """The row, shape (D,).

        Raises:
            InputError: the image could not be read.
        """
        if self.row is None:
            assert self.error is not None
            raise self.error
        return self.row


class RowBatch(NamedTuple):
    """What became of some items that follow one another.

    Attributes:
        items: all of them.
        rows: float32, shape (N, D): of those that could be read, in order; see ``scoring``.
        errors: position in ``items`` -> why that one could not.
    """

    items: Sequence[ImageItem]
    rows: FloatArray
    errors: dict[int, InputError]

    def computed(self) -> list[ImageItem]:
        """The items that have a row in ``rows``."""
        return [item for position, item in enumerate(self.items) if position not in self.errors]

    def outcomes(self) -> Iterator[Outcome]:
        """One by one."""
        rows = iter(self.rows)
        for position, item in enumerate(self.items):
            error = self.errors.get(position)
            yield Outcome(item, None if error else next(rows), error)


def items_from_images(images: ImageSource | Iterable[ImageSource]) -> tuple[list[ImageItem], bool]:
    """Items from one image or many, and whether it was one.

    Raises:
        InputError: it is neither, or a collection without an order, or with names as a dict has.
    """
    from PIL import Image

    if isinstance(images, np.ndarray):
        single = images.ndim <= 3
        sources: list[ImageSource] = [images] if single else list(images)
    elif isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)) or is_stream(images):
        single, sources = True, [images]
    elif isinstance(images, (Mapping, Set)) or not isinstance(images, Iterable):
        raise InputError(f"images are {shown(images)}; expected an image or a list of them. {EXPECTED_IMAGE}")
    else:
        single, sources = False, list(images)
    return [item_from_source(source, position) for position, source in enumerate(sources)], single


def item_from_source(source: ImageSource, position: int = 0) -> ImageItem:
    """An item from anything that ``load_image`` reads; paths are their own id."""
    name = f"image {position}"
    if isinstance(source, (str, os.PathLike)):
        name = name_from_path(source)
        source = expand_home(source)
    elif is_stream(source):
        name = name_of_stream(source) or name
    return ImageItem(name, lambda: source)


def item_from_dataset(
    dataset: Dataset, index: int, check: Callable[[str, Image.Image], object] | None = None
) -> ImageItem:
    """An item from a dataset; ``check`` is called with its id and the decoded image."""
    key = dataset.key(index)
    checked = None if check is None else lambda image: check(key, image)
    return ImageItem(key, lambda: dataset.source(index), checked, dataset.max_pixels)
