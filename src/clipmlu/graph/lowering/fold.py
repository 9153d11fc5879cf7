"""Folding rules per operator: removing nodes, and computing sizes without reading a shape."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from clipmlu.graph.lowering.analysis import Analysis
from clipmlu.graph.lowering.fold_parts import fold_part
from clipmlu.graph.lowering.folder import Folder, copies_axis
from clipmlu.graph.lowering.nodes import Array, GraphEditor, Steps, attribute, input_or_none, producer_of
from clipmlu.graph.shapes import Shape

_BOOL = int(ir.DataType.BOOL)


def fold_graph(graph: ir.Graph, analysis: Analysis, editor: GraphEditor) -> None:
    """Fold a graph in place; its tensors must have annotated shapes."""
    folder = Folder(analysis, editor)
    for node in list(graph):
        if not all(analysis.is_known(value) for value in node.outputs):
            _fold_node(node, folder)
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    graph.sort()  # a column of zeros may have been added after its first user
    drop_unused_weights(graph)


def drop_unused_weights(graph: ir.Graph) -> None:
    """Remove unused constants."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def _fold_node(node: ir.Node, folder: Folder) -> None:
    """Fold a node that depends on the graph's inputs."""
    rule = _RULES.get(node.op_type) if not node.domain else None
    if rule is None or not rule(node, folder):
        folder.fold_inputs(node)


def _fold_same(node: ir.Node, folder: Folder) -> bool:
    """Remove Identity, and Dropout outside training."""
    source = node.inputs[0]
    return source is not None and folder.bypass(node, source)


def _fold_cast(node: ir.Node, folder: Folder) -> bool:
    """Remove a Cast to the tensor's own type, and Cast(Cast(bool)) back to bool."""
    source = node.inputs[0]
    if source is None:
        return False
    if source.dtype is not None and int(source.dtype) == attribute(node, "to"):
        return folder.bypass(node, source)
    before = source.producer()
    if before is not None and before.op_type == "Cast" and attribute(node, "to") == _BOOL:
        original = before.inputs[0]
        if original is not None and original.dtype == ir.DataType.BOOL:
            return folder.bypass(node, original)
    return False


def _fold_reshape(node: ir.Node, folder: Folder) -> bool:
    """Fold a Reshape to a computed shape, and one that follows another Reshape or changes nothing."""
    source = node.inputs[0]
    if source is None or folder.analysis.is_known(source):
        return False
    swapped = _swapped_axes(node, folder)
    if swapped is not None:
        origin, perm = swapped
        steps = Steps(folder.editor, node)
        steps.finish("Transpose", origin, perm=perm)
        return True
    inner = producer_of(source, "Reshape")
    first = inner.inputs[0] if inner is not None and len(source.uses()) == 1 else None
    if first is not None and folder.reshape_target(first, node.outputs[0]) is not None:
        node.replace_input_with(0, first)
        source = first
    return folder.put_reshape(node, source)


def _swapped_axes(node: ir.Node, folder: Folder) -> tuple[ir.Value, list[int]] | None:
    """Find Reshape(Transpose(Reshape(x))) that only swaps the last two axes, as PyTorch writes attention keys."""
    middle = producer_of(node.inputs[0], "Transpose")
    first = producer_of(middle.inputs[0], "Reshape") if middle is not None else None
    source = first.inputs[0] if first is not None else None
    if middle is None or first is None or source is None or list(attribute(middle, "perm", ())) != [0, 2, 1]:
        return None
    for probe in folder.analysis.probes:
        start, merged, end = (probe.shapes[each] for each in (source, first.outputs[0], node.outputs[0]))
        if len(start) < 3 or merged[1:] != start[-2:] or end != (*start[:-2], start[-1], start[-2]):
            return None
    rank = len(folder.analysis.shapes(source)[0])
    return source, [*range(rank - 2), rank - 1, rank - 2]


def _fold_expand(node: ir.Node, folder: Folder) -> bool:
    """Remove an Expand whose users broadcast; replace any other by an addition of zeros."""
    source, result = node.inputs[0], node.outputs[0]
    if source is None:
        return False
    if folder.analysis.shapes(source) == folder.analysis.shapes(result):
        return folder.bypass(node, source)
    for user, index in list(result.uses()):
        if folder.broadcasts_with(user, {result: folder.analysis.shapes(source)}):
            user.replace_input_with(index, source)
    if not result.uses() and not result.is_graph_output():
        return True
    return _spread(node, source, folder)


