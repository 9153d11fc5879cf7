"""The shapes of a tower's tensors for its fixed batch and for another one, and new nodes for any batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from clipmlu.graph.index import attributes_of
from clipmlu.graph.shapes import (
    NodeEvaluator,
    Shape,
    ShapeInferenceError,
    find_schema,
    infer_node,
    infer_shapes,
    known_sizes,
)

Array = npt.NDArray[Any]

FACTOR = 13
"""The other batch size is so many times the fixed one: a prime that no model has as a size of its own."""

_LARGEST_VALUE = 4096  # elements of a tensor whose value may determine a shape


class BatchShapes:
    """The tensors of a tower whose nodes are visited in order.

    Args:
        model: the tower, with one input of static shape.
        batch: its batch size.

    Attributes:
        model: the tower.
        batch: its batch size.
        other: the other batch size.
        fixed: maps a tensor to its shape at the fixed batch.
        values: maps a small tensor that depends on sizes and constants only to its values at the other batch size.
        inner: maps a tensor to the number of elements of its batch axis between two rows of the batch, if the axis has other
            factors outside the batch.
        weights: maps a name to the weight.
        made: the visited nodes, and new ones.
    """

    def __init__(self, model: onnx.ModelProto, batch: int) -> None:
        self.model = model
        self.batch = batch
        self.other = FACTOR * batch
        self.fixed = {name: each.shape for name, each in infer_shapes(model).items()}
        self.values: dict[str, Array] = {}
        self.inner: dict[str, int] = {}
        self.weights = {weight.name: weight for weight in model.graph.initializer}
        self.made: list[onnx.NodeProto] = []
        self._opsets = list(model.opset_import)
        self._versions = {entry.domain: entry.version for entry in self._opsets}
        self._types: dict[str, onnx.TypeProto] = {}
        self._sizes: set[str] = set()  # tensors that depend on the sizes of others
        self._number = 0
        source = model.graph.input[0]
        sizes = self.fixed[source.name] or ()
        self._declare(source.name, source.type.tensor_type.elem_type, (self.other, *sizes[1:]))
        for weight in model.graph.initializer:
            self._declare(weight.name, weight.data_type, tuple(weight.dims))
            if math.prod(weight.dims) <= _LARGEST_VALUE:
                self.values[weight.name] = numpy_helper.to_array(weight)

    def _declare(self, name: str, kind: int, shape: Shape) -> None:
        self._types[name] = helper.make_tensor_type_proto(kind, list(shape))

    def shape_of(self, name: str) -> Shape:
        """Return the shape at the other batch size."""
        found = known_sizes(self._types[name]) if name in self._types else None
        if found is None or -1 in found:
            raise KeyError(name)
        return found

    def batch_axis(self, name: str) -> int | None:
        """Return the axis that has the batch, or None."""
        fixed = self.fixed.get(name)
        if fixed is None or name not in self._types:
            return None
        other = self.shape_of(name)
        return next((axis for axis, (old, new) in enumerate(zip(fixed, other, strict=True)) if old != new), None)

    def axis_from_end(self, name: str) -> int | None:
        """Return the axis that has the batch, counted from the end, or None."""
        axis = self.batch_axis(name)
        return None if axis is None else axis - len(self.shape_of(name))

    def stride(self, name: str, axis: int) -> int:
        """Return the number of elements between two rows of the batch, which is in an axis, maybe between other factors."""
        shape = self.fixed[name]
        assert shape is not None
        return math.prod(shape[axis + 1 :]) * self.inner.get(name, shape[axis] // self.batch)

    def _inherit(self, node: onnx.NodeProto) -> None:
        """Note where the batch is in the axis of a result that has the same size as that of an input."""
        if node.op_type == "Reshape":
            return
        for name in node.input:
            axis = self.batch_axis(name) if name in self.inner else None
            for result in node.output if axis is not None else ():
                place = self.batch_axis(result)
                if place is not None and (self.fixed[result] or ())[place] == (self.fixed[name] or ())[axis or 0]:
                    self.inner[result] = self.inner[name]

    def fixed_value(self, name: str) -> Array | None:
        """Return the value of a tensor that is the same for every batch, or None."""
        if name in self._sizes:
            return None
        weight = self.weights.get(name)
        return numpy_helper.to_array(weight) if weight is not None else self.values.get(name)

    def dtype_of(self, name: str) -> Any:
        """Return NumPy's type of a tensor."""
        return helper.tensor_dtype_to_np_dtype(self._types[name].tensor_type.elem_type)

    def takes(self, node: onnx.NodeProto, name: str, shape: Shape, *, like: str) -> bool:
        """Return whether a node takes an input of a shape; True if its other inputs are not known yet.

        Args:
            node: the node.
            name: its input.
            shape: the shape at the other batch size.
            like: a tensor of the same type.
        """
        kind = self._types[like].tensor_type.elem_type
        types = self._types | {name: helper.make_tensor_type_proto(kind, list(shape))}
        names = [each for each in node.input if each]
        if any(each not in types for each in names):
            return True
        try:
            given = {each: types[each] for each in names}
            infer_node(node, find_schema(node, self._versions), given, {}, self._opsets)
        except ShapeInferenceError:
            return False
        return True

    def finish(self, node: onnx.NodeProto) -> None:
        """Add a node whose results were inferred."""
        self.made.append(node)
        self._evaluate(node)
        self._inherit(node)

    def infer(self, node: onnx.NodeProto) -> None:
        """Infer the shapes of a node's results at the other batch size.

        Raises:
            ShapeInferenceError: the node does not take it.
            KeyError, ValueError: a shape is not known, or depends on the batch in another way.
        """
        types = {name: self._types[name] for name in node.input if name}
        values = {name: numpy_helper.from_array(self.values[name], name) for name in node.input if name in self.values}
        found = infer_node(node, find_schema(node, self._versions), types, values, self._opsets)
        for name in node.output:
            if name:
                self._types[name] = found[name]
                self._check_size(name)

    def _check_size(self, name: str) -> None:
        """Check that the number of elements is a multiple as the batch is, or the same."""
        fixed, other = self.fixed.get(name), self.shape_of(name)
        if fixed is not None and len(fixed) == len(other):
            changed = [(old, new) for old, new in zip(fixed, other, strict=True) if old != new]
            if not changed or (len(changed) == 1 and changed[0][1] == changed[0][0] * FACTOR):
                return
        raise ValueError(name)

    def _evaluate(self, node: onnx.NodeProto) -> None:
        """Compute the values of a small tensor that depends on sizes and constants only."""
        if node.op_type == "Shape" or self._sizes.intersection(node.input):
            self._sizes.update(node.output)
        if node.op_type == "Shape":
            attributes = attributes_of(node)
            shape = self.shape_of(node.input[0])[attributes.get("start", 0) : attributes.get("end")]
            self.values[node.output[0]] = np.array(shape, np.int64)
            return
        if not all(name in self.values for name in node.input if name) or node.op_type.startswith("Random"):
            return
        if sum(math.prod(self.shape_of(name)) for name in node.output if name) > _LARGEST_VALUE:
            return
        try:
            self.values.update(
                NodeEvaluator(node, self._opsets).run({name: self.values[name] for name in node.input if name})
            )
        except Exception:  # values that the reference implementation cannot compute stay unknown
            return

    def add(self, op_type: str, inputs: Sequence[str], label: str, **attributes: Any) -> str:
        """Add a node before the one that is visited, named after ``label``, and return its result."""
        name = self._name(f"{label}/{op_type}")
        node = helper.make_node(op_type, list(inputs), [name], name, **attributes)
        types = {each: self._types[each] for each in inputs}
        values = {each: numpy_helper.from_array(self.values[each], each) for each in inputs if each in self.values}
        self._types.update(infer_node(node, find_schema(node, self._versions), types, values, self._opsets))
        self.made.append(node)
        self._evaluate(node)
        return name

    def constant(self, label: str, values: Array) -> str:
        """Add a weight."""
        name = self._name(f"{label}:constant")
        weight = numpy_helper.from_array(values, name)
        self.model.graph.initializer.append(weight)
        self.weights[name] = weight
        self.values[name] = values
        self._declare(name, weight.data_type, values.shape)
        return name

    def _count_rows(self, label: str) -> str:
        """Return the batch size as a tensor of one element."""
        source = self.model.graph.input[0].name
        return self.add("Shape", [source], label, start=0, end=1)

    def _count_up(self, label: str) -> str:
        """Return 0, 1, ... for the rows of the batch."""
        scalar = self.constant(label, np.zeros(0, np.int64))
        count = self.add("Reshape", [self._count_rows(label), scalar], label)
        zero, one = (self.constant(label, np.array(number, np.int64)) for number in (0, 1))
        return self.add("Range", [zero, count, one], label)

    def number(self, label: str, step: int, like: Array, place: int) -> str:
        """Return 0, step, 2 * step, ... for all rows of the batch, with the axes of ``like``."""
        numbers = self._count_up(label)
        scaled = self.add("Mul", [numbers, self.constant(label, np.array(step, np.int64))], label)
        shape = [1] * like.ndim
        shape[place] = -1
        shaped = self.add("Reshape", [scaled, self.constant(label, np.array(shape, np.int64))], label)
        kind = helper.np_dtype_to_tensor_dtype(like.dtype)
        return self.add("Cast", [shaped], label, to=kind)

    def join(self, label: str, before: Shape, after: Shape) -> str:
        """Return a shape with the batch between other sizes."""
        parts = [self.constant(label, np.array(sizes, np.int64)) for sizes in (before, after)]
        return self.add("Concat", [parts[0], self._count_rows(label), parts[1]], label, axis=0)

    def _name(self, text: str) -> str:
        self._number += 1
        return f"{text}_batch{self._number}"
