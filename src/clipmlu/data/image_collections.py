"""One image or many: what users give to classify or embed."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator, KeysView, Mapping, Set
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipmlu.arguments import shown
from clipmlu.data.dataframes import is_column, table_columns
from clipmlu.data.image_objects import (
    EXPECTED_IMAGE,
    EXPECTED_PIXELS,
    is_array,
    is_record,
    is_tensor,
    pixels_from_array,
    pixels_from_tensor,
)
from clipmlu.data.images import ImageSource, is_stream, read_source
from clipmlu.errors import InputError

_ONE = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
_FRAMES_COUNTED_LATE = ("GIF", "TIFF")  # Pillow would read the whole file to say whether there are several
_TEXT_KINDS = "OUT"  # of NumPy's dtypes: objects, texts of fixed and of any length
_NO_IMAGES = re.compile(r"u?int|float|bool|complex|decimal|date|time|duration|list|array", re.IGNORECASE)
"""Beginnings of the names of a column's dtype that holds no images."""


def split_images(images: Any) -> tuple[Iterable[ImageSource], bool]:
    """Return the images of a value, and whether it is one image.

    Many images may be a list, a tuple, an iterator, which is consumed lazily, an array or tensor of four axes, a NumPy array of
    paths, or a column of pandas or polars. Images of an iterator are copied, as it may use their memory again for the next one.

    Raises:
        InputError: it is neither one image nor a collection of images with an order.
    """
    if isinstance(images, _ONE) or is_stream(images) or is_record(images):
        return (images,), True
    if isinstance(images, np.ndarray):
        return _split_array(images)
    if is_tensor(images):
        return ((images,), True) if len(images.shape) != 4 else (pixels_from_tensor(images), False)
    if is_column(images):
        return _check_column(images), False
    if (names := table_columns(images)) is not None:
        columns = ", ".join(map(repr, names))
        raise InputError(
            f"images are a table ({type(images).__name__}) with the columns {columns}; expected one column of it, such as table['path']."
        )
    if is_array(images):
        return _split_array(pixels_from_array(images))
    unordered = isinstance(images, (Mapping, Set)) and not isinstance(images, KeysView)
    if unordered or not isinstance(images, Iterable):
        raise InputError(f"images are {shown(images)}; expected an image or a list of them. {_advice(images)}")
    stored = hasattr(images, "__getitem__") and not isinstance(images, Iterator)
    return (images if stored else map(_held, images)), False


def _held(image: Any) -> Any:
    """Return an image that stays what it is when its iterator goes on, which may reuse its memory or close its file.

    A Pillow image of a file with one frame that is not decoded yet is returned itself, for a worker to decode; so is what
    cannot be read.
    """
    if isinstance(image, (bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, np.ndarray):
        return image.copy()
    if is_tensor(image):
        return image.clone() if hasattr(image, "clone") else image
    try:
        if isinstance(image, Image.Image):
            several = image.format in _FRAMES_COUNTED_LATE or vars(image).get("is_animated", False)
            return image if getattr(image, "tile", None) and not several else image.copy()
        return _held_file(image) if is_stream(image) else image
    except Exception:  # Pillow's decoders raise many types; the image is reported at its place
        return image


def _held_file(stream: Any) -> Any:
    held = io.BytesIO(read_source(stream))  # type: ignore[arg-type] # the bytes of a file
    if isinstance(name := getattr(stream, "name", None), str):
        held.name = name
    return held


def _split_array(array: npt.NDArray[Any]) -> tuple[Iterable[ImageSource], bool]:
    if array.dtype.kind in _TEXT_KINDS:
        if array.ndim > 1:
            raise InputError(
                f"images are an array of {array.dtype} with shape {array.shape}; expected one axis: array.ravel()."
            )
        return ((array.item(),), True) if array.ndim == 0 else (array, False)
    if array.ndim in (2, 3):
        return (array,), True
    if array.ndim == 4:
        return array, False
    hint = " For the content of a file pass array.tobytes()." if array.dtype == np.uint8 and array.ndim == 1 else ""
    raise InputError(f"images are an array of {array.dtype} with shape {array.shape}. {EXPECTED_PIXELS}{hint}")


def _check_column(column: Any) -> Any:
    dtype = getattr(column, "dtype", None)
    if _NO_IMAGES.match(str(dtype)):
        raise InputError(
            f"images are a column of {dtype}; expected one of paths, bytes or Pillow images, such as table['path']."
        )
    return column


def _advice(images: object) -> str:
    if isinstance(images, Mapping):
        return "Give list(images.values())."
    return "Give them in order: sorted(images)." if isinstance(images, Set) else EXPECTED_IMAGE
