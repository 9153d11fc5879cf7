"""Arrays in frames: their list in the header, and reading them from a buffer."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import DriverError, ProtocolError
from .values import DATA_TYPES, SIZES, Array, Fields, has_form, show_value

MAX_PAYLOAD = 2 << 30
ALIGNMENT = 64


def bytes_of(values: Array) -> Array:
    """Return the bytes of an array as a flat array of uint8."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def layout_of(arrays: Sequence[Array], start: int = 0) -> tuple[list[Fields], int]:
    """Return the header entries of arrays that are stored one after the other, and the offset of the end."""
    listed, end = [], start
    for item in arrays:
        if item.dtype.name not in DATA_TYPES.values():
            raise DriverError("send", f"arrays of {item.dtype} do not travel", kind="spec")
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        listed.append({"dtype": item.dtype.name, "shape": list(item.shape), "offset": offset})
        end = offset + item.nbytes
    return listed, end


def arrays_in(header: Fields, payload: Array, slots: dict[int, Array]) -> list[Array]:
    """Return the arrays that a header lists, as views of the payload or of a slot.

    Raises:
        ProtocolError: an entry has another form than ``layout_of`` writes, or lies outside its buffer.
    """
    return [_array_in(entry, payload, slots) for entry in entries_in(header)]


_Entry = collections.namedtuple("_Entry", ["dtype", "shape", "offset", "nbytes", "slot"])


def entries_in(header: Fields) -> list[_Entry]:
    """Return the entries of the arrays that a header lists.

    Raises:
        ProtocolError: an entry has another form than ``layout_of`` writes.
    """
    listed = header.get("arrays", [])
    if not isinstance(listed, list):
        raise ProtocolError(f"a bad list of arrays: {show_value(listed)}")
    return [_entry_from(entry) for entry in listed]


def _entry_from(entry: Any) -> _Entry:
    form = {"dtype": str, "shape": SIZES, "offset": int, "slot": (int, None)}
    if not isinstance(entry, dict) or not all(has_form(entry.get(key), each) for key, each in form.items()):
        raise ProtocolError(f"a bad array: {show_value(entry)}")
    name, shape, offset = entry["dtype"], entry["shape"], entry["offset"]
    sizes_fit = len(shape) <= 8 and all(0 <= size <= MAX_PAYLOAD for size in shape)
    if name not in DATA_TYPES.values() or not sizes_fit or not 0 <= offset <= MAX_PAYLOAD:
        raise ProtocolError(f"a bad array: {show_value(entry)}")
    nbytes = np.dtype(name).itemsize
    for size in shape:
        nbytes *= size
    if nbytes > MAX_PAYLOAD:
        raise ProtocolError(f"an array of {nbytes} bytes: {show_value(entry)}")
    return _Entry(np.dtype(name), shape, offset, nbytes, entry.get("slot"))


def _array_in(entry: _Entry, payload: Array, slots: dict[int, Array]) -> Array:
    if entry.slot is not None and entry.slot not in slots:
        raise ProtocolError(f"there is no shared memory {entry.slot}")
    buffer = payload if entry.slot is None else slots[entry.slot]
    if entry.offset + entry.nbytes > buffer.nbytes:
        raise ProtocolError(f"an array that leaves its buffer: {entry.dtype}{entry.shape} at {entry.offset}")
    try:
        if not entry.nbytes:
            return np.empty(entry.shape, entry.dtype)
        count = entry.nbytes // entry.dtype.itemsize
        return np.frombuffer(buffer, entry.dtype, count, entry.offset).reshape(entry.shape)
    except ValueError as error:  # an empty array whose sizes overflow in NumPy
        raise ProtocolError(f"a bad array: {entry.dtype}{entry.shape}: {error}") from error
