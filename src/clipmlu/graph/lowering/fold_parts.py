"""Folding of attention's fused projection: queries, keys and values become outputs of a Split."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from clipmlu.graph.lowering.folder import Folder
from clipmlu.graph.lowering.nodes import Steps, attribute, producer_of


def fold_part(node: ir.Node, folder: Folder) -> bool:
    """Replace one of queries, keys and values by an output of a Split of their fused projection, as in PyTorch 1.7.

    PyTorch 2 reshapes the projection to five dimensions, moves the axis of the parts to the front and selects one by
    one.
    """
    part = _find_part(node, folder)
    if part is None:
        return False
    split = folder.split_last_axis(part.reshape, part.source, part.count)
    sizes = folder.analysis.sizes(part.reshape.outputs[0])
    kept = [size for axis, size in enumerate(sizes) if axis != part.axis]
    target = [-1 if size is None or size.constant is None else size.constant for size in kept]
    result = split.outputs[part.index]
    if target.count(-1) > 1:
        return False
    moved = part.perm != sorted(part.perm)
    if len(kept) == part.axis + 1 and not moved:
        return folder.bypass(node, result)
    steps = Steps(folder.editor, node)
    shape = steps.integers("shape", target)
    if not moved:
        steps.finish("Reshape", result, shape)
    elif len(kept) == part.axis + 1:
        steps.finish("Transpose", result, perm=part.perm)
    else:
        steps.finish("Transpose", steps.add("Reshape", result, shape), perm=part.perm)
    return True


@dataclasses.dataclass(frozen=True)
class _Part:
    """``node`` = Transpose(Reshape(Split(source)[index])).

    Attributes:
        source: the projection; its last axis holds the parts one after the other.
        reshape: the Reshape that creates the axis of the parts.
        axis: that axis.
        count: number of parts.
        index: index of the node's part.
        perm: permutation of the other axes.
    """

    source: ir.Value
    reshape: ir.Node
    axis: int
    count: int
    index: int
    perm: list[int]


def _find_part(node: ir.Node, folder: Folder) -> _Part | None:
    chosen = _first_axis_choice(node, folder)
    if chosen is None:
        return None
    index, value = chosen
    reshape, chain = _reshape_before(value)
    source = reshape.inputs[0] if reshape is not None else None
    if reshape is None or source is None or not folder.is_analysed(source):
        return None
    axes = _axis_order(chain, len(folder.analysis.shapes(reshape.outputs[0])[0]), folder)
    if axes is None or any(axis is None for axis in axes):
        return None
    order = [axis for axis in axes if axis is not None]
    front = order[0]
    for before, after in zip(folder.analysis.shapes(source), folder.analysis.shapes(reshape.outputs[0]), strict=True):
        if before != (*after[:front], int(np.prod(after[front:]))):
            return None
    size = folder.analysis.sizes(reshape.outputs[0])[front]
    if size is None or size.constant is None or sorted(order) != list(range(len(order))):
        return None
    perm = [axis - (axis > front) for axis in order[1:]]
    return _Part(source, reshape, front, size.constant, index % size.constant, perm)


def _first_axis_choice(node: ir.Node, folder: Folder) -> tuple[int, ir.Value] | None:
    """Return (i, x) if the node is x[i]: a Gather, or a Squeeze of a Slice."""
    if node.op_type == "Gather":
        index = folder.constant_input(node, 1)
        if index is None or index.ndim or attribute(node, "axis", 0) or node.inputs[0] is None:
            return None
        return int(index), node.inputs[0]
    cut = producer_of(node.inputs[0], "Slice")
    if cut is None or cut.inputs[0] is None or len(cut.inputs) > 4:
        return None
    starts, ends, axes = (folder.constant_input(cut, index) for index in (1, 2, 3))
    squeezed = folder.constant_input(node, 1)
    if starts is None or ends is None or axes is None or squeezed is None:
        return None
    if [axes.tolist(), squeezed.tolist()] != [[0], [0]] or starts[0] < 0 or ends[0] - starts[0] != 1:
        return None
    return int(starts[0]), cut.inputs[0]


def _reshape_before(value: ir.Value) -> tuple[ir.Node | None, list[ir.Node]]:
    """Return the Reshape before nodes that only move axes, and these nodes, first to last."""
    chain: list[ir.Node] = []
    node = value.producer()
    while node is not None and node.op_type in ("Transpose", "Unsqueeze", "Squeeze"):
        chain.insert(0, node)
        source = node.inputs[0]
        node = source.producer() if source is not None else None
    return (node if node is not None and node.op_type == "Reshape" else None), chain


def _axis_order(chain: list[ir.Node], rank: int, folder: Folder) -> list[int | None] | None:
    """Return the positions of a tensor's axes after the nodes; None stands for an added axis."""
    axes: list[int | None] = list(range(rank))
    for node in chain:
        if node.op_type == "Transpose":
            axes = [axes[axis] for axis in attribute(node, "perm", range(len(axes))[::-1])]
            continue
        given = folder.constant_input(node, 1)
        if given is None or given.size != 1:
            return None
        axis = int(given.ravel()[0])
        if node.op_type == "Unsqueeze":
            axes.insert(axis % (len(axes) + 1), None)
        elif axes.pop(axis) is not None:
            return None
    return axes
