"""Images to embed, and their results."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from clipmlu.arguments import shown
from clipmlu.data.images import EXPECTED_IMAGE, ImageSource, is_stream, name_of_stream
from clipmlu.errors import InputError
from clipmlu.file_names import expand_home, name_from_path

if TYPE_CHECKING:
    from PIL import Image

    from clipmlu.data.datasets import Dataset
    from clipmlu.data.picture import Size
    from clipmlu.embed.encoder import FloatArray

OnError = Literal["raise", "skip"]
"""What an image that cannot be read does: end the call with its error, or leave the reason at its place."""


@dataclasses.dataclass(frozen=True)
class ImageItem:
    """One image to embed.

    Attributes:
        id: name of the image.
        load: returns the image, or its source.
        check: called with the decoded image; its exceptions end the run, except ``InputError``.
        max_pixels: largest width x height; None for the encoder's limit.
        shown: the image as its caller gave it, for a thumbnail; None if nobody will look at it.
    """

    id: str
    load: Callable[[], ImageSource]
    check: Callable[[Image.Image], object] | None = None
    max_pixels: int | None = None
    shown: ImageSource | None = None


class Outcome(NamedTuple):
    """The result of one item: a row of numbers, such as its embedding, or an error."""

    item: ImageItem
    row: FloatArray | None
    error: InputError | None

    def require_row(self) -> FloatArray:
        """Return the row, shape (D,).

        Raises:
            InputError: the image could not be read.
        """
        if self.row is None:
            assert self.error is not None
            raise self.error
        return self.row


class RowBatch(NamedTuple):
    """The results of consecutive items.

    Attributes:
        items: all items.
        rows: float32, shape (N, D), of the readable items, in order; see ``scoring``.
        errors: maps a position in ``items`` to its error.
        sizes: width and height of each item's image in its file, also if it was decoded at a reduced scale; None if it was
            not decoded.
    """

    items: Sequence[ImageItem]
    rows: FloatArray
    errors: dict[int, InputError]
    sizes: Sequence[Size | None]

    def computed(self) -> list[ImageItem]:
        """Return the items that have a row in ``rows``."""
        return [item for position, item in enumerate(self.items) if position not in self.errors]

    def outcomes(self) -> Iterator[Outcome]:
        """Yield the result of each item."""
        rows = iter(self.rows)
        for position, item in enumerate(self.items):
            error = self.errors.get(position)
            yield Outcome(item, None if error else next(rows), error)


class ImageEmbeddings(NamedTuple):
    """Embeddings of images of which some could not be read.

    Attributes:
        rows: float32, shape (N, D), unit L2 norm; NaN in the row of an image that could not be read. Shape (D,) for a
            single image.
        errors: maps the position of each image that could not be read to the reason.
    """

    rows: FloatArray
    errors: dict[int, str]


def items_from_images(images: ImageSource | Iterable[ImageSource]) -> tuple[list[ImageItem], bool]:
    """Return items for one image or many, and whether it was one.

    Raises:
        InputError: it is neither, or a collection without order, or a mapping.
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
    """Return an item for any source of ``load_image``; paths are their own id."""
    name = f"image {position}"
    if isinstance(source, (str, os.PathLike)):
        name = name_from_path(source)
        if os.fspath(source).startswith("~"):
            source = expand_home(source)
    elif is_stream(source):
        name = name_of_stream(source) or name
    return ImageItem(name, lambda: source, shown=source)


def item_from_dataset(
    dataset: Dataset, index: int, check: Callable[[str, Image.Image], object] | None = None
) -> ImageItem:
    """Return an item of a dataset; ``check`` is called with its id and the decoded image."""
    key = dataset.key(index)
    checked = None if check is None else lambda image: check(key, image)
    return ImageItem(key, lambda: dataset.source(index), checked, dataset.max_pixels)
