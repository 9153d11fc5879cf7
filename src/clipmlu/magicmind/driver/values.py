"""Array types that may be sent, checks of a field's form, and values as text for messages."""

from __future__ import annotations

from typing import Any, Dict

import numpy as np

DATA_TYPES = {
    "FLOAT16": "float16",
    "FLOAT32": "float32",
    "FLOAT64": "float64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "BOOL": "bool",
}
"""Maps members of the SDK's DataType (api 2.3) to NumPy types; only these can be sent."""
Array = np.ndarray
Fields = Dict[str, Any]
TEXTS = [str]
SIZES = [int]
NUMBERS = [(int, float)]


def has_form(value: Any, form: Any) -> bool:
    """Return whether a value has a form: a type, None, a tuple of forms, ``[item form]`` or ``{"*": value form}``."""
    if isinstance(form, tuple):
        return any(has_form(value, each) for each in form)
    if isinstance(form, list):
        return isinstance(value, (list, tuple)) and all(has_form(item, form[0]) for item in value)
    if isinstance(form, dict):
        return isinstance(value, dict) and all(has_form(item, form["*"]) for item in value.values())
    if form is None:
        return value is None
    return isinstance(value, form) and (form is bool or not isinstance(value, bool))


def show_value(value: Any) -> str:
    """Return a value as text for a message, at most 100 characters."""
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def printable(text: str, most: int) -> str:
    """Return a text from another process as one printable line of at most ``most`` characters."""
    line = " ".join(text[: 4 * most].split())
    return "".join(letter if letter.isprintable() else "?" for letter in line)[:most]
