"""Decoded images as the preprocessor takes them: a Pillow image of any mode, or an array of RGB pixels."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipmlu.errors import InputError

Picture: TypeAlias = Image.Image | npt.NDArray[np.uint8]
"""A Pillow image, or a uint8 array of shape (height, width, 3), RGB in 0..255."""


Size: TypeAlias = tuple[int, int]
"""Width and height in pixels."""


def check_picture(picture: object) -> None:
    """Refuse what is not a ``Picture``.

    Raises:
        InputError: it is neither a Pillow image nor a uint8 array of shape (height, width, 3).
    """
    if isinstance(picture, Image.Image):
        return
    expected = "Expected a Pillow image or a uint8 array of shape (height, width, 3)"
    hint = "clipmlu.data.images.load_image makes an image."
    if not isinstance(picture, np.ndarray):
        raise InputError(f"{expected}, not '{type(picture).__name__}'. {hint}")
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise InputError(f"{expected}, not an array of {picture.dtype} and shape {picture.shape}. {hint}")


def picture_size(picture: Picture) -> Size:
    """Return the width and height."""
    if isinstance(picture, Image.Image):
        return picture.size
    return picture.shape[1], picture.shape[0]


def pillow_image(picture: Picture) -> Image.Image:
    """Return the picture as a Pillow image; an array's pixels are copied."""
    if isinstance(picture, Image.Image):
        return picture
    return Image.fromarray(np.ascontiguousarray(picture))
