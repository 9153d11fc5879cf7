"""The order of the two passes of the installed Pillow's resize."""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

PassOrder = Literal["horizontal first", "vertical first if tall", "unknown"]
"""``horizontal first``: always, Pillow before 13. ``vertical first if tall``: the vertical pass comes first where the
height loses more than twice as many pixels as the width, Pillow 13 (``ImagingResampleInner`` in its Resample.c)."""


def vertical_first(size: tuple[int, int], resized: tuple[int, int]) -> bool:
    """Return whether the order ``vertical first if tall`` begins with the vertical pass.

    Args:
        size: width and height.
        resized: width and height of the result.
    """
    lost = size[1] - resized[1]
    return lost > 0 and lost > 2 * (size[0] - resized[0])


@functools.cache
def pass_order() -> PassOrder:
    """Return the order of the installed Pillow, found by comparing resizes with two resizes in one direction each."""
    tall = [_begins_with(size, resized) for size, resized in (((20, 60), (11, 41)), ((20, 60), (30, 59)))]
    others = [_begins_with(size, resized) for size, resized in (((20, 60), (11, 42)), ((60, 20), (25, 11)))]
    if set(others) != {"horizontal"}:
        return "unknown"
    orders: dict[frozenset[str], PassOrder] = {
        frozenset({"horizontal"}): "horizontal first",
        frozenset({"vertical"}): "vertical first if tall",
    }
    return orders.get(frozenset(tall), "unknown")


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


def _begins_with(size: tuple[int, int], resized: tuple[int, int]) -> Literal["horizontal", "vertical", "neither"]:
    """Return the first pass of a resize of noise. Between the passes Pillow rounds to 8 bits, so the order shows."""
    image = Image.fromarray(noise(*size))
    bicubic = Image.Resampling.BICUBIC
    found = image.resize(resized, bicubic).tobytes()
    horizontal = image.resize((resized[0], size[1]), bicubic).resize(resized, bicubic).tobytes()
    vertical = image.resize((size[0], resized[1]), bicubic).resize(resized, bicubic).tobytes()
    if horizontal == vertical or found not in (horizontal, vertical):
        return "neither"
    return "horizontal" if found == horizontal else "vertical"