def _spread(node: ir.Node, source: ir.Value, folder: Folder) -> bool:
    result = node.outputs[0]
    if result.dtype is None or result.dtype == ir.DataType.BOOL:
        return False
    sizes = folder.analysis.sizes(result)
    static = [size.constant or 1 if size is not None else 1 for size in sizes]
    rank = len(static)
    axes = folder.analysis.sizes(source)
    grows = any(
        size is None or (size.constant is None and not copies_axis((None,) * (rank - len(axes)) + axes, sizes, index))
        for index, size in enumerate(sizes)
    )
    column = folder.zeros_for(result) if grows else None
    if grows and column is None:
        return False
    steps = Steps(folder.editor, node)
    zeros: ir.Value | None = steps.constant("zeros", np.zeros(static, result.dtype.numpy()))
    if column is not None:
        zeros = steps.add("Add", column, zeros)
    steps.finish("Add", source, zeros)
    return True


def _fold_slice(node: ir.Node, folder: Folder) -> bool:
    """Remove a Slice of the whole tensor."""
    source = node.inputs[0]
    steps = input_or_none(node, 4)
    stride = folder.analysis.constant(steps) if steps is not None and folder.analysis.is_known(steps) else None
    forward = steps is None or (stride is not None and bool((stride > 0).all()))
    same = source is not None and folder.analysis.shapes(source) == folder.analysis.shapes(node.outputs[0])
    return forward and same and source is not None and folder.bypass(node, source)


def _fold_gather(node: ir.Node, folder: Folder) -> bool:
    """Replace a Gather of all elements of a flat tensor in order by a Reshape, as after timm's global pooling."""
    if fold_part(node, folder):
        return True
    source, indices = node.inputs[0], node.inputs[1]
    arrays = folder.analysis.known(indices) if indices is not None else None
    if source is None or arrays is None or any(len(shape) != 1 for shape in folder.analysis.shapes(source)):
        return False
    for array, shape in zip(arrays, folder.analysis.shapes(source), strict=True):
        if not np.array_equal(array.ravel(), np.arange(shape[0])):
            return False
    if folder.analysis.shapes(source) == folder.analysis.shapes(node.outputs[0]):
        return folder.bypass(node, source)
    inner = producer_of(source, "Reshape")
    flat = inner.inputs[0] if inner is not None and inner.inputs[0] is not None else source
    return folder.put_reshape(node, flat)


def _fold_gather_nd(node: ir.Node, folder: Folder) -> bool:
    """Fold a GatherND of rows in order (masks of transformers), and one that selects one row of each text."""
    source, indices = node.inputs[0], node.inputs[1]
    if source is None or indices is None or attribute(node, "batch_dims", 0):
        return False
    arrays = folder.analysis.known(indices)
    if arrays is not None:
        shapes = folder.analysis.shapes(source)
        if all(_is_in_order(array, shape) for array, shape in zip(arrays, shapes, strict=True)):
            return folder.put_reshape(node, source)
        return False
    return _fold_row_choice(node, source, indices, folder)


def _is_in_order(indices: Array, shape: Shape) -> bool:
    depth = indices.shape[-1]
    flat = np.ravel_multi_index(tuple(np.moveaxis(indices, -1, 0).reshape(depth, -1)), shape[:depth])
    return np.array_equal(flat, np.arange(int(np.prod(shape[:depth]))))


def _fold_row_choice(node: ir.Node, source: ir.Value, indices: ir.Value, folder: Folder) -> bool:
    """Fold x[arange(N), argmax(...)], the pooling of CLIP's text tower; the indices are [arange, chosen] side by side."""
    pair = producer_of(indices, "Concat")
    if pair is None or len(pair.inputs) != 2 or any(len(shape) != 2 for shape in folder.analysis.shapes(indices)):
        return False
    rows, chosen = pair.inputs
    if rows is None or chosen is None or not _comes_from_argmax(chosen):
        return False
    arrays = folder.analysis.known(rows)
    shapes = folder.analysis.shapes(source)
    if arrays is None or len(shapes[0]) != 3:
        return False
    if not all(
        np.array_equal(array, np.arange(shape[0])[:, None]) for array, shape in zip(arrays, shapes, strict=True)
    ):
        return False
    put = _put_flat_gather if not folder.analysis.axes or _is_static(folder, source) else _put_masked_sum
    put(node, source, chosen, shapes[0], folder)
    return True


def _is_static(folder: Folder, value: ir.Value) -> bool:
    return all(size is not None and size.constant is not None for size in folder.analysis.sizes(value))


