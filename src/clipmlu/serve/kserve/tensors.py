"""Tensors of the protocol: their datatypes, and their data as JSON and as binary."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from clipmlu.arguments import shown
from clipmlu.errors import InputError

Datatype = Literal["FP32", "UINT8", "INT64", "BYTES"]
Values = npt.NDArray[Any] | list[bytes]
"""Values of a tensor: an array of its shape, or the elements of a BYTES tensor in row-major order."""

_DTYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1"), "INT64": np.dtype("<i8")}
_NAMES: dict[np.dtype[Any], Datatype] = {
    np.dtype(np.float32): "FP32",
    np.dtype(np.uint8): "UINT8",
    np.dtype(np.int64): "INT64",
}
_LENGTH_BYTES = 4


class TensorFacts(NamedTuple):
    """What a model says about an input or output.

    Attributes:
        name: its name.
        datatype: its datatype.
        shape: its shape; -1 is a dimension of any size.
        rows: largest first dimension of an input.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    rows: int = 1


def datatype_of(dtype: npt.DTypeLike) -> Datatype:
    """Return the datatype of an array's dtype: float32, uint8 or int64."""
    return _NAMES[np.dtype(dtype)]


def values_from_binary(data: memoryview, facts: TensorFacts, shape: tuple[int, ...], where: str) -> Values:
    """Read binary tensor data: little-endian, row-major; each BYTES element after its length in 4 bytes.

    Args:
        data: the bytes of the tensor, and nothing else.
        facts: the input.
        shape: its shape in the request, which fits the input.
        where: the tensor, for errors.

    Returns:
        The values; an array shares the memory of ``data`` if that is aligned.

    Raises:
        InputError: the data do not have the length of the shape.
    """
    count = math.prod(shape)
    if facts.datatype == "BYTES":
        return _split_elements(data, count, where)
    dtype = _DTYPES[facts.datatype]
    if len(data) != count * dtype.itemsize:
        raise InputError(
            f"{where} has {len(data)} bytes of binary data; shape {list(shape)} of {facts.datatype} has {count * dtype.itemsize}."
        )
    array = np.require(np.frombuffer(data, dtype).reshape(shape), requirements="A")
    return _finite(array, where)


def _split_elements(data: memoryview, count: int, where: str) -> list[bytes]:
    elements: list[bytes] = []
    position = 0
    while position < len(data):
        start = position + _LENGTH_BYTES
        length = int.from_bytes(data[position:start], "little")
        if length > len(data) - start:  # also of an incomplete length, as the right side is negative then
            raise InputError(
                f"{where}: element {len(elements)} does not end within the binary data; expected its length as a "
                f"little-endian integer of 4 bytes, here {length}, and as many bytes."
            )
        if len(elements) == count:
            raise InputError(f"{where} has more than {count} elements of binary data; its shape says {count}.")
        elements.append(bytes(data[start : start + length]))
        position = start + length
    _check_count(len(elements), count, where)
    return elements


def values_from_json(
    raw: bytes | memoryview, facts: TensorFacts, shape: tuple[int, ...], where: str, *, base64_encoded: bool
) -> Values:
    """Read tensor data of JSON: nested lists of the shape, or one flat list.

    Args:
        raw: the JSON of the data.
        facts: the input.
        shape: its shape in the request, which fits the input.
        where: the tensor, for errors.
        base64_encoded: the elements of a BYTES tensor are base64; else they are texts, and their bytes UTF-8.

    Raises:
        InputError: an element has another type or is out of range, or the number of elements is not that of the shape.
    """
    text, count = bytes(raw), math.prod(shape)
    # Counted before anything is built of it: as objects, numbers and texts take ten times the memory of their JSON.
    numbers = facts.datatype != "BYTES"
    most = text.count(b",") + 1 if numbers else (text.count(b'"') - text.count(b'\\"')) // 2
    if most > count:
        raise InputError(f"{where} has {most} elements of data or more; its shape says {count}.")
    try:
        data = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError(f"{where}: its data are no JSON that can be read ({error}).") from error
    if not isinstance(data, list):
        raise InputError(f"{where} has data {shown(data)}; expected a list.")
    if not numbers:
        return _elements_from_json(data, count, where, base64_encoded=base64_encoded)
    return _numbers_from_json(data, facts.datatype, shape, where)


def _elements_from_json(data: list[Any], count: int, where: str, *, base64_encoded: bool) -> list[bytes]:
    _check_count(len(data), count, where)
    elements = []
    for position, element in enumerate(data):
        if not isinstance(element, str):
            raise InputError(f"{where}: element {position} is {shown(element)}; expected a text.")
        try:
            elements.append(base64.b64decode(element, validate=True) if base64_encoded else element.encode())
        except ValueError as error:
            expected = "base64" if base64_encoded else "a text in Unicode"
            raise InputError(f"{where}: element {position} is not {expected} ({error}).") from error
    return elements


def _numbers_from_json(data: list[Any], datatype: str, shape: tuple[int, ...], where: str) -> npt.NDArray[Any]:
    try:
        array = np.asarray(data)
    except ValueError as error:  # lists of different lengths
        raise InputError(f"{where}: its data are lists of different lengths; expected shape {list(shape)}.") from error
    dtype = _DTYPES[datatype]
    if array.dtype.kind not in ("iuf" if datatype == "FP32" else "iu") and array.size:
        kind = "numbers" if datatype == "FP32" else "integers of up to 64 bits"
        raise InputError(f"{where}: its data hold something else than {kind}, which {datatype} needs.")
    if array.ndim != 1 and array.shape != shape:
        raise InputError(f"{where} has data of shape {list(array.shape)}; its shape says {list(shape)}.")
    _check_count(array.size, math.prod(shape), where)
    if dtype.kind != "f" and array.size:
        limits = np.iinfo(dtype)
        lowest, highest = int(array.min()), int(array.max())
        if lowest < limits.min or highest > limits.max:
            wrong = lowest if lowest < limits.min else highest
            raise InputError(f"{where} has the value {wrong}; {datatype} holds {limits.min} to {limits.max}.")
    with np.errstate(over="ignore"):  # becomes infinity, which is an error
        return _finite(array.astype(dtype).reshape(shape), where)


def _check_count(found: int, count: int, where: str) -> None:
    if found != count:
        raise InputError(f"{where} has {found} elements of data; its shape says {count}.")


def _finite(array: npt.NDArray[Any], where: str) -> npt.NDArray[Any]:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"{where} holds NaN or infinity; expected finite numbers.")
    return array


def binary_from_values(values: npt.NDArray[Any] | Sequence[bytes]) -> bytes:
    """Return the binary tensor data of values, as ``values_from_binary`` reads them."""
    if isinstance(values, np.ndarray):
        return np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    return b"".join(len(element).to_bytes(_LENGTH_BYTES, "little") + element for element in values)


def json_from_values(values: npt.NDArray[Any] | Sequence[bytes]) -> list[Any]:
    """Return the flat list of values for JSON; bytes as the text that they encode."""
    if isinstance(values, np.ndarray):
        flat: list[Any] = values.ravel().tolist()
        return flat
    return [element.decode() for element in values]
