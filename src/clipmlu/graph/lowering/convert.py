"""Conversion of operators with another form at opset 11: for instance, inputs become attributes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir

from clipmlu.errors import CompileError
from clipmlu.graph.lowering.nodes import (
    GraphEditor,
    Steps,
    attribute,
    constant_input,
    describe,
    drop_inputs,
    input_or_none,
    rank_of,
    set_attributes,
    static_size,
)

_INT32_MAX = 2**31 - 1


def convert_node(node: ir.Node, editor: GraphEditor) -> None:
    """Convert one node in place, if its operator needs a conversion."""
    rule = CONVERSIONS.get(node.op_type) if not node.domain else None
    if rule is not None:
        rule(node, editor)


def forget_defaults(node: ir.Node, source_opset: int, opset: int) -> None:
    """Remove attributes that ``opset`` does not have, if they have the default value.

    Raises:
        CompileError: an attribute has another value.
    """
    try:
        before, after = (onnx.defs.get_schema(node.op_type, each, node.domain) for each in (source_opset, opset))
    except onnx.defs.SchemaError:
        return  # not an operator of that opset: the operator check reports it
    for name in [name for name in node.attributes if name not in after.attributes]:
        known = before.attributes.get(name)
        default = onnx.helper.get_attribute_value(known.default_value) if known is not None else None
        value = attribute(node, name)
        if (value.encode() if isinstance(value, str) else value) != default:
            raise CompileError(
                f"{describe(node)} has the attribute {name}={value!r}, which opset {opset} cannot express."
            )
        set_attributes(node, **{name: None})


def _axes_to_attribute(node: ir.Node, editor: GraphEditor) -> None:
    """Squeeze and Unsqueeze (13): ``axes`` was an attribute."""
    axes = constant_input(node, 1)
    if axes is not None:
        source = node.inputs[0] if node.op_type == "Squeeze" else node.outputs[0]
        rank = rank_of(node, source)
        set_attributes(node, axes=[int(axis) % rank for axis in axes.ravel()])
    drop_inputs(node, 1)


def _reduce(node: ir.Node, editor: GraphEditor) -> None:
    """Reduce operators (13 and 18): ``axes`` was an attribute; no axes and ``noop_with_empty_axes`` is Identity."""
    axes = constant_input(node, 1)
    no_operation = bool(attribute(node, "noop_with_empty_axes", 0))
    set_attributes(node, noop_with_empty_axes=None)
    empty = axes is None or axes.size == 0
    if empty and no_operation and attribute(node, "axes") is None:
        Steps(editor, node).finish("Identity", node.inputs[0])
        return
    if axes is not None and not empty:
        rank = rank_of(node, node.inputs[0])
        set_attributes(node, axes=[int(axis) % rank for axis in axes.ravel()])
    drop_inputs(node, 1)


def _softmax(node: ir.Node, editor: GraphEditor) -> None:
    """Softmax (13) uses one axis; before, it flattened all axes from ``axis`` on into one.

    For the last axis both are the same; for any other axis the input is transposed before and after.
    """
    rank = rank_of(node, node.inputs[0])
    axis = attribute(node, "axis", -1) % rank if rank else 0
    if axis >= rank - 1:
        set_attributes(node, axis=max(axis, 0))
        return
    perm = [*(index for index in range(rank) if index != axis), axis]
    op_type = node.op_type
    steps = Steps(editor, node)
    moved = steps.add("Transpose", node.inputs[0], perm=perm)
    result = steps.add(op_type, moved, axis=rank - 1)
    steps.finish("Transpose", result, perm=np.argsort(perm).tolist())


def _split(node: ir.Node, editor: GraphEditor) -> None:
    """Split (13 and 18): ``split`` was an attribute, ``num_outputs`` did not exist."""
    sizes = constant_input(node, 1)
    axis = attribute(node, "axis", 0)
    if sizes is not None:
        split = [int(size) for size in sizes]
    else:
        total, count = static_size(node, node.inputs[0], axis), len(node.outputs)
        chunk = -(-total // count)
        split = [chunk] * (count - 1) + [total - chunk * (count - 1)]
    set_attributes(node, split=split, num_outputs=None, axis=axis % rank_of(node, node.inputs[0]))
    drop_inputs(node, 1)


def _slice(node: ir.Node, editor: GraphEditor) -> None:
    """Slice: the largest int64, which means "to the end", does not fit 32 bits, so static axes get their actual size."""
    starts, ends, axes, strides = (constant_input(node, index) for index in (1, 2, 3, 4))
    if starts is None or ends is None:
        return
    rank = rank_of(node, node.inputs[0])
    order = [int(axis) % rank for axis in axes] if axes is not None else list(range(len(starts)))
    step = [int(each) for each in strides] if strides is not None else [1] * len(order)
    limits = [
        _slice_limits(node, axis, int(start), int(end), each)
        for axis, start, end, each in zip(order, starts, ends, step, strict=True)
    ]
    steps = Steps(editor, node)
    values = [
        steps.integers("starts", [start for start, _ in limits]),
        steps.integers("ends", [end for _, end in limits]),
        steps.integers("axes", order),
        *([steps.integers("steps", step)] if strides is not None else []),
    ]
    node.resize_inputs(1 + len(values))
    for index, value in enumerate(values, start=1):
        node.replace_input_with(index, value)


def _slice_limits(node: ir.Node, axis: int, start: int, end: int, step: int) -> tuple[int, int]:
    source = node.inputs[0]
    size = source.shape[axis] if source is not None and source.shape is not None else None
    if isinstance(size, int):
        first, last, _ = slice(start, end if end > -(2**62) else None, step).indices(size)
        return first, last if last >= 0 else -_INT32_MAX
    return tuple(int(np.clip(each, -_INT32_MAX, _INT32_MAX)) for each in (start, end))  # type: ignore[return-value]


def _clip(node: ir.Node, editor: GraphEditor) -> None:
    """Clip (12) accepts integers; before, floats only: so Max and Min are computed in float."""
    source = node.inputs[0]
    if source is None or source.dtype is None or source.dtype.is_floating_point():
        return
    steps = Steps(editor, node)
    dtype = source.dtype
    result = steps.add("Cast", source, dtype=ir.DataType.FLOAT, to=int(ir.DataType.FLOAT))
    for index, op_type in ((1, "Max"), (2, "Min")):
        bound = constant_input(node, index)
        if bound is not None:
            limit = steps.constant(op_type.lower(), bound.astype(np.float32))
            result = steps.add(op_type, result, limit)
    steps.finish("Cast", result, to=int(dtype))


def _pad(node: ir.Node, editor: GraphEditor) -> None:
    """Pad (18) may name axes; before, it used all axes."""
    pads, axes = constant_input(node, 1), constant_input(node, 3)
    if axes is not None and pads is not None:
        rank = rank_of(node, node.inputs[0])
        full = np.zeros((2, rank), np.int64)
        full[:, [int(axis) % rank for axis in axes]] = pads.reshape(2, -1)
        node.replace_input_with(1, Steps(editor, node).constant("pads", full.ravel()))
    drop_inputs(node, 3)


def _resize(node: ir.Node, editor: GraphEditor) -> None:
    """Resize (13, 18): ``roi`` and ``scales`` were required, ``axes`` and antialiasing did not exist."""
    if attribute(node, "antialias", 0) or attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        raise CompileError(f"{describe(node)} antialiases or keeps the aspect ratio, which opset 11 cannot express.")
    axes = attribute(node, "axes")
    rank = rank_of(node, node.inputs[0])
    if axes is not None and [axis % rank for axis in axes] != list(range(rank)):
        raise CompileError(f"{describe(node)} resizes some axes only, which opset 11 cannot express.")
    set_attributes(node, antialias=None, keep_aspect_ratio_policy=None, axes=None)
    steps = Steps(editor, node)
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    for index, label in ((1, "roi"), (2, "scales")):
        if node.inputs[index] is None:
            node.replace_input_with(index, steps.constant(label, np.zeros(0, np.float32)))


def _pow(node: ir.Node, editor: GraphEditor) -> None:
    """Pow (12) accepts an exponent of another type."""
    base, exponent = node.inputs
    if base is None or exponent is None or base.dtype is None or base.dtype == exponent.dtype:
        return
    steps = Steps(editor, node)
    node.replace_input_with(1, steps.add("Cast", exponent, dtype=base.dtype, to=int(base.dtype)))


def _arg_extreme(node: ir.Node, editor: GraphEditor) -> None:
    """ArgMax over 64-bit integers: onnxruntime has no kernel at opset 11, and the card has no 64-bit integers."""
    source = node.inputs[0]
    rank = rank_of(node, source)
    set_attributes(node, axis=attribute(node, "axis", 0) % rank)
    if source is None or source.dtype != ir.DataType.INT64:
        return
    steps = Steps(editor, node)
    node.replace_input_with(0, steps.add("Cast", source, dtype=ir.DataType.INT32, to=int(ir.DataType.INT32)))


def _gather(node: ir.Node, editor: GraphEditor) -> None:
    """Gather: negative constant indices become positive, since a target's handling of negative ones is unknown."""
    rank = rank_of(node, node.inputs[0])
    axis = attribute(node, "axis", 0) % rank
    set_attributes(node, axis=axis)
    indices = node.inputs[1]
    if indices is None or indices.const_value is None or indices.is_graph_input():
        return
    array = constant_input(node, 1)
    assert array is not None
    if (array < 0).any():
        size = static_size(node, node.inputs[0], axis)
        counted = np.where(array < 0, array + size, array).astype(array.dtype)
        node.replace_input_with(1, Steps(editor, node).constant("indices", counted))


