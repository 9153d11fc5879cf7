"""The order of the two passes of the installed Pillow's resize."""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

PassOrder = Literal["horizontal first", "vertical first if 100 times as tall", "vertical first if tall", "unknown"]
"""``horizontal first``: always, Pillow before 12.2.
``vertical first if 100 times as tall``: and not in other images, Pillow 12.2 and 12.3 (``resize`` in its Image.py).
``vertical first if tall``: where the height loses more than twice as many pixels as the width, Pillow 13
(``ImagingResampleInner`` in its Resample.c).
"""
Size = tuple[int, int]
"""Width and height."""

_PROBES: tuple[tuple[Size, Size], ...] = (
    ((20, 60), (11, 41)),
    ((20, 60), (11, 42)),
    ((20, 60), (30, 59)),
    ((20, 60), (30, 70)),
    ((60, 20), (25, 11)),
    ((2, 201), (5, 150)),
    ((2, 200), (5, 150)),
    ((201, 2), (150, 5)),
)
"""Sizes of images and results that tell the orders apart."""


def vertical_first(order: PassOrder, size: Size, resized: Size) -> bool:
    """Return whether a resize begins with the vertical pass."""
    lost = size[1] - resized[1]
    if order == "vertical first if tall":
        return lost > 0 and lost > 2 * (size[0] - resized[0])
    if order == "vertical first if 100 times as tall":
        return lost > 0 and size[1] > 100 * size[0]
    return False


@functools.cache
def pass_order() -> PassOrder:
    """Return the order of the installed Pillow, found by comparing resizes with two resizes in one direction each."""
    found = [_begins_with(size, resized) for size, resized in _PROBES]
    orders: tuple[PassOrder, ...] = (
        "horizontal first",
        "vertical first if 100 times as tall",
        "vertical first if tall",
    )
    for order in orders:
        if found == ["vertical" if vertical_first(order, *probe) else "horizontal" for probe in _PROBES]:
            return order
    return "unknown"


def noise(width: int, height: int) -> npt.NDArray[np.uint8]:
    """Return an image of noise, always the same for a size; numpy.random takes longer to import than all checks."""
    values = np.arange(height * width * 3, dtype=np.uint32) * np.uint32(2654435761)
    values ^= values >> np.uint32(15)
    values *= np.uint32(2246822519)
    return (values >> np.uint32(24)).astype(np.uint8).reshape(height, width, 3)


def describe_pillow() -> str:
    """Return the version of the installed Pillow and the order of its passes, such as ``13.0.0 (vertical first if tall)``."""
    return f"{PIL.__version__} ({pass_order()})"


def pillow_versions() -> dict[str, str]:
    """Return what decides the pixels of resized images, as an entry of the tool versions of manifests and reports."""
    return {"pillow": describe_pillow()}


def _begins_with(size: Size, resized: Size) -> Literal["horizontal", "vertical", "neither"]:
    """Return the first pass of a resize of noise. Between the passes Pillow rounds to 8 bits, so the order shows."""
    image = Image.fromarray(noise(*size))
    bicubic = Image.Resampling.BICUBIC
    found = image.resize(resized, bicubic).tobytes()
    horizontal = image.resize((resized[0], size[1]), bicubic).resize(resized, bicubic).tobytes()
    vertical = image.resize((size[0], resized[1]), bicubic).resize(resized, bicubic).tobytes()
    if horizontal == vertical or found not in (horizontal, vertical):
        return "neither"
    return "horizontal" if found == horizontal else "vertical"
