"""Rewriting an imported graph to the form of an exported one: float32, the bundle's opset, names for all nodes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.version_converter
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from clipmlu.errors import ExportError, first_line
from clipmlu.importing.reading import opset_of

OLDEST_CANONICAL = 18
"""The oldest opset of exported bundles; older graphs are converted to it, newer ones are kept."""

_IR_VERSION = 10
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_LARGE_BYTES = 1024  # larger weights determine no shape and no attribute


def has_halves(model: onnx.ModelProto) -> bool:
    """Return whether the graph has weights or inputs of 16-bit floats."""
    graph = model.graph
    return any(weight.data_type in _HALVES for weight in graph.initializer) or any(
        value.type.tensor_type.elem_type in _HALVES for value in [*graph.input, *graph.output]
    )


def to_float32(model: onnx.ModelProto) -> None:
    """Change all 16-bit floats of a graph to float32, in place; the values of the weights stay the same."""
    graph = model.graph
    for weight in graph.initializer:
        _widen(weight)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                _widen(attribute.t)
            elif attribute.type == AttributeProto.INT and attribute.name in ("to", "dtype") and attribute.i in _HALVES:
                attribute.i = TensorProto.FLOAT
    for value in [*graph.input, *graph.output]:
        if value.type.tensor_type.elem_type in _HALVES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    graph.ClearField("value_info")


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type in _HALVES:
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def to_canonical_opset(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """Return a graph of at least opset 18; a newer one is kept.

    Raises:
        ExportError: ONNX cannot convert an operator.
    """
    model.graph.ClearField("value_info")  # sizes of the old batch and context
    if opset_of(model) >= OLDEST_CANONICAL:
        return model
    large = [weight for weight in model.graph.initializer if weight.ByteSize() > _LARGE_BYTES]
    slim = _without(model, large)
    try:
        converted = onnx.version_converter.convert_version(slim, OLDEST_CANONICAL)
    except Exception as error:  # native code raises RuntimeError and others
        raise ExportError(
            f"{where} cannot be converted from opset {opset_of(model)} to {OLDEST_CANONICAL}: {first_line(error)}. "
            f"Export it again, with opset {OLDEST_CANONICAL} if possible."
        ) from error
    names = {weight.name for weight in large}
    inputs = [value for value in converted.graph.input if value.name not in names]
    converted.graph.ClearField("input")
    converted.graph.input.extend(inputs)
    converted.graph.initializer.extend(large)
    converted.graph.ClearField("value_info")
    converted.ir_version = _IR_VERSION
    return converted


def _without(model: onnx.ModelProto, large: list[TensorProto]) -> onnx.ModelProto:
    """Return a copy in which large weights are inputs, since the converter copies the whole file several times."""
    names = {weight.name for weight in large}
    graph = model.graph
    inputs = [*graph.input, *(helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in large)]
    small = [weight for weight in graph.initializer if weight.name not in names]
    slim = helper.make_graph(graph.node, graph.name or "graph", inputs, graph.output, small)
    return helper.make_model(slim, opset_imports=model.opset_import, ir_version=model.ir_version)


def name_nodes(model: onnx.ModelProto) -> None:
    """Give each node a name of its own; a target's settings for single operators refer to them."""
    taken: set[str] = set()
    for number, node in enumerate(model.graph.node):
        name = node.name or f"{node.op_type}_{number}"
        while name in taken:
            name = f"{name}_{number}"
        node.name = name
        taken.add(name)
