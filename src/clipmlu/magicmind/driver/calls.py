"""Calls of the SDK. Every Status, None and exception is checked here, and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .errors import DriverError


def invoke(call: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the SDK; for many mistakes it is not known whether it raises or returns a Status (api 7.8)."""
    try:
        return function(*arguments)
    except Exception as error:
        raise DriverError(call, f"{type(error).__name__}: {error}", _brief(arguments), "exception") from error


def check_status(call: str, answer: Any, arguments: Sequence[Any] = ()) -> None:
    """Raise unless ``answer`` is a good Status."""
    if not _is_status(answer):
        raise DriverError(call, f"answered {answer!r} instead of a Status", _brief(arguments), "unexpected")
    if not answer.ok():
        text = str(answer)
        raise DriverError(call, text, _brief(arguments), _kind_of(text))


def checked(call: str, function: Callable[..., Any], *arguments: Any) -> None:
    """Make a call that returns a Status."""
    check_status(call, invoke(call, function, *arguments), arguments)


def made(call: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Make a call that returns an object; None and a Status are failures."""
    answer = invoke(call, function, *arguments)
    if answer is None:
        raise DriverError(call, "answered None; the SDK's log says why", _brief(arguments), "none")
    if _is_status(answer):
        text = str(answer)
        raise DriverError(call, text, _brief(arguments), _kind_of(text))
    return answer


def made_list(call: str, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Make a call that returns a list, or a Status on failure (api 2.12)."""
    answer = made(call, function, *arguments)
    if not isinstance(answer, list):
        raise DriverError(call, f"answered {answer!r} instead of a list", _brief(arguments), "unexpected")
    return answer


def optional(call: str, function: Callable[..., Any], *arguments: Any) -> None:
    """Make a call whose result is not documented (api 7.17): only a bad Status is a failure."""
    answer = invoke(call, function, *arguments)
    if _is_status(answer):
        check_status(call, answer, arguments)


def _is_status(answer: Any) -> bool:
    return callable(getattr(answer, "ok", None)) and callable(getattr(answer, "error_message", None))


_NO_MEMORY = ("resource_exhausted", "resource exhausted", "out of memory", "out of device memory")


def _kind_of(text: str) -> str:
    """Return the error kind of a Status; Python can read only its text (api 2.1), whose form is known from a log only."""
    lowered = text.lower()
    if "unavailable" in lowered or "device lost" in lowered or "device is lost" in lowered:
        return "device_lost"
    if any(words in lowered for words in _NO_MEMORY):
        return "out_of_memory"
    return "status"


def _brief(arguments: Sequence[Any]) -> list[str]:
    return [_brief_one(argument) for argument in arguments]


def _brief_one(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, (list, tuple)) and not all(isinstance(item, (int, float, str)) for item in value):
        return f"[{len(value)} items]"
    text = str(value) if hasattr(value, "GetDims") else repr(value)
    if re.match(r"<.* object at 0x[0-9a-f]+>\Z", text):
        text = type(value).__name__
    return text if len(text) <= 200 else text[:197] + "..."
