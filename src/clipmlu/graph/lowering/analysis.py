"""Size analysis of a graph: every shape, and every value that depends on shapes and constants only.

The graph is evaluated once for each of a few *probes*: concrete sizes of its dynamic axes. ONNX's own shape functions
give the shapes, ONNX's reference evaluator the values. A size that fits a polynomial through the first probes and also
the last one is written as an expression of the axes ("2*batch"). The analysis has no rules for single operators, except
for those that must not be evaluated; a static graph has a single probe.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from clipmlu.errors import CompileError
from clipmlu.graph.lowering.nodes import Array, attribute, describe
from clipmlu.graph.lowering.sizes import Size, fit_size
from clipmlu.graph.shapes import (
    NodeEvaluator,
    Shape,
    ShapeInferenceError,
    UnknownOperatorError,
    find_schema,
    infer_node,
    known_sizes,
)

_PROBE_SIZES = ((3, 5, 7), (11, 13, 17), (19, 23, 29))
"""Sizes of the first, second, third dynamic axis: two for the fit and one to verify it."""

# These operators stay in the graph even if all inputs are constants, because a precision applies to them.
_NEVER_EVALUATED = frozenset(
    {"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "RandomNormal", "RandomUniform", "Bernoulli", "Multinomial"}
)
_LARGEST_DATA = 4096  # elements of a tensor whose value may determine a shape
_LARGEST_RESULT = 1 << 24  # elements of a result that is computed in advance
_LARGEST_TENSOR = 1 << 31  # elements, at the probes' small batches; eight times as many at a fixed batch

# ONNX infers its shape only through the function body, and not at all at opset 18.
_SHAPE_OF_FIRST_INPUT = frozenset({"GroupNormalization"})


@dataclasses.dataclass
class Probe:
    """The result of the analysis for one choice of sizes.

    Attributes:
        sizes: maps a dynamic axis to its size.
        shapes: shape of every tensor.
        known: value of every tensor that depends on shapes and constants only (weights included).
    """

    sizes: Mapping[str, int]
    shapes: dict[ir.Value, Shape] = dataclasses.field(default_factory=dict)
    known: dict[ir.Value, Array] = dataclasses.field(default_factory=dict)


class Analysis:
    """The probes of one graph, and their common results."""

    def __init__(self, axes: Sequence[str], probes: Sequence[Probe]) -> None:
        self.axes = tuple(axes)
        self.probes = tuple(probes)

    def register(self, value: ir.Value, like: ir.Value | None = None) -> ir.Value:
        """Add a new tensor of the graph: a constant, or one that equals ``like``."""
        array = None if like is not None else _array(value)
        for probe in self.probes:
            if array is not None:
                probe.shapes[value], probe.known[value] = array.shape, array
            elif like is not None:
                probe.shapes[value] = probe.shapes[like]
                probe.known.update({value: probe.known[like]} if like in probe.known else {})
        return value

    def shapes(self, value: ir.Value) -> tuple[Shape, ...]:
        """Return the shape of a tensor at each probe."""
        return tuple(probe.shapes[value] for probe in self.probes)

    def known(self, value: ir.Value) -> tuple[Array, ...] | None:
        """Return the value of a tensor at each probe, or None if it depends on the graph's inputs."""
        if any(value not in probe.known for probe in self.probes):
            return None
        return tuple(probe.known[value] for probe in self.probes)

    def is_known(self, value: ir.Value | None) -> bool:
        """Return whether the tensor depends on shapes and constants only."""
        return value is not None and all(value in probe.known for probe in self.probes)

    def constant(self, value: ir.Value) -> Array | None:
        """Return the value of a tensor if it is the same at all probes, else None."""
        arrays = self.known(value)
        if arrays is None or any(not _same(arrays[0], other) for other in arrays[1:]):
            return None
        return arrays[0]

    def sizes(self, value: ir.Value) -> tuple[Size | None, ...]:
        """Return the shape of a tensor as expressions; None for a size that is not a polynomial of the axes.

        Raises:
            CompileError: the rank depends on the batch.
        """
        shapes = self.shapes(value)
        if len({len(shape) for shape in shapes}) != 1:
            raise CompileError(f"The rank of '{value.name}' depends on the batch.")
        return tuple(self._fit(numbers) for numbers in zip(*shapes, strict=True))

    def _fit(self, numbers: Sequence[int]) -> Size | None:
        return fit_size(self.axes, [probe.sizes for probe in self.probes], numbers)


