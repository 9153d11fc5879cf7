"""Checks of a lowered graph: opset, operators, control flow, sizes, types, and integers that fit 32 bits."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from clipmlu.errors import CompileError
from clipmlu.graph.lowering.nodes import constant_of, describe
from clipmlu.graph.lowering.profile import MAGICMIND, TargetProfile

_INT32 = np.iinfo(np.int32)


def check_profile(model: ir.Model, profile: TargetProfile = MAGICMIND) -> None:
    """Check that a graph has only what the profile allows.

    Args:
        model: a lowered graph with shapes.
        profile: the target's profile.

    Raises:
        CompileError: something is not allowed; the message gives the node's name, block and operator.
    """
    opset = model.opset_imports.get("")
    if opset != profile.opset:
        raise CompileError(f"The graph is of opset {opset}; {profile.name} takes {profile.opset}.")
    if model.functions:
        raise CompileError(f"The graph calls functions, which {profile.name} does not support.")
    _check_sizes(model.graph, profile)
    dynamic = any(not value.shape.is_static() for value in model.graph.inputs if value.shape is not None)
    check_operators(model.graph, profile)
    for node in model.graph:
        if node.op_type in profile.batch_only and not dynamic:
            raise CompileError(f"{describe(node)} computes with sizes, though all sizes are static.")
        _check_schema(node, profile)
    check_int32_range(model)


def check_operators(graph: ir.Graph, profile: TargetProfile = MAGICMIND) -> None:
    """Check that a graph has no control flow and only the profile's operators.

    Raises:
        CompileError: a node has another operator; the message gives its block.
    """
    for node in graph:
        if any(attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attr in node.attributes.values()):
            raise CompileError(f"{describe(node)} is control flow, which {profile.name} does not support.")
        if node.domain or node.op_type not in profile.operators:
            raise CompileError(
                f"{describe(node)} is not on the list of operators that {profile.name} takes. "
                "If the card's parser supports it, add it to the profile with its evidence; or run this tower on the CPU."
            )


def check_int32_range(model: ir.Model) -> None:
    """Check that all 64-bit integers of the graph fit 32 bits, since the target converts them.

    Raises:
        CompileError: a constant does not fit.
    """
    for value in model.graph.initializers.values():
        array = constant_of(value) if value.dtype in (ir.DataType.INT64, ir.DataType.UINT64) else None
        if array is not None and array.size and not _INT32.min <= array.min() <= array.max() <= _INT32.max:
            users = [describe(use.node) for use in value.uses()]
            where = users[0] if users else "Nobody"
            raise CompileError(f"{where} uses the constant '{value.name}', which does not fit 32 bit.")


def remaining_shape_nodes(model: ir.Model) -> tuple[str, ...]:
    """Return the names of the nodes that read the size of the batch."""
    return tuple(str(node.name) for node in model.graph if node.op_type == "Shape")


def _check_sizes(graph: ir.Graph, profile: TargetProfile) -> None:
    """Check that only the first axis of an input is dynamic."""
    for value in graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            if axis and not isinstance(size, int):
                raise CompileError(
                    f"The input '{value.name}' is dynamic in axis {axis}; {profile.name} takes axis 0 only."
                )


def _check_schema(node: ir.Node, profile: TargetProfile) -> None:
    """Check attributes, number and types of the inputs against the opset."""
    schema = onnx.defs.get_schema(node.op_type, profile.opset, "")
    unknown = sorted(set(node.attributes) - set(schema.attributes))
    if unknown:
        raise CompileError(f"{describe(node)} has attributes that opset {profile.opset} does not know: {unknown}.")
    if not schema.min_input <= len(node.inputs) <= schema.max_input:
        raise CompileError(
            f"{describe(node)} has {len(node.inputs)} inputs; opset {profile.opset} takes {schema.max_input}."
        )
    for index, value in enumerate(node.inputs):
        if value is None or value.dtype is None:
            continue
        parameter = schema.inputs[min(index, len(schema.inputs) - 1)]
        name = f"tensor({onnx.helper.tensor_dtype_to_string(int(value.dtype)).removeprefix('TensorProto.').lower()})"
        if name not in parameter.types:
            raise CompileError(
                f"{describe(node)} has an input of type {name}, which opset {profile.opset} does not take."
            )