def _reshape(node: ir.Node, editor: GraphEditor) -> None:
    """Reshape (14): with ``allowzero`` a 0 is a size of zero, which no tower uses."""
    target = constant_input(node, 1) if attribute(node, "allowzero", 0) else None
    if target is not None and (target == 0).any():
        raise CompileError(f"{describe(node)} makes an empty tensor.")
    set_attributes(node, allowzero=None)


def _batch_normalization(node: ir.Node, editor: GraphEditor) -> None:
    """BatchNormalization (14): ``training_mode`` is removed; running statistics are always used."""
    if attribute(node, "training_mode", 0) or len(node.outputs) > 1:
        raise CompileError(f"{describe(node)} is in training mode.")
    set_attributes(node, training_mode=None)


def _shape(node: ir.Node, editor: GraphEditor) -> None:
    """Shape (15) may return a part; before, this needed a Slice."""
    start, end = attribute(node, "start", 0), attribute(node, "end")
    set_attributes(node, start=None, end=None)
    rank = rank_of(node, node.inputs[0])
    first, last, _ = slice(start, end).indices(rank)
    if (first, last) == (0, rank):
        return
    steps = Steps(editor, node)
    whole = steps.add("Shape", node.inputs[0], dtype=ir.DataType.INT64)
    steps.finish(
        "Slice", whole, *(steps.integers(label, [each]) for label, each in (("starts", first), ("ends", last)))
    )


