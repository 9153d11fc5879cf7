"""Preprocessing of images as a configuration file of the transformers library describes it, read without that library.

The steps are those of its image processors in version 5.24 (``image_processing_backends.PilBackend``), whose pixels a
``Preprocessor`` gives bit for bit: conversion to RGB, resize with Pillow, central crop, scaling, normalisation. Processors on
torchvision, which the library prefers if that is installed, resize with torch: their pixels differ by a few levels of 255.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from clipmlu.errors import InputError, reason_of
from clipmlu.files.read import read_json
from clipmlu.specs import PreprocessSpec, RgbConversion

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
"""Files of a directory that may describe the image processor; the library takes the first one that does."""

_MOST_BYTES = 1 << 20
_LARGEST_NUMBER = 1e9
_SHOWN = 40  # characters of a wrong value
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # transformers.image_utils.OPENAI_CLIP_MEAN and OPENAI_CLIP_STD
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_BICUBIC, _BILINEAR = 3, 2
_FILTERS = {_BICUBIC: "bicubic", _BILINEAR: "bilinear"}
_OTHER_FILTERS = {0: "nearest", 1: "lanczos", 4: "box", 5: "hamming"}  # PIL.Image.Resampling

_CLIP = {
    "resample": _BICUBIC,
    "image_mean": _CLIP_MEAN,
    "image_std": _CLIP_STD,
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
}
_STANDARD = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIP": _CLIP,
    "ChineseCLIP": _CLIP,
    "Siglip": {**_STANDARD, "resample": _BICUBIC, "size": {"height": 224, "width": 224}},
    "Siglip2": {**_STANDARD, "resample": _BILINEAR, "patch_size": 16, "max_num_patches": 256},
    "ViT": {**_STANDARD, "resample": _BILINEAR, "size": {"height": 224, "width": 224}},
    "EfficientNet": {
        **_STANDARD,
        "resample": _BICUBIC,
        "size": {"height": 346, "width": 346},
        "crop_size": {"height": 289, "width": 289},
        "include_top": True,
    },
}
"""Values that a file may leave out, by the first part of the image processor's name (the class attributes of each)."""

_EDGE_BY_DEFAULT = ("CLIP", "ChineseCLIP")  # default_to_square is False: a size that is one number is the shortest edge
_SUFFIXES = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
_ON_BY_DEFAULT = ("do_resize", "do_rescale", "do_normalize")
_KNOWN = frozenset(
    {"resample", "image_mean", "image_std", "size", "crop_size", "do_center_crop", "rescale_factor", "rescale_offset"}
) | frozenset(_ON_BY_DEFAULT)
_WITHOUT_EFFECT = frozenset(
    {
        "image_processor_type",
        "feature_extractor_type",
        "processor_class",
        "_processor_class",
        "_valid_processor_keys",
        "do_convert_rgb",  # False only says that the images are RGB
        "default_to_square",
        "return_tensors",
        "data_format",
        "input_data_format",
        "device",
        "disable_grouping",
        "model_input_names",
        "image_seq_length",
        "transformers_version",
        "patch_size",
        "max_num_patches",
        "use_fast",
        "backend",
        "antialias",
    }
)