def analyse_graph(model: ir.Model) -> Analysis:
    """Analyse a graph.

    Args:
        model: the graph; declared shapes are ignored, except those of its inputs.

    Raises:
        CompileError: an operator is unknown to ONNX, has a subgraph, or the size of its result depends on data.
    """
    axes = dynamic_axes(model.graph)
    if len(axes) > len(_PROBE_SIZES):
        raise CompileError(f"The graph has {len(axes)} dynamic axes ({', '.join(axes)}); at most 3 are supported.")
    probes = [Probe(sizes) for sizes in _probe_points(axes)]
    opset = model.opset_imports.get("", 0)
    for value in model.graph.inputs:
        for probe in probes:
            probe.shapes[value] = tuple(
                size if isinstance(size, int) else probe.sizes[str(size.value)] for size in value.shape or ()
            )
    for value in model.graph.initializers.values():
        array = _array(value)
        for probe in probes:
            probe.shapes[value], probe.known[value] = array.shape, array
    for node in model.graph:
        _visit(node, probes, opset)
    return Analysis(axes, probes)


def dynamic_axes(graph: ir.Graph) -> tuple[str, ...]:
    """Return the names of the dynamic axes of a graph's inputs, in order.

    Raises:
        CompileError: an input's rank is unknown, or a dynamic axis has no name.
    """
    found: dict[str, None] = {}
    for value in graph.inputs:
        if value.shape is None:
            raise CompileError(f"The input '{value.name}' has no shape.")
        for size in value.shape:
            if not isinstance(size, int):
                if size.value is None:
                    raise CompileError(f"The input '{value.name}' has a dynamic axis without a name.")
                found[str(size.value)] = None
    return tuple(found)


def annotate_shapes(graph: ir.Graph, analysis: Analysis) -> None:
    """Write the inferred shapes to all tensors of the graph."""
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    for value in values:
        if value in analysis.probes[0].shapes:
            value.shape = ir.Shape([_dimension(size) for size in analysis.sizes(value)])


def _dimension(size: Size | None) -> int | ir.SymbolicDim:
    if size is None:
        return ir.SymbolicDim(None)
    return size.constant if size.constant is not None else ir.SymbolicDim(str(size))


def _probe_points(axes: Sequence[str]) -> list[dict[str, int]]:
    """Return the grid of the first two sizes of every axis, and one more point that verifies a fit."""
    choices = dict(zip(axes, _PROBE_SIZES, strict=False))
    grid = [
        dict(zip(axes, point, strict=True)) for point in itertools.product(*(each[:2] for each in choices.values()))
    ]
    return [*grid, {axis: sizes[2] for axis, sizes in choices.items()}] if axes else [{}]


def _array(value: ir.Value) -> Array:
    if value.const_value is None:
        raise CompileError(f"The weight '{value.name}' has no data.")
    return np.asarray(value.const_value.numpy())


def _visit(node: ir.Node, probes: Sequence[Probe], opset: int) -> None:
    if any(attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attr in node.attributes.values()):
        raise CompileError(f"{describe(node)} is control flow, which the target does not support.")
    runner = _Runner(node, opset)
    arrays: list[Array] | None = None
    for index, probe in enumerate(probes):
        if not (index and arrays is not None and _has_same_inputs(node, probes[0], probe)):
            arrays = runner.evaluate(probe) if _is_evaluated(node, probe) else None
        if arrays is not None:
            for value, array in zip(node.outputs, arrays, strict=True):
                probe.shapes[value], probe.known[value] = array.shape, array
                value.type = value.type or ir.TensorType(ir.DataType.from_numpy(array.dtype))
        else:
            runner.infer(probe)


def _is_evaluated(node: ir.Node, probe: Probe) -> bool:
    if node.op_type in _NEVER_EVALUATED or node.domain:
        return False
    if node.op_type in ("Shape", "Size"):
        return True
    return all(value is None or value in probe.known for value in node.inputs)


def _has_same_inputs(node: ir.Node, first: Probe, probe: Probe) -> bool:
    """Return whether all inputs are the constants of the first probe, so that its result can be reused."""
    if node.op_type in ("Shape", "Size"):
        return False
    return all(value is None or probe.known[value] is first.known[value] for value in node.inputs)


