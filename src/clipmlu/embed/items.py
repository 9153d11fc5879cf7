"""Images to embed, and their results."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from clipmlu.arguments import check_argument
from clipmlu.data.datasets.elements import DatasetBase, LabelledImage
from clipmlu.data.image_collections import split_images
from clipmlu.data.image_objects import is_record
from clipmlu.data.images import ImageSource, is_stream, name_of_stream
from clipmlu.data.url.found import FoundUrl
from clipmlu.data.url.location import is_url
from clipmlu.data.url.options import UrlOptions
from clipmlu.errors import InputError
from clipmlu.file_names import expand_home, name_from_path

if TYPE_CHECKING:
    from PIL import Image

    from clipmlu.data.datasets import Dataset
    from clipmlu.data.picture import Size
    from clipmlu.embed.rows import FloatArray

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


def items_from_images(
    images: ImageSource | LabelledImage | Iterable[ImageSource | LabelledImage],
    *,
    allow_urls: bool | UrlOptions = False,
) -> tuple[Iterator[ImageItem], bool]:
    """Return items for one image or many, lazily, and whether it was one.

    Args:
        images: see ``split_images``; or a dataset, or an element of one.
        allow_urls: True to fetch texts that are http or https URLs, within the default limits; or other limits.

    Raises:
        InputError: it is neither one image nor a collection of images with an order.
        OptionError: ``allow_urls`` has another type.
    """
    check_argument(allow_urls, bool | UrlOptions, "allow_urls")
    urls = (UrlOptions() if allow_urls else None) if isinstance(allow_urls, bool) else allow_urls
    if isinstance(images, DatasetBase):
        return (item_from_dataset(images, index) for index in range(len(images))), False
    sources, single = ((images,), True) if isinstance(images, LabelledImage) else split_images(images)
    return (item_from_source(source, position, urls) for position, source in enumerate(sources)), single


def item_from_source(
    source: ImageSource | LabelledImage, position: int = 0, urls: UrlOptions | None = None
) -> ImageItem:
    """Return an item for any source of ``load_image``, or a URL; paths and URLs are their own id.

    Args:
        source: the image, or an element of a dataset.
        position: number of the image, for the id of one without a name.
        urls: limits for fetching a URL; None if that is not allowed.
    """
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        if is_url(text):
            found = FoundUrl(text, urls)
            return ImageItem(found.name, found.source)
        path = expand_home(source) if text.startswith("~") else source
        return ImageItem(name_from_path(text), lambda: path, shown=path)
    if isinstance(source, LabelledImage):
        return ImageItem(source.key, lambda: source.image, shown=source.image)
    name = f"image {position}"
    if is_record(source):
        known = source.get("path")
        if isinstance(known, str) and known:
            if source.get("bytes") is None:
                return item_from_source(known, position, urls)
            name = name_from_path(known)
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
