"""Checked answers of a driver: every field is validated here before it is used."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec

from clipmlu.data.feeds import Array
from clipmlu.magicmind.driver.errors import ProtocolError
from clipmlu.magicmind.driver.service import MAX_DEPTH
from clipmlu.magicmind.driver.values import printable
from clipmlu.specs import LARGEST_SIZE, Spec

Fields = dict[str, Any]
MAX_MODEL_BYTES = 1 << 34
"""Largest size in bytes of a fetched model file: several times the largest graph that can be sent."""

_MAX_LINE = 2000
_MAX_PROBLEM = 400
_Count = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_SIZE)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class Line(str):
    """A text from the driver, as one line without control characters."""


class Port(Spec, frozen=True, kw_only=True):
    """One input or output of the built model; -1 stands for a variable size."""

    shape: tuple[int, ...]
    dtype: str


class _WirePort(msgspec.Struct, frozen=True, kw_only=True):
    """A port in the driver's answer, before conversion to ``Port``."""

    shape: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=-LARGEST_SIZE, le=LARGEST_SIZE)], ...], msgspec.Meta(max_length=8)
    ]
    dtype: Literal[
        "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "bool"
    ]


class _Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Base class of checked answer fields; additional fields are ignored."""


_Ports = Annotated[tuple[_WirePort, ...], msgspec.Meta(max_length=64)]
_Lines = Annotated[tuple[Line, ...], msgspec.Meta(max_length=64)]


class OpenedFacts(_Facts, frozen=True, kw_only=True):
    """Answer to ``open``: the session's number, batches that the card takes at a time, and the model's ports."""

    session: Annotated[int, msgspec.Meta(ge=1, le=LARGEST_SIZE)]
    depth: Annotated[int, msgspec.Meta(ge=1, le=MAX_DEPTH)]
    emulated: bool
    warnings: _Lines
    inputs: _Ports
    outputs: _Ports


class BuiltFacts(_Facts, frozen=True, kw_only=True):
    """Answer to ``build``: the size of the model file, the number of calibration batches, and the model's ports."""

    bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_MODEL_BYTES)]
    calibration_batches: _Count
    warnings: _Lines
    inputs: _Ports
    outputs: _Ports


class SdkFacts(_Facts, frozen=True, kw_only=True):
    """Path of the SDK, and its version if known."""

    path: Line
    version: Line | None


class HostFacts(_Facts, frozen=True, kw_only=True):
    """Answer to ``info``: interpreter, NumPy, the SDK, its cards, and why it is not available."""

    python: Line
    numpy: Line
    sdk: SdkFacts | None
    emulated: bool
    cards: _Count | None
    problem: Line | None


class HaveFacts(_Facts, frozen=True, kw_only=True):
    """Answer to ``have``: whether the driver can read the identical file."""

    have: bool


class TokenFacts(_Facts, frozen=True, kw_only=True):
    """Answer to ``check_slot``: the content of shared memory, in hex."""

    token: str


class RunFacts(_Facts, frozen=True, kw_only=True):
    """Answer to ``run``: seconds by stage."""

    times: dict[str, _Seconds]


Facts = TypeVar("Facts", bound=_Facts)


class Answer:
    """One answer.

    Args:
        operation: the operation of the request.
        fields: header of the answer.
        arrays: arrays of the answer.
    """

    def __init__(self, operation: str, fields: Fields, arrays: list[Array]) -> None:
        self.operation = operation
        self._fields = fields
        self._arrays = arrays

    def read(self, kind: type[Facts]) -> Facts:
        """Return the fields of an answer without arrays.

        Raises:
            ProtocolError: a field is missing or invalid, or there are arrays.
        """
        self._expect_arrays(0)
        return self._read(kind)

    def batch(self) -> tuple[RunFacts, list[Array]]:
        """Return the times of a run and its results, which are not checked yet.

        Raises:
            ProtocolError: as for ``read``.
        """
        return self._read(RunFacts), self._arrays

    def nothing(self) -> None:
        """Check that the answer has no arrays.

        Raises:
            ProtocolError: it has arrays.
        """
        self._expect_arrays(0)

    def piece(self, least: int, most: int) -> bytes:
        """Return the part of a file in the answer.

        Raises:
            ProtocolError: there is none, or it has another size.
        """
        self._expect_arrays(1)
        piece = self._arrays[0]
        if piece.dtype.name != "uint8" or piece.ndim != 1 or not least <= piece.size <= most:
            raise ProtocolError(
                f"its answer to '{self.operation}' holds {piece.dtype} {list(piece.shape)}; "
                f"expected uint8, {least} to {most} bytes"
            )
        return piece.tobytes()

    def _expect_arrays(self, count: int) -> None:
        if len(self._arrays) != count:
            raise ProtocolError(f"its answer to '{self.operation}' holds {len(self._arrays)} arrays; expected {count}")

    def _read(self, kind: type[Facts]) -> Facts:
        try:
            return msgspec.convert(self._fields, kind, dec_hook=_line_from)
        except msgspec.ValidationError as error:
            problem = printable(str(error), _MAX_PROBLEM)
            raise ProtocolError(f"its answer to '{self.operation}' is not as expected: {problem}") from error
        except UnicodeEncodeError as error:
            raise ProtocolError(f"its answer to '{self.operation}' holds a text that is no Unicode") from error


def ports_from(ports: tuple[_WirePort, ...]) -> tuple[Port, ...]:
    """Convert ports to the stored form."""
    return tuple(Port(shape=port.shape, dtype=port.dtype) for port in ports)


def _line_from(kind: type, value: Any) -> Any:
    if kind is not Line or not isinstance(value, str):
        raise TypeError(f"Expected `str`, got `{type(value).__name__}`")
    return Line(printable(value, _MAX_LINE))
