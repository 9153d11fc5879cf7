"""Sizes of an image before cropping and padding, with the reference's rounding."""

from __future__ import annotations

from clipmlu.data.images import DEFAULT_MAX_PIXELS
from clipmlu.errors import InputError
from clipmlu.specs import CropRounding, PreprocessSpec

# An image of 1x100000 pixels becomes 224x22400000 before the crop; above this limit the resized image is an error.
MAX_RESIZED_PIXELS = DEFAULT_MAX_PIXELS


def resized_size(size: tuple[int, int], spec: PreprocessSpec) -> tuple[int, int]:
    """Return the size (width, height) before cropping and padding, with the reference's two rounding rules."""
    width, height = size
    if width < 1 or height < 1:
        raise InputError(f"Cannot preprocess an image of size {width}x{height}: it has no pixels.")
    rows, columns = spec.resized
    if spec.resize_mode == "squash":
        resized = (columns, rows)
    elif spec.resize_mode == "shortest" and rows == columns:
        # torchvision.transforms.functional._compute_resized_output_size: the longer side is truncated.
        longer = int(rows * max(size) / min(size))
        resized = (columns, longer) if width <= height else (longer, rows)
    else:
        # open_clip.transform.ResizeKeepRatio.get_params: both sides are rounded, half to even.
        choose = max if spec.resize_mode == "longest" else min
        ratio = choose(height / rows, width / columns)
        resized = (round(width / ratio), round(height / ratio))
    if 0 in resized:
        raise InputError(
            f"Cannot preprocess an image of size {width}x{height}: fitted into {columns}x{rows} it is less "
            "than a pixel thin. Crop it first."
        )
    if resized[0] * resized[1] > MAX_RESIZED_PIXELS:
        raise InputError(
            f"Cannot preprocess an image of size {width}x{height}: scaled to {resized[0]}x{resized[1]} it has more than "
            f"{MAX_RESIZED_PIXELS:,} pixels. Crop it to a less extreme aspect ratio first."
        )
    return resized


def centre(length: int, target: int, rounding: CropRounding) -> tuple[int, int, int]:
    """Return how one side of a resized image is cropped or padded to the target's length.

    Args:
        length: pixels of the resized image.
        target: pixels of the result.
        rounding: of half a pixel: ``even`` as torchvision's ``center_crop``, ``down`` as that of the transformers library.

    Returns:
        The first value of the image that is kept, its place in the result, and how many are kept. An odd pixel of padding
        comes after the image.
    """
    if length < target:
        return 0, (target - length) // 2, length
    first = round((length - target) / 2.0) if rounding == "even" else (length - target) // 2  # round(): half to even
    return first, 0, target
