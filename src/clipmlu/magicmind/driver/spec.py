"""Checks a request to build a model: its keys and the form of their values."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from .errors import DriverError
from .values import NUMBERS, SIZES, TEXTS, Fields, has_form, show_value

PRECISIONS = (
    "force_float32",
    "force_float16",
    "qint8_mixed_float16",
    "qint8_mixed_float32",
    "qint16_mixed_float16",
    "qint16_mixed_float32",
)
ALGORITHMS = {"linear": "LINEAR_ALGORITHM", "eqnm": "EQNM_ALGORITHM"}
BUILD_FORM: Fields = {
    "onnx": str,
    "output": str,
    "label": str,
    "precision": str,
    "granularity": str,
    "activation": str,
    "archs": {"*": SIZES},
    "mutable": bool,
    "inputs": [dict],
    "outputs": [dict],
    "type64to32": bool,
    "conv_scale_fold": bool,
    "computation_preference": str,
    "toolchain": (str, None),
    "nodes": ({"*": (str, dict)}, None),
    "calibration": (dict, None),
    "extra": (dict, None),
}
INPUT_FORM: Fields = {
    "shape": SIZES,
    "min": SIZES,
    "max": SIZES,
    "dtype": (str, None),
    "mean": NUMBERS,
    "var": NUMBERS,
    "layout": (TEXTS, None),
}
NODE_FORM: Fields = {"inputs": {"*": str}, "outputs": {"*": str}}
OUTPUT_FORM: Fields = {"dtype": (str, None), "layout": (TEXTS, None)}
CALIBRATION_FORM: Fields = {
    "algorithm": str,
    "data": [dict],
    "remote": (str, None),
    "remote_device": (int, None),
    "device": (int, None),
}
SOURCE_FORM: Fields = {"arrays": [(int, np.ndarray)], "files": TEXTS, "file": str, "batch": int, "repeat": bool}
"""Maps each key to the form of its value; see ``has_form``."""


def check_spec(spec: Fields) -> None:
    """Refuse unknown keys and contradictions before the SDK is called; its behaviour for them is not known (api 7.8)."""
    check_form("build", spec, BUILD_FORM, ("onnx", "output", "precision", "archs", "inputs"))
    for item in spec["inputs"]:
        check_form("inputs", item, INPUT_FORM, ("shape",))
        if any(size < 1 for size in item["shape"]):
            raise DriverError("build", f"shape is {item['shape']}; expected sizes of 1 or more", kind="spec")
        if ("min" in item) != ("max" in item) or ("mean" in item) != ("var" in item):
            raise DriverError("build", "min needs max, and mean needs var", kind="spec")
    for item in spec.get("outputs", ()):
        check_form("outputs", item, OUTPUT_FORM, ())
    for name, types in (spec.get("nodes") or {}).items():
        _check_node(name, types)
    for item in [*spec["inputs"], *spec.get("outputs", ())]:
        if len(item.get("layout") or "ab") != 2:
            raise DriverError("build", f"layout is {item['layout']}; expected source and destination", kind="spec")
    if spec["precision"] not in PRECISIONS:
        raise DriverError("build", f"precision is '{spec['precision']}'; known: {', '.join(PRECISIONS)}", kind="spec")
    if "qint" in spec["precision"] or spec.get("calibration"):
        _check_calibration(spec)


def _check_node(name: str, types: Any) -> None:
    if isinstance(types, str):
        return
    check_form(f"node '{name}'", types, NODE_FORM, ())
    if not all(re.match(r"[0-9]{1,4}\Z", index) for side in types.values() for index in side):
        raise DriverError("build", f"node '{name}': {show_value(types)}; expected numbers as keys", kind="spec")


def _check_calibration(spec: Fields) -> None:
    calibration = spec.get("calibration")
    if not calibration:
        raise DriverError("build", f"{spec['precision']} needs calibration data", kind="calibration")
    check_form("calibration", calibration, CALIBRATION_FORM, ("data",))
    algorithm = calibration.get("algorithm", "linear")
    if algorithm not in ALGORITHMS:
        raise DriverError("build", f"algorithm is '{algorithm}'; known: {', '.join(ALGORITHMS)}", kind="spec")
    if algorithm == "eqnm" and spec.get("activation", "symmetric") != "symmetric":  # MC hoitransformer comment
        raise DriverError("build", "eqnm works with symmetric activations only", kind="spec")


def check_form(place: str, value: Fields, form: Fields, needed: Iterable[str]) -> None:
    """Check the keys and the values of one part of a request.

    Args:
        place: name of the part in messages.
        value: the part.
        form: maps each key to the form of its value; see ``has_form``.
        needed: required keys.

    Raises:
        DriverError: a key is missing or unknown, or a value has another form.
    """
    unknown, missing = sorted(set(value) - set(form)), sorted(set(needed) - set(value))
    if unknown or missing:
        raise DriverError("build", f"{place}: unknown keys {unknown}, missing keys {missing}", kind="spec")
    for key, item in value.items():
        if not has_form(item, form[key]):
            raise DriverError("build", f"{place}: '{key}' is {show_value(item)}", kind="spec")
