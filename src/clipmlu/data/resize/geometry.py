"""Sizes of an image before cropping and padding, with the reference's rounding."""

from __future__ import annotations

from clipmlu.data.images import DEFAULT_MAX_PIXELS
from clipmlu.errors import InputError
from clipmlu.specs import PreprocessSpec

# An image of 1x100000 pixels becomes 224x22400000 before the crop; above this limit the resized image is an error.
MAX_RESIZED_PIXELS = DEFAULT_MAX_PIXELS


def resized_size(size: tuple[int, int], spec: PreprocessSpec) -> tuple[int, int]:
    """Return the size (width, height) before cropping and padding, with the reference's two rounding rules."""
    width, height = size
    if width < 1 or height < 1:
        raise InputError(f"Cannot preprocess an image of size {width}x{height}: it has no pixels.")
    if spec.resize_mode == "squash":
        resized = (spec.width, spec.height)
    elif spec.resize_mode == "shortest" and spec.height == spec.width:
        # torchvision.transforms.functional._compute_resized_output_size: the longer side is truncated.
        longer = int(spec.height * max(size) / min(size))
        resized = (spec.width, longer) if width <= height else (longer, spec.height)
    else:
        # open_clip.transform.ResizeKeepRatio.get_params: both sides are rounded, half to even.
        choose = max if spec.resize_mode == "longest" else min
        ratio = choose(height / spec.height, width / spec.width)
        resized = (round(width / ratio), round(height / ratio))
    if 0 in resized:
        raise InputError(
            f"Cannot preprocess an image of size {width}x{height}: fitted into {spec.width}x{spec.height} it is less "
            "than a pixel thin. Crop it first."
        )
    if resized[0] * resized[1] > MAX_RESIZED_PIXELS:
        raise InputError(
            f"Cannot preprocess an image of size {width}x{height}: scaled to {resized[0]}x{resized[1]} it has more than "
            f"{MAX_RESIZED_PIXELS:,} pixels. Crop it to a less extreme aspect ratio first."
        )
    return resized


def centre(length: int, target: int) -> tuple[int, int, int]:
    """Return how one side of a resized image is cropped or padded to the target's length, as torchvision's ``center_crop`` does.

    Returns:
        The first value of the image that is kept, its place in the result, and how many are kept. An odd pixel of padding
        comes after the image.
    """
    if length < target:
        return 0, (target - length) // 2, length
    return round((length - target) / 2.0), 0, target  # rounds half to even