def read_processor(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Read the settings of a directory's image processor.

    Returns:
        The file, and the settings.

    Raises:
        InputError: no file of ``PROCESSOR_FILES`` describes an image processor, or one cannot be read.
    """
    for name in PROCESSOR_FILES:
        path = folder / name
        try:
            content = read_json(path, dict[str, Any], _MOST_BYTES)
        except FileNotFoundError:
            continue
        except (OSError, msgspec.DecodeError) as error:
            raise InputError(f"Cannot read the preprocessing '{path}': {reason_of(error)}.") from error
        inner = content.get("image_processor") if name == PROCESSOR_FILES[0] else content
        if isinstance(inner, dict):
            return path, inner
    raise InputError(
        f"'{folder}' does not say how images are prepared: expected {PROCESSOR_FILES[1]}, or {PROCESSOR_FILES[0]} with "
        "'image_processor'."
    )


def spec_from_processor(config: Mapping[str, Any], *, transparency: RgbConversion = "first") -> PreprocessSpec:
    """Convert the settings of an image processor to a ``PreprocessSpec``.

    Args:
        config: content of ``preprocessor_config.json``, or ``image_processor`` of ``processor_config.json``. Missing entries
            get the defaults of the named image processor.
        transparency: what becomes of transparent images: ``first`` drops the transparency, as the library did up to version
            4 and as transformers.js does; ``white`` lays them on white, as version 5 does. Others are the same.

    Raises:
        ValueError: a step cannot be expressed; the message names it.
    """
    kind = _kind(config)
    given = {**_DEFAULTS[kind], **{key: value for key, value in config.items() if value is not None}}
    _refuse_other_steps(given, kind)
    rows, columns = _size_of_input(given, kind)
    mean, std = _normalisation(given)
    mode, target = _resize(given, kind, (rows, columns))
    fields = {
        "height": rows,
        "width": columns,
        "mean": mean,
        "std": std,
        "resize_mode": mode,
        "interpolation": _interpolation(given["resample"]),
        "to_rgb": transparency,
        "crop_rounding": "down",
        "resize_to": None if target == (rows, columns) else target,
    }
    try:
        return msgspec.convert(fields, PreprocessSpec)
    except msgspec.ValidationError as error:
        raise ValueError(f"the preprocessing cannot be expressed: {error}") from error


def is_naflex(config: Mapping[str, Any]) -> bool:
    """Return whether an image processor keeps the aspect ratio of images, so that only square ones get the fixed size."""
    return _kind(config) == "Siglip2"


def _kind(config: Mapping[str, Any]) -> str:
    name = config.get("image_processor_type") or config.get("feature_extractor_type") or "CLIPImageProcessor"
    if "auto_map" in config:
        raise ValueError("the image processor requires its own Python code ('auto_map'), which clipmlu never runs")
    kinds = [kind for kind in _DEFAULTS for suffix in _SUFFIXES if name == f"{kind}{suffix}"]
    if not kinds:
        known = ", ".join(f"{kind}ImageProcessor" for kind in _DEFAULTS)
        raise ValueError(f"the image processor is '{name}'; expected one of {known}")
    return kinds[0]


def _refuse_other_steps(given: Mapping[str, Any], kind: str) -> None:
    for step in _ON_BY_DEFAULT[:2]:
        if not given.get(step, True):
            raise ValueError(f"'{step}' is off; images of any size and the values 0..255 cannot be taken without it")
    for name, value in given.items():
        # What is not known may change the pixels, unless it is off.
        if name not in _KNOWN | _WITHOUT_EFFECT and value and name != "auto_map":
            raise ValueError(f"the step '{name}' with {value!r} cannot be expressed")
    if kind == "EfficientNet" and given["include_top"]:
        raise ValueError("the step 'include_top', a second normalisation, cannot be expressed")


def _size_of_input(given: Mapping[str, Any], kind: str) -> tuple[int, int]:
    if kind == "Siglip2":
        side = math.isqrt(_count(given["max_num_patches"], "max_num_patches"))
        return (side * _count(given["patch_size"], "patch_size"),) * 2
    if given.get("do_center_crop"):
        return _sides(given["crop_size"], "crop_size")
    size = given["size"]
    if _shortest_edge(size, kind) is not None:
        raise ValueError(f"'size' is {size!r} and 'do_center_crop' is off, so that images have no fixed size")
    return _sides(size, "size")


def _resize(given: Mapping[str, Any], kind: str, sides: tuple[int, int]) -> tuple[str, tuple[int, int]]:
    """Return the mode of the resize, and the rows and columns that it fits the image to."""
    if kind == "Siglip2":
        return "squash", sides
    size, edge = given["size"], _shortest_edge(given["size"], kind)
    if edge is not None:
        mode, target = "shortest", (_count(edge, "size"),) * 2
    else:
        mode, target = "squash", _sides(size, "size")
    if target[0] < sides[0] or target[1] < sides[1]:
        raise ValueError(f"'crop_size' {sides} is larger than 'size' {target}: the black border cannot be expressed")
    return mode, target


def _shortest_edge(size: object, kind: str) -> object:
    """Return the length of the shortest edge after the resize, if the size names that, or None."""
    if isinstance(size, Mapping):
        return size["shortest_edge"] if set(size) == {"shortest_edge"} else None
    return size if isinstance(size, int) and kind in _EDGE_BY_DEFAULT else None


def _sides(size: object, name: str) -> tuple[int, int]:
    """Return height and width of a size in one of the library's forms."""
    if isinstance(size, Mapping) and set(size) == {"height", "width"}:
        return _count(size["height"], name), _count(size["width"], name)
    if isinstance(size, Sequence) and not isinstance(size, str) and len(size) == 2:
        return _count(size[0], name), _count(size[1], name)
    if isinstance(size, int):
        return (_count(size, name),) * 2
    raise ValueError(f"'{name}' is {size!r}; expected 'height' and 'width', or 'shortest_edge'")


def _count(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"'{name}' is {value!r}; expected whole numbers from 1 on")
    return value


def _interpolation(code: object) -> str:
    if isinstance(code, int) and code in _FILTERS:
        return _FILTERS[code]
    named = _OTHER_FILTERS.get(code) if isinstance(code, int) else None
    raise ValueError(
        f"the filter 'resample' is {code!r}{f' ({named})' if named else ''}; expected 2 (bilinear) or 3 (bicubic)"
    )


def _normalisation(given: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of values in 0..1 that stand for the scaling, the offset and the normalisation."""
    scale = _number(given.get("rescale_factor", 1 / 255), "rescale_factor") * 255
    scale = 1.0 if math.isclose(scale, 1.0, abs_tol=1e-6) else scale
    if scale <= 0:
        raise ValueError(f"'rescale_factor' is {given['rescale_factor']!r}; expected a positive number")
    offset = 1.0 if given.get("rescale_offset") else 0.0
    normalised = given.get("do_normalize", True)
    mean = _colours(given["image_mean"], "image_mean") if normalised else [0.0] * 3
    std = _colours(given["image_std"], "image_std") if normalised else [1.0] * 3
    return [(value + offset) / scale for value in mean], [value / scale for value in std]


def _colours(value: object, name: str) -> list[float]:
    values = list(value) if isinstance(value, (list, tuple)) else [value] * 3
    if len(values) != 3:
        raise ValueError(f"'{name}' is {value!r}; expected a number for each of red, green and blue")
    return [_number(each, name) for each in values]


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _LARGEST_NUMBER:
        raise ValueError(f"'{name}' has {str(value)[:_SHOWN]!r}; expected numbers")
    return float(value)