class _Runner:
    """Shape inference and evaluation of one node."""

    def __init__(self, node: ir.Node, opset: int) -> None:
        self._node = node
        self._opsets = [onnx.helper.make_opsetid("", opset)]
        self._proto = ir.serde.serialize_node(node)  # to_proto asks five protocols about each node before
        self._evaluator: NodeEvaluator | None = None
        try:
            self._schema = find_schema(self._proto, {"": opset})
        except UnknownOperatorError as error:
            raise CompileError(f"{describe(node)} is not an operator of ONNX opset {opset}.") from error

    def evaluate(self, probe: Probe) -> list[Array] | None:
        """Return the outputs, or None if they cannot be computed or are large."""
        if self._node.op_type == "Shape":
            shape = probe.shapes[_present(self._node.inputs[0])]
            return [np.array(shape[attribute(self._node, "start", 0) : attribute(self._node, "end")], np.int64)]
        if self._node.op_type == "Size":
            return [np.array(np.prod(probe.shapes[_present(self._node.inputs[0])]), np.int64)]
        if self._node.op_type == "GatherElements":
            return [self._gather_elements(probe)]
        if self._is_large(probe):
            return None
        feeds = {str(value.name): probe.known[value] for value in self._node.inputs if value is not None}
        try:
            self._evaluator = self._evaluator or NodeEvaluator(self._proto, self._opsets)
            with np.errstate(all="ignore"):
                results = self._evaluator.run(feeds)
            arrays = [results[str(value.name)] for value in self._node.outputs]
        except Exception:  # the reference evaluator lacks some operators, and checks nothing
            return None
        return None if sum(array.size for array in arrays) > _LARGEST_RESULT else arrays

    def _is_large(self, probe: Probe) -> bool:
        """Return, before computing, whether the results exceed the limit."""
        if self._node.op_type == "Range":
            start, limit, step = (float(probe.known[_present(value)].reshape(())) for value in self._node.inputs)
            return not (step and abs(limit - start) <= _LARGEST_RESULT * abs(step))
        try:
            shapes = [_sizes(found) for found in self._inferred(probe).values()]
        except CompileError:  # the evaluation will show whether there is a result
            return False
        return sum(math.prod(shape) for shape in shapes if shape is not None) > _LARGEST_RESULT

    def _gather_elements(self, probe: Probe) -> Array:
        """Gather in NumPy: the reference evaluator of onnx 1.23 fails if the first axis has one element."""
        data, indices = (probe.known[_present(value)] for value in self._node.inputs)
        axis = attribute(self._node, "axis", 0)
        return np.take_along_axis(data, np.where(indices < 0, indices + data.shape[axis], indices), axis)

    def infer(self, probe: Probe) -> None:
        """Infer shapes and types of the outputs."""
        if self._node.op_type in _SHAPE_OF_FIRST_INPUT:
            source, result = _present(self._node.inputs[0]), self._node.outputs[0]
            probe.shapes[result], result.type = probe.shapes[source], source.type
            return
        inferred = self._inferred(probe)
        for value in self._node.outputs:
            if value.name:
                self._store(probe, value, inferred.get(value.name))

    def _inferred(self, probe: Probe) -> dict[str, onnx.TypeProto]:
        """Return ONNX's inferred types of the outputs by name."""
        types, data = {}, {}
        for value in self._node.inputs:
            if value is None or value.name is None:
                continue
            types[value.name] = onnx.helper.make_tensor_type_proto(_dtype(self._node, value), probe.shapes[value])
            if value in probe.known and probe.known[value].size <= _LARGEST_DATA:
                data[value.name] = onnx.numpy_helper.from_array(np.asarray(probe.known[value]), value.name)
        try:
            return infer_node(self._proto, self._schema, types, data, self._opsets)
        except ShapeInferenceError as error:
            raise CompileError(f"{describe(self._node)} has invalid inputs: {error}") from error

    def _store(self, probe: Probe, value: ir.Value, found: onnx.TypeProto | None) -> None:
        shape = None if found is None else _sizes(found)
        if found is None or shape is None:
            raise CompileError(f"{describe(self._node)} has a result, '{value.name}', whose size depends on data.")
        if math.prod(shape) > (_LARGEST_TENSOR if probe.sizes else 8 * _LARGEST_TENSOR):
            raise CompileError(f"{describe(self._node)} has a result, '{value.name}', of the size {list(shape)}.")
        probe.shapes[value] = shape
        value.type = ir.TensorType(ir.DataType(found.tensor_type.elem_type))


def _sizes(found: onnx.TypeProto) -> Shape | None:
    """Return the shape of a tensor, or None if it is not known."""
    sizes = known_sizes(found)
    return None if sizes is None or -1 in sizes else sizes


def _present(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value


def _dtype(node: ir.Node, value: ir.Value) -> int:
    if value.dtype is None:
        raise CompileError(f"{describe(node)} has an input of unknown type, '{value.name}'.")
    return int(value.dtype)


def _same(first: Any, second: Any) -> bool:
    return first is second or (first.shape == second.shape and np.array_equal(first, second))