def _average_pool(node: ir.Node, editor: GraphEditor) -> None:
    """AveragePool (19): only ``dilations`` of 1 can be converted."""
    if any(each != 1 for each in attribute(node, "dilations", ())):
        raise CompileError(f"{describe(node)} is dilated.")
    set_attributes(node, dilations=None)


def _gather_nd(node: ir.Node, editor: GraphEditor) -> None:
    """GatherND (12): only ``batch_dims`` of 0 can be converted."""
    if attribute(node, "batch_dims", 0):
        raise CompileError(f"{describe(node)} has batch dimensions, which opset 11 cannot express.")
    set_attributes(node, batch_dims=None)


def _dropout(node: ir.Node, editor: GraphEditor) -> None:
    """Replace a Dropout that folding could not remove."""
    if len(node.outputs) > 1 and node.outputs[1].uses():
        raise CompileError(f"{describe(node)} has its mask output in use.")
    Steps(editor, node).finish("Identity", input_or_none(node, 0))


_REDUCTIONS = ("Max", "Min", "Mean", "Sum", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp")

CONVERSIONS: dict[str, Callable[[ir.Node, GraphEditor], None]] = {
    **{f"Reduce{name}": _reduce for name in _REDUCTIONS},
    "ArgMax": _arg_extreme,
    "ArgMin": _arg_extreme,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Clip": _clip,
    "Dropout": _dropout,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "LogSoftmax": _softmax,
    "Pad": _pad,
    "Pow": _pow,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _axes_to_attribute,
    "Unsqueeze": _axes_to_attribute,
}
"""Maps an operator to its conversion to opset 11; other operators have the same form."""
