"""Small pictures: JPEG files of images, and those of notebooks, which are made when they are shown, keep no large image, and never fail."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from clipmlu.data.images import ImageSource, load_image
from clipmlu.display import ROWS_SHOWN
from clipmlu.errors import ClipmluError

THUMBNAIL_SIDE = 96
_MAX_PIXELS = 64_000_000  # a larger image would delay the notebook
_QUALITY = 80
_BACKGROUND = (255, 255, 255)


class ImageReference:
    """Where an image can be found when it is to be shown: a path, or a weak reference to an image in memory.

    Outside notebooks the bytes of files and streams are not kept: they have no thumbnail. A pickle keeps the path only.
    """

    def __init__(self, source: ImageSource | None) -> None:
        self._find = _finder(source)
        self._path = os.fspath(source) if isinstance(source, (str, os.PathLike)) else None
        self._uri: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageReference, (self._path,)

    @classmethod
    def drawn(cls, load: Callable[[], ImageSource]) -> ImageReference:
        """Return a reference whose thumbnail is made at once, from an image that nobody else keeps."""
        with contextlib.suppress(ClipmluError):
            source = load()
            reference = cls(source)
            reference.uri()
            return reference
        return cls(None)

    @classmethod
    def of_result(cls, source: ImageSource | None, place: int) -> ImageReference:
        """Return a reference for a result.

        In IPython the thumbnails of images in memory are made at once, because such an image is often gone when its result is
        shown.

        Args:
            source: the image as given.
            place: its place among the results; only those that a table shows get a thumbnail at once.
        """
        reference = cls(source)
        if place < ROWS_SHOWN and reference._path is None and _in_notebook():
            with contextlib.suppress(Exception):  # as in uri
                reference._uri = None if source is None else _thumbnail(source)
        return reference

    def uri(self) -> str | None:
        """Return a JPEG of at most 96 x 96 pixels as a data URI; None if the image is gone or cannot be read."""
        if self._uri is None:
            with contextlib.suppress(Exception):  # whatever a damaged image raises, the table is shown without it
                source = self._find()
                self._uri = None if source is None else _thumbnail(source)
        return self._uri

    def html(self) -> str:
        """Return an ``<img>`` element, or an empty text."""
        uri = self.uri()
        return "" if uri is None else f'<img src="{uri}" alt="">'


def _in_notebook() -> bool:
    """Return whether this is an IPython session, such as a notebook's."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def _finder(source: ImageSource | None) -> Callable[[], ImageSource | None]:
    if isinstance(source, (str, os.PathLike)):
        return lambda: source
    return weakref.ref(source) if isinstance(source, (Image.Image, np.ndarray)) else lambda: None


def _thumbnail(source: ImageSource) -> str:
    side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    return jpeg_address(jpeg_thumbnail(load_image(source, max_pixels=_MAX_PIXELS, at_least=side), THUMBNAIL_SIDE))


def jpeg_address(content: bytes) -> str:
    """Return a JPEG file as a ``data:`` address."""
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode('ascii')}"


def jpeg_thumbnail(image: Image.Image, edge: int) -> bytes:
    """Return an image as a small JPEG file without metadata; equal pixels give equal bytes.

    Args:
        image: an image in any mode; transparent parts become white. It is not changed.
        edge: pixels of the longer edge; a smaller image keeps its size.
    """
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGB", layer.size, _BACKGROUND)
        image.paste(layer, mask=layer.getchannel("A"))
    small = image.convert("RGB") if image.mode != "RGB" else image.copy()
    small.thumbnail((edge, edge), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=_QUALITY, optimize=True)
    return stream.getvalue()
