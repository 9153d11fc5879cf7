"""Images as objects of other libraries: tensors of torch, arrays of JAX, image records of Hugging Face datasets.

None of these libraries is imported; an object is recognised by its methods.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeGuard

import numpy as np
import numpy.typing as npt

from clipmlu.data.dataframes import is_column
from clipmlu.errors import InputError, first_line

EXPECTED_IMAGE = (
    "Expected a path, bytes, an open binary file, a Pillow image, or uint8 pixels as a NumPy array or a torch tensor."
)
EXPECTED_PIXELS = (
    "Expected uint8, 0..255, of shape (H, W, 3) for RGB, (H, W, 4) for RGBA, (H, W) or (H, W, 1) for grey."
)
_CHANNELS = (1, 3, 4)
_FIELDS = frozenset({"bytes", "path"})


class SupportsArray(Protocol):
    """An object that NumPy converts to an array, such as a torch tensor on the CPU or a JAX array."""

    def __array__(self) -> npt.NDArray[Any]:
        """Return the values as an array."""


def is_tensor(value: object) -> bool:
    """Return whether a value is a tensor of torch, or of a library with the same methods."""
    return all(callable(getattr(value, name, None)) for name in ("detach", "cpu", "numpy"))


def is_array(value: object) -> bool:
    """Return whether a value is an array of another library than NumPy, such as JAX."""
    has_values = hasattr(value, "__array__") or hasattr(value, "__dlpack__")
    return has_values and hasattr(value, "shape") and hasattr(value, "dtype")


def is_record(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Return whether a value is an image of Hugging Face datasets that is not decoded: ``bytes``, ``path`` or both."""
    return isinstance(value, Mapping) and bool(value) and _FIELDS.issuperset(value)


def source_from_object(value: object, name: str | None = None) -> Any:
    """Return the image of another library's object as bytes, a path, or an array of shape (H, W, C) or (H, W).

    Args:
        value: a tensor of one image, an array of one image, or a record; see ``is_record``.
        name: name of the image in messages.

    Raises:
        InputError: the value is something else, or holds no uint8 pixels.
    """
    if is_tensor(value):
        return pixels_from_tensor(value, name)
    if is_record(value):
        return source_from_record(value, name)
    if is_array(value) and not is_column(value):
        return pixels_from_array(value)
    raise InputError(
        f"Cannot read an image{in_brackets(name)} from a value of type '{type(value).__name__}'{_what_else(value)}. {EXPECTED_IMAGE}"
    )


def pixels_from_tensor(tensor: Any, name: str | None = None) -> npt.NDArray[np.uint8]:
    """Return the pixels of a tensor on any device: the last axis holds the channels, or the image is grey.

    The axis of the channels has 1, 3 or 4 elements, and is the first or the last one of an image. A tensor in which both
    could be it is refused.

    Args:
        tensor: uint8, of shape (C, H, W), (H, W, C) or (H, W) for one image, or (N, C, H, W) or (N, H, W, C) for N.
        name: name of the image in messages.

    Returns:
        uint8, shape (H, W, C), (H, W) or (N, H, W, C).

    Raises:
        InputError: the tensor has another dtype or shape, or cannot be copied to the CPU.
    """
    shape, dtype = tuple(tensor.shape), str(tensor.dtype).rpartition(".")[2]
    where = f"the tensor of {dtype} with shape {shape}{in_brackets(name)}"
    if "float" in dtype:
        raise InputError(float_pixels(where, "(tensor * 255).round().to(torch.uint8)"))
    if dtype != "uint8" or len(shape) not in (2, 3, 4):
        raise InputError(f"Cannot use {where}. {EXPECTED_PIXELS} The channels of a tensor may also be its first axis.")
    channels_first = len(shape) > 2 and _channels_first(shape[-3:], where)
    try:
        pixels = np.asarray(tensor.detach().cpu().numpy())
    except Exception as error:  # each library has its own types
        raise InputError(f"Cannot use {where}: it cannot be converted to NumPy: {first_line(error)}.") from error
    return np.ascontiguousarray(np.moveaxis(pixels, -3, -1)) if channels_first else pixels


def _channels_first(shape: Sequence[int], where: str) -> bool:
    """Return whether the channels are the first axis of an image's shape, and not the last one."""
    first, last = shape[0] in _CHANNELS, shape[-1] in _CHANNELS
    if first and last:
        raise InputError(
            f"Cannot use {where}: the channels may be the first or the last axis of an image. Give a NumPy array, whose last axis "
            "they are: tensor.permute(1, 2, 0).numpy(), or tensor.numpy() if they are last already."
        )
    if not first and not last:
        raise InputError(f"Cannot use {where}: no axis has 1, 3 or 4 channels. {EXPECTED_PIXELS}")
    return first


def pixels_from_array(value: Any) -> npt.NDArray[Any]:
    """Return another library's array as one of NumPy.

    Raises:
        InputError: it cannot be converted.
    """
    try:
        return np.asarray(value) if hasattr(value, "__array__") else np.from_dlpack(value)
    except Exception as error:  # each library has its own types
        raise InputError(
            f"Cannot read an image from a value of type '{type(value).__name__}': it cannot be converted to NumPy: {first_line(error)}. {EXPECTED_IMAGE}"
        ) from error


def source_from_record(record: Mapping[str, Any], name: str | None = None) -> Any:
    """Return the bytes of a record, or its path if it has none; see ``is_record``.

    Raises:
        InputError: it has neither.
    """
    for field in ("bytes", "path"):
        if record.get(field) is not None:
            return record[field]
    raise InputError(
        f"Cannot read an image{in_brackets(name)}: its record has neither bytes nor a path. {EXPECTED_IMAGE}"
    )


def float_pixels(where: str, conversion: str) -> str:
    """Return the message about pixels in floating point.

    Args:
        where: what holds them.
        conversion: the expression that converts values in 0..1.
    """
    return (
        f"Cannot use {where}: the range of floating-point pixels is not known. {EXPECTED_PIXELS} For values in 0..1 pass "
        f"{conversion}. Pixels that the model's transform has normalised go to encode_images."
    )


def in_brackets(name: str | None) -> str:
    """Return an image's name for a message after what holds it; empty without a name."""
    return "" if name is None else f" ('{name}')"


def _what_else(value: object) -> str:
    """Return what to do with a value that is no image, after a colon; empty if there is no advice."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ": a missing value. Take it out, or give on_error='skip'"
    if isinstance(value, Mapping):
        return f" with the fields {', '.join(map(repr, value))}: give the field that holds the image"
    if isinstance(value, Iterable):
        return ": a list inside a list. Give all images in one list"
    return ""
