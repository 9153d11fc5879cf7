"""A check of ONNX files from remote clients: no tensor may have its data in another file."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from typing import Any

from .errors import DriverError

_ONNX_PARTS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
"""Maps each message to its fields with submessages (onnx.proto3)."""
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14


def check_holds_its_weights(path: str) -> None:
    """Refuse an ONNX file with external data: the parser would put the content of other files into the model.

    Raises:
        DriverError: a tensor has external data, or the file is not an ONNX file.
    """
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        waiting = [("model", 0, size)]
        try:
            while waiting:
                kind, start, end = waiting.pop()
                for number, value, first in _protobuf_fields(data, start, end):
                    if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value)):
                        raise DriverError("parse", "weights in other files are refused here", [repr(path)], "spec")
                    if number in _ONNX_PARTS[kind] and first is not None:
                        waiting.append((_ONNX_PARTS[kind][number], first, first + value))
        except (IndexError, ValueError) as error:
            raise DriverError("parse", f"it is no ONNX file: {error}", [repr(path)], "spec") from error
        finally:
            if size:
                data.close()  # type: ignore[union-attr]


def _protobuf_fields(data: Any, position: int, end: int) -> Iterable[tuple[int, int, int | None]]:
    """Yield the fields of a message: number, and value or length, and the start of a field with a length, else None."""
    while position < end:
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value, None
            continue
        length = {1: 8, 5: 4}.get(wire, 0)
        if wire == 2:
            length, position = _varint(data, position)
        elif not length:
            raise ValueError(f"a field of the kind {wire}")
        if position + length > end:
            raise ValueError("a field that leaves its message")
        if wire == 2:
            yield number, length, position
        position += length


def _varint(data: Any, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("a number without an end")
