"""Reading and writing the fields of protobuf messages, of which ONNX files consist.

The encoding is that of https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types; groups, 3 and 4, are in no ONNX file."""


class Field(NamedTuple):
    """One field of a message.

    Attributes:
        number: its number.
        wire: its wire type.
        value: the number, of a varint; otherwise 0.
        start: offset of its content, for bytes and fixed sizes.
        end: end of its content; equal to ``start`` for a varint.
        begin: offset of its key.
    """

    number: int
    wire: int
    value: int
    start: int
    end: int
    begin: int


def read_fields(content: mmap.mmap | bytes | memoryview, position: int, end: int) -> Iterator[Field]:
    """Yield the fields of the message between two offsets.

    Raises:
        ValueError: it is no message, or damaged.
    """
    while position < end:
        begin = position
        key, position = read_varint(content, position, end)
        number, wire = key >> 3, key & 7
        value = 0
        start = position
        if wire == VARINT:
            value, start = read_varint(content, position, end)
            position = start
        elif wire == BYTES:
            size, start = read_varint(content, position, end)
            position = start + size
        elif wire in (FIXED32, FIXED64):
            position = start + (4 if wire == FIXED32 else 8)
        if wire not in (VARINT, BYTES, FIXED32, FIXED64) or number == 0 or position > end:
            raise ValueError(f"it is not an ONNX file, or damaged at byte {start:,}")
        yield Field(number, wire, value, start, position, begin)


def read_varint(content: mmap.mmap | bytes | memoryview, position: int, end: int) -> tuple[int, int]:
    """Return the unsigned number at an offset, and the offset behind it.

    Raises:
        ValueError: no number is there.
    """
    value = shift = 0
    while position < end and shift < 70:
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError(f"it is not an ONNX file, or damaged at byte {position:,}")


def signed(value: int) -> int:
    """Return the int64 that a varint stores in two's complement."""
    return value - (1 << 64) if value >> 63 else value


def varint(value: int) -> bytes:
    """Return a number as a varint; a negative one in two's complement of 64 bits."""
    value &= (1 << 64) - 1
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*result, value])


def number_field(number: int, value: int) -> bytes:
    """Return a field with a number."""
    return varint(number << 3 | VARINT) + varint(value)


def bytes_field(number: int, content: bytes | str) -> bytes:
    """Return a field with bytes, a text or a message."""
    content = content.encode() if isinstance(content, str) else content
    return bytes_head(number, len(content)) + content


def bytes_head(number: int, size: int) -> bytes:
    """Return what stands before the content of a field with that many bytes."""
    return varint(number << 3 | BYTES) + varint(size)
