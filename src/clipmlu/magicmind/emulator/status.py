"""Status and Code: the results of all SDK calls that can fail (api 2.1)."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from typing import Any

from clipmlu.magicmind.emulator.log import log_refusal, log_status
from clipmlu.magicmind.emulator.settings import switches


class Code(enum.Enum):
    """Status codes.

    Public Python code shows OUT_OF_RANGE only; C++ also shows UNAVAILABLE and INTERNAL (S#49760091045). The other names
    are inferred: they belong to the same family of codes.
    """

    OK = 0
    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15


class Status:
    """Outcome of a call; ``Status()`` and ``Status.OK()`` mean success (MC resnet50_onnx and clip calibrator.py).

    Args:
        code: kind of the failure.
        message: printable text.
    """

    def __init__(self, code: Code = Code.OK, message: str = "") -> None:
        if not isinstance(code, Code):
            raise TypeError(f"Status(): incompatible constructor arguments; code is {type(code).__name__}")
        self._code = code
        self._message = message

    @staticmethod
    def OK() -> Status:
        """Return the status of success."""
        return Status()

    def ok(self) -> bool:
        """Return whether the call succeeded."""
        return self._code is Code.OK

    def error_message(self) -> str:
        """Return the text, which is empty on success (MC-old crnn infer.py)."""
        return self._message

    def carries(self, code: Code) -> bool:
        """Return whether the status has this code; only the emulator calls it."""
        return self._code is code

    def __str__(self) -> str:
        return "OK" if self.ok() else f"{self._code.name}: {self._message}"

    __repr__ = __str__

    def __bool__(self) -> bool:
        # A good Status must be truthy: hoitransformer asserts it directly. Whether a bad one is falsy is not known.
        return switches().opaque_status or self.ok()

    def __getattr__(self, name: str) -> Any:
        # Only C++ shows this method (S#49760091045), so strict mode does not have it.
        if name == "code" and not switches().opaque_status:
            return lambda: self._code
        raise AttributeError(f"'Status' object has no attribute '{name}'")


class StatusError(Exception):
    """An internal exception with a bad Status, caught by the call that returns the Status."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.status = Status(code, message)
        self._code = code

    def log_status(self, call: str) -> Status:
        """Log the Status that a call returns, and return it."""
        log_status(call, self._code.name, str(self))
        return self.status

    def log_none(self, call: str) -> None:
        """Log why a call returns None; nothing else shows the reason."""
        log_refusal(call, self._code.name, str(self))


def returns_status(call: Callable[..., Any]) -> Callable[..., Status]:
    """Wrap a function that raises StatusError so that it logs and returns the Status; other exceptions are bugs and pass."""

    @functools.wraps(call)
    def wrapper(*args: Any, **kwargs: Any) -> Status:
        try:
            call(*args, **kwargs)
        except StatusError as error:
            return error.log_status(call.__name__)
        return Status()

    return wrapper
