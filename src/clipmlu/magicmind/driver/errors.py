"""The errors of the driver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .log import LOG_TAIL
from .values import TEXTS, Fields, has_form, printable, show_value

ERROR_KINDS = (
    *("status", "device_lost", "out_of_memory", "none", "exception", "unexpected", "import", "model", "device"),
    *("shape", "spec", "calibration", "not_finite", "bug"),
)
"""Kinds of a ``DriverError``."""


class DriverError(Exception):
    """A call into the SDK failed, or was not made because it could not succeed.

    Attributes:
        call: the SDK's function, such as ``"enqueue"``, or the driver's own step, such as ``"check_shape"``.
        status: the Status of the SDK (code and message as printed), or a description of the problem.
        arguments: the call's arguments, each as a short text.
        kind: ``status`` a bad Status; ``device_lost`` and ``out_of_memory`` the same if its text says so; ``none`` a
            factory returned None; ``exception`` the SDK raised; ``unexpected`` it returned another type; ``import`` it
            cannot be imported; ``model`` a model file that it rejects; ``device`` the card does not exist; ``shape`` a
            batch, and ``spec`` a request, that does not fit; ``calibration`` its data; ``not_finite`` results are NaN
            or infinite twice in a row; ``bug`` an error of the driver.
    """

    def __init__(self, call: str, status: str, arguments: Sequence[str] = (), kind: str = "status") -> None:
        super().__init__(f"{call}({', '.join(arguments)}): {status}")
        self.call = call
        self.status = status
        self.arguments = tuple(arguments)
        self.kind = kind

    def to_json(self) -> Fields:
        """Return the error as a JSON object for a frame."""
        status, arguments = self.status[:LOG_TAIL], list(self.arguments)
        return {"call": self.call, "status": status, "arguments": arguments, "kind": self.kind}

    @classmethod
    def from_json(cls, value: Any) -> DriverError:
        """Return the error for the result of ``to_json``; its texts are reduced to one line each.

        Raises:
            ProtocolError: the value is not an error.
        """
        form = {"call": str, "status": str, "arguments": TEXTS, "kind": str}
        fits = isinstance(value, dict) and all(has_form(value.get(key), each) for key, each in form.items())
        if not fits or value["kind"] not in ERROR_KINDS:
            raise ProtocolError(f"an error that is none: {show_value(value)}")
        arguments = [printable(item, 200) for item in value["arguments"][:16]]
        return cls(printable(value["call"], 200), printable(value["status"], 2000), arguments, value["kind"])


class ProtocolError(Exception):
    """The other side violated the protocol; the connection must be closed."""


class GreetingError(Exception):
    """The other side refuses the connection; another attempt would have the same result."""


class DeadlineError(Exception):
    """The other side took too long."""
