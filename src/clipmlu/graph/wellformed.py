"""Checks of a graph before the libraries read it, for errors that they do not detect or that crash them.

ONNX's shape inference is native code that trusts numbers (``GatherND`` with ``batch_dims`` -5 ends the process).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from clipmlu.errors import reason_of
from clipmlu.specs import LARGEST_SIZE

_MOST_AXES = 64
_GROUP_NORM = "GroupNormalization"
_GROUP_NORM_OPSET = 21  # for earlier opsets the checker rejects it as deprecated
_PACKED_BITS = {"FLOAT4E2M1": 4, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6, "INT2": 2, "INT4": 4, "UINT2": 2, "UINT4": 4}
_AXES = frozenset({"axis", "axes", "perm"})
_COUNTS = frozenset({"batch_dims", "group", "num_groups", "num_outputs", "start_axis"})


def check_wellformed(proto: onnx.ModelProto, folder: Path | None) -> None:
    """Check a graph for errors that the libraries do not detect.

    Args:
        proto: the graph.
        folder: folder of its external weights; None for a graph in memory.

    Raises:
        ValueError, TypeError: the graph is invalid; the message says why.
        OSError: a file of weights cannot be accessed.
    """
    for tensor in _tensors(proto):
        _check_weight(tensor, folder)
    _check_outputs(proto.graph)
    for value in [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]:
        _check_dims(f"the tensor '{value.name}'", tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim))
    for node in proto.graph.node:
        for attribute in node.attribute:
            _check_attribute(node, attribute)


def check_texts(message: Any) -> None:
    """Check that all texts of a protobuf message are UTF-8; otherwise writing would fail later.

    Raises:
        ValueError: one is not.
    """
    for field, value in message.ListFields():
        repeated = value if field.is_repeated else [value]
        if field.type == field.TYPE_STRING and any(isinstance(text, bytes) for text in repeated):
            raise ValueError(f"its '{field.name}' is not UTF-8")
        if field.type == field.TYPE_MESSAGE:
            for each in repeated:
                check_texts(each)


def check_group_norms(proto: onnx.ModelProto) -> None:
    """Check nodes that the checker of a whole graph rejects as deprecated, by the rules of a later opset.

    Raises:
        onnx.checker.ValidationError: an attribute, an input or their number is wrong.
    """
    context = onnx.checker.C.CheckerContext()
    context.ir_version = onnx.IR_VERSION
    context.opset_imports = {"": _GROUP_NORM_OPSET}
    for node in proto.graph.node:
        if is_group_norm(node):
            onnx.checker.check_node(node, context)


def is_group_norm(node: onnx.NodeProto) -> bool:
    """Return whether the checker rejects the node as deprecated at opset 18, although it can be decomposed."""
    return node.op_type == _GROUP_NORM and not node.domain


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield the weights, and the constants of the nodes."""
    yield from proto.graph.initializer
    if proto.graph.sparse_initializer:
        raise ValueError("it has sparse weights, which are not supported")
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t


def weight_bytes(tensor: onnx.TensorProto) -> int:
    """Return the number of bytes that the shape and the type of a weight require.

    Raises:
        ValueError: its element type is unknown.
    """
    bits: int = math.prod(tensor.dims) * _bits_of(tensor.data_type)
    return -(-bits // 8)


def _bits_of(element: int) -> int:
    """Return the number of bits of an element type in ``raw_data``; two or more values of a packed type share a byte.

    Raises:
        ValueError: there is no such type.
    """
    try:
        name = TensorProto.DataType.Name(element)
    except ValueError as error:
        raise ValueError(f"{element} is not an element type of ONNX") from error
    if name in _PACKED_BITS:
        return _PACKED_BITS[name]
    try:
        return 8 * int(helper.tensor_dtype_to_np_dtype(element).itemsize)
    except KeyError as error:
        raise ValueError(f"a weight cannot have the element type {name}") from error


def _check_weight(tensor: onnx.TensorProto, folder: Path | None) -> None:
    """Check that a weight has as many values as its shape requires."""
    dims = tuple(tensor.dims)
    _check_dims(f"the weight '{tensor.name}'", dims)
    if tensor.data_type == onnx.TensorProto.STRING:
        return
    expected = weight_bytes(tensor)
    if not tensor.external_data and not tensor.HasField("raw_data"):
        _check_listed_values(tensor)
        return
    found = _external_bytes(tensor, folder, expected) if tensor.external_data else len(tensor.raw_data)
    if found != expected:
        raise ValueError(f"the weight '{tensor.name}' has {found:,} bytes; its shape {dims} needs {expected:,}")


def _check_listed_values(tensor: onnx.TensorProto) -> None:
    try:
        numpy_helper.to_array(tensor)
    except Exception as error:  # it raises many types
        raise ValueError(f"the values of the weight '{tensor.name}' do not fit: {reason_of(error)}") from error


def _check_dims(what: str, dims: tuple[int, ...]) -> None:
    if len(dims) > _MOST_AXES or any(not 0 <= size <= LARGEST_SIZE for size in dims):
        raise ValueError(f"{what} has the shape {dims[:_MOST_AXES]}")


def _check_outputs(graph: onnx.GraphProto) -> None:
    """Check that each output has a producer, which ONNX's checker does not."""
    made = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    made.update(name for node in graph.node for name in node.output)
    for value in graph.output:
        if value.name not in made:
            raise ValueError(f"no node produces the output '{value.name}'")


def _check_attribute(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> None:
    """Raise for numbers that no tower uses; a constant may have any value, such as the end of a Slice."""
    if node.op_type == "Constant":
        return
    numbers = list(attribute.ints) if attribute.type == AttributeProto.INTS else [attribute.i]
    name, most = attribute.name, _MOST_AXES if attribute.name in _AXES else LARGEST_SIZE
    least = 0 if name in _COUNTS else -most
    if len(numbers) > 2 * _MOST_AXES or any(not least <= number <= most for number in numbers):
        raise ValueError(f"the attribute '{name}' of node '{node.name}' ({node.op_type}) is {numbers[:_MOST_AXES]}")


def _external_bytes(tensor: onnx.TensorProto, folder: Path | None, expected: int) -> int:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    offset, length = int(entries.get("offset", 0)), int(entries.get("length", expected))
    if offset < 0 or length < 0:
        raise ValueError(f"the weight '{tensor.name}' begins at byte {offset:,} and has {length:,} bytes")
    if folder is None:
        return length
    size: int = (folder / entries.get("location", "")).stat().st_size
    return min(length, size - offset)