def _comes_from_argmax(value: ir.Value) -> bool:
    """Return whether the indices are positions from ArgMax, which are not negative."""
    node = value.producer()
    while node is not None and node.op_type in ("Unsqueeze", "Squeeze", "Reshape", "Cast", "Identity"):
        source = node.inputs[0]
        node = source.producer() if source is not None else None
    return node is not None and node.op_type == "ArgMax"


def _put_flat_gather(node: ir.Node, source: ir.Value, chosen: ir.Value, shape: Shape, folder: Folder) -> None:
    """Static batch: use Gather on the flattened rows, as PyTorch 1.7 wrote this indexing at opset 10."""
    rows, length, width = shape
    steps = Steps(folder.editor, node)
    position = steps.add("Reshape", chosen, steps.integers("rows", [rows]))
    dtype = chosen.dtype.numpy() if chosen.dtype is not None else np.dtype(np.int64)
    index = steps.add("Add", position, steps.constant("offsets", np.arange(rows, dtype=dtype) * length))
    flat = steps.add("Reshape", source, steps.integers("flat", [rows * length, width]))
    steps.finish("Gather", flat, index, axis=0)


def _put_masked_sum(node: ir.Node, source: ir.Value, chosen: ir.Value, shape: Shape, folder: Folder) -> None:
    """Dynamic batch: sum (position == chosen) * x, which is exact in any float type and needs no matrix product."""
    steps = Steps(folder.editor, node)
    dtype = chosen.dtype.numpy() if chosen.dtype is not None else np.dtype(np.int64)
    positions = steps.constant("positions", np.arange(shape[1], dtype=dtype)[None])
    mask = steps.add("Equal", chosen, positions, dtype=ir.DataType.BOOL)
    factor = steps.add("Cast", mask, dtype=source.dtype, to=int(source.dtype or ir.DataType.FLOAT))
    column = steps.add("Reshape", factor, steps.integers("column", [-1, shape[1], 1]))
    product = steps.add("Mul", source, column)
    product.shape = source.shape
    steps.finish("ReduceSum", product, steps.integers("sum_axes", [1]), keepdims=0)


def _fold_gather_elements(node: ir.Node, folder: Folder) -> bool:
    """Gather from one row, if all rows are this one: RoBERTa's types of tokens, expanded to the batch."""
    source, indices = node.inputs[:2]
    if source is None or source.shape is None or (core := folder.core(source)) is None:
        return False
    axis = attribute(node, "axis", 0) % core.ndim
    row = core[tuple(slice(None) if index == axis else slice(0, 1) for index in range(core.ndim))]
    if not isinstance(source.shape[axis], int) or not np.array_equal(np.broadcast_to(row, core.shape), core):
        return False
    steps = Steps(folder.editor, node)
    steps.finish("Gather", steps.constant("row", row.reshape(-1)), indices, axis=0)
    return True


def _fold_where(node: ir.Node, folder: Folder) -> bool:
    """Remove Where(IsNaN(s), c, s) of a softmax s, PyTorch's guard for fully masked rows.

    Softmax is NaN only for a row of -inf, which neither a finite mask gives, nor one that keeps an entry of each row.
    """
    test = producer_of(node.inputs[0], "IsNaN")
    chosen = node.inputs[2]
    softmax = producer_of(chosen, "Softmax")
    if test is None or chosen is None or test.inputs[0] is not chosen or softmax is None:
        return False
    masked = producer_of(softmax.inputs[0], "Add")
    masks = () if masked is None else masked.inputs
    return any(_leaves_something(mask, folder) for mask in masks) and folder.bypass(node, chosen)


def _leaves_something(mask: ir.Value | None, folder: Folder) -> bool:
    """Return whether an additive mask has a finite number in each row."""
    if mask is None:
        return False
    array = folder.analysis.constant(mask) if folder.analysis.is_known(mask) else None
    if array is not None:
        return array.ndim > 0 and bool(np.isfinite(array).any(axis=-1).all())
    choice = producer_of(mask, "Where")
    if choice is None:
        return False
    sides = [folder.analysis.constant(value) if value is not None else None for value in choice.inputs[1:]]
    return all(side is not None and bool(np.isfinite(side).all()) for side in sides)


_RULES: dict[str, Callable[[ir.Node, Folder], bool]] = {
    "Cast": _fold_cast,
    "Dropout": _fold_same,
    "Expand": _fold_expand,
    "Gather": _fold_gather,
    "GatherElements": _fold_gather_elements,
    "GatherND": _fold_gather_nd,
    "Identity": _fold_same,
    "Reshape": _fold_reshape,
    "Slice": _fold_slice,
    "Squeeze": fold_part,
    "Where": _fold_where,
}
