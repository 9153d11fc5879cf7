"""Making the batch of a graph dynamic that was exported with a fixed one.

Such a graph has the batch in the targets of Reshape and Expand, and in constants with a row for each image or text. The nodes are
visited in order, with all shapes for the fixed batch and for another one. Where a node does not fit the other batch, a rule for
its operator replaces the fixed number. Several forms are ambiguous for a batch of 1; the comparison with the given file at other
batch sizes decides whether the result is right.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from clipmlu.errors import ExportError
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
from clipmlu.importing.reading import describe

Array = npt.NDArray[Any]

_OTHER = 13  # the other batch size: a prime that no model has as a size of its own
_LARGEST_VALUE = 4096  # elements of a tensor whose value may determine a shape
_BROADCASTING = frozenset(
    {"Add", "Sub", "Mul", "Div", "Where", "Equal", "Less", "Greater", "Pow", "Max", "Min", "And", "Or"}
)


def free_batch(model: onnx.ModelProto, batch: int, where: str) -> None:
    """Change a tower with a fixed batch to take any batch, in place.

    Args:
        model: a tower with one input, of static shape; opset 13 or later.
        batch: its batch size.
        where: the graph, for messages.

    Raises:
        ExportError: a node prevents it; the message names it.
    """
    _Liberation(model, batch, where).run()


class _Liberation:
    """One pass over the nodes.

    Shapes and small known values are kept for both batch sizes; a tensor whose shapes differ has the batch in an axis.
    """

    def __init__(self, model: onnx.ModelProto, batch: int, where: str) -> None:
        self._model = model
        self._batch = batch
        self._other = _OTHER * batch
        self._where = where
        self._opsets = list(model.opset_import)
        self._versions = {entry.domain: entry.version for entry in self._opsets}
        self._fixed = {name: each.shape for name, each in infer_shapes(model).items()}
        self._types: dict[str, onnx.TypeProto] = {}
        self._values: dict[str, Array] = {}
        self._weights = {weight.name: weight for weight in model.graph.initializer}
        self._users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self._made: list[onnx.NodeProto] = []
        self._count = 0

    def run(self) -> None:
        graph = self._model.graph
        for node in graph.node:
            for name in node.input:
                self._users[name].append(node)
        source = graph.input[0]
        sizes = self._fixed[source.name]
        assert sizes is not None
        self._declare(source.name, source.type.tensor_type.elem_type, (self._other, *sizes[1:]))
        for weight in graph.initializer:
            self._declare(weight.name, weight.data_type, tuple(weight.dims))
            if math.prod(weight.dims) <= _LARGEST_VALUE:
                self._values[weight.name] = numpy_helper.to_array(weight)
        body = list(graph.node)
        for node in body:
            self._visit(node)
        graph.ClearField("node")
        graph.node.extend(self._made)
        result = graph.output[0].name
        if self._shape(result)[:1] != (self._other,):
            raise ExportError(
                f"{self._where} has a fixed batch of {self._batch}, and '{result}' does not depend on it."
            )

    # The two shapes of a tensor.

    def _declare(self, name: str, kind: int, shape: Shape) -> None:
        self._types[name] = helper.make_tensor_type_proto(kind, list(shape))

    def _shape(self, name: str) -> Shape:
        """Return the shape at the other batch size."""
        found = known_sizes(self._types[name]) if name in self._types else None
        if found is None or -1 in found:
            raise KeyError(name)
        return found

    def _batch_axis(self, name: str) -> int | None:
        """Return the axis that has the batch, or None."""
        fixed = self._fixed.get(name)
        if fixed is None or name not in self._types:
            return None
        other = self._shape(name)
        return next((axis for axis, (old, new) in enumerate(zip(fixed, other, strict=True)) if old != new), None)

    def _visit(self, node: onnx.NodeProto) -> None:
        try:
            self._correct(node)
            self._infer(node)
        except (ShapeInferenceError, KeyError, ValueError) as error:
            raise self._refusal(node) from error
        self._made.append(node)
        self._evaluate(node)

    def _refusal(self, node: onnx.NodeProto) -> ExportError:
        return ExportError(
            f"{self._where} has a fixed batch of {self._batch}, and the {describe(node)} prevents another one. "
            "Export it again with a dynamic batch."
        )

    def _infer(self, node: onnx.NodeProto) -> None:
        types = {name: self._types[name] for name in node.input if name}
        values = {
            name: numpy_helper.from_array(self._values[name], name) for name in node.input if name in self._values
        }
        found = infer_node(node, find_schema(node, self._versions), types, values, self._opsets)
        for name in node.output:
            if name:
                self._types[name] = found[name]
                self._check(name)

    def _check(self, name: str) -> None:
        """Check that the number of elements is a multiple as the batch is, or the same."""
        fixed, other = self._fixed.get(name), self._shape(name)
        if fixed is not None and len(fixed) == len(other):
            changed = [(old, new) for old, new in zip(fixed, other, strict=True) if old != new]
            if not changed or (len(changed) == 1 and changed[0][1] == changed[0][0] * _OTHER):
                return
        raise ValueError(name)

    def _evaluate(self, node: onnx.NodeProto) -> None:
        """Compute the values of a small tensor that depends on sizes and constants only."""
        if node.op_type == "Shape":
            attributes = attributes_of(node)
            shape = self._shape(node.input[0])[attributes.get("start", 0) : attributes.get("end")]
            self._values[node.output[0]] = np.array(shape, np.int64)
            return
        if not all(name in self._values for name in node.input if name) or node.op_type.startswith("Random"):
            return
        if sum(math.prod(self._shape(name)) for name in node.output if name) > _LARGEST_VALUE:
            return
        try:
            self._values.update(
                NodeEvaluator(node, self._opsets).run({name: self._values[name] for name in node.input if name})
            )
        except Exception:  # values that the reference implementation cannot compute stay unknown
            return

    # New nodes.

    def _add(self, op_type: str, inputs: Sequence[str], label: str, **attributes: Any) -> str:
        name = self._name(f"{label}/{op_type}")
        node = helper.make_node(op_type, list(inputs), [name], name, **attributes)
        types = {each: self._types[each] for each in inputs}
        values = {each: numpy_helper.from_array(self._values[each], each) for each in inputs if each in self._values}
        self._types.update(infer_node(node, find_schema(node, self._versions), types, values, self._opsets))
        self._made.append(node)
        self._evaluate(node)
        return name

    def _constant(self, label: str, values: Array) -> str:
        name = self._name(f"{label}:constant")
        weight = numpy_helper.from_array(values, name)
        self._model.graph.initializer.append(weight)
        self._weights[name] = weight
        self._values[name] = values
        self._declare(name, weight.data_type, values.shape)
        return name

    def _name(self, text: str) -> str:
        self._count += 1
        return f"{text}_batch{self._count}"

    def _rows(self, label: str) -> str:
        """Return the batch size as a tensor of one element."""
        source = self._model.graph.input[0].name
        return self._add("Shape", [source], label, start=0, end=1)

    # The rules.

    def _correct(self, node: onnx.NodeProto) -> None:
        if node.op_type == "Reshape":
            self._correct_reshape(node)
        elif node.op_type == "Expand":
            self._correct_expand(node)
        elif node.op_type == "Concat":
            self._correct_operands(node, attributes_of(node)["axis"] % len(self._shape(node.input[0])))
        elif node.op_type in ("Gather", "GatherND"):
            self._correct_gather(node)
        elif node.op_type in _BROADCASTING:
            self._correct_operands(node, None)

    def _correct_reshape(self, node: onnx.NodeProto) -> None:
        target = self._values.get(node.input[1])
        axis = self._batch_axis(node.input[0])
        if target is None or axis is None:
            return
        fixed = self._fixed[node.output[0]]
        assert fixed is not None
        for place in self._places(node, axis, fixed):
            sizes = [-1 if index == place else size for index, size in enumerate(fixed)]
            if self._fits(node, sizes, place):
                node.input[1] = self._constant(node.name, np.array(sizes, np.int64))
                return
        raise ValueError("no axis takes the batch")

    def _places(self, node: onnx.NodeProto, axis: int, target: Shape) -> Iterator[int]:
        """Yield the axes of a Reshape's target that may take the batch, the most probable one first.

        Args:
            node: the Reshape.
            axis: the axis of its input that has the batch, alone or before other factors.
            target: its target at the fixed batch.
        """
        source = self._fixed[node.input[0]]
        assert source is not None
        stride = math.prod(source[axis:]) // self._batch  # elements between two rows of the batch
        after = [math.prod(target[index + 1 :]) for index in range(len(target))]
        kept = 0  # axes at the end that both shapes have in common
        while kept < min(len(source) - axis - 1, len(target) - 1) and source[-1 - kept] == target[-1 - kept]:
            kept += 1
        places = [
            index
            for index in range(len(target) - kept)
            if after[index] <= stride and stride % after[index] == 0
            if after[index] * target[index] >= stride * self._batch and target[index] % self._batch == 0
        ]
        exact = [index for index in places if after[index] == stride and target[index] == self._batch]
        yield from exact
        yield from (index for index in reversed(places) if index not in exact)

    def _fits(self, node: onnx.NodeProto, sizes: Sequence[int], place: int) -> bool:
        """Return whether the users of a Reshape take its result if the batch is in one of its axes."""
        result = node.output[0]
        shape = [size * _OTHER if index == place else size for index, size in enumerate(self._fixed[result] or ())]
        kind = self._types[node.input[0]].tensor_type.elem_type
        types = self._types | {result: helper.make_tensor_type_proto(kind, shape)}
        for user in self._users[result]:
            if user.op_type not in ("MatMul", "Gemm", "LayerNormalization", "Conv") or any(
                name not in types for name in user.input if name
            ):
                continue
            try:
                infer_node(
                    user,
                    find_schema(user, self._versions),
                    {name: types[name] for name in user.input if name},
                    {},
                    self._opsets,
                )
            except ShapeInferenceError:
                return False
        return True

    def _correct_expand(self, node: onnx.NodeProto) -> None:
        """Expand: where the input has the batch, a target of 1 keeps it."""
        target, axis = self._values.get(node.input[1]), self._batch_axis(node.input[0])
        if target is None or axis is None:
            return
        place = axis - len(self._shape(node.input[0])) + len(target)
        if place >= 0:
            sizes = target.copy()
            sizes[place] = 1
            node.input[1] = self._constant(node.name, sizes)

    def _correct_operands(self, node: onnx.NodeProto, joined: int | None) -> None:
        """Give operands with a row for each of the fixed batch as many rows as the others have.

        Args:
            node: a node that joins its operands along one axis, or broadcasts them.
            joined: that axis, or None.
        """
        result = self._fixed[node.output[0]]
        axes = [self._axis_from_end(name) for name in node.input]
        place = next((axis for axis in axes if axis is not None), None)
        if result is None or place is None or (joined is not None and place == joined - len(result)):
            return
        for index, name in enumerate(node.input):
            shape = self._shape(name)
            if axes[index] is not None or len(shape) < -place:
                continue
            if shape[place] == self._batch and (self._batch > 1 or joined is not None):
                node.input[index] = self._spread(node, name, place, expand=joined is not None)

    def _axis_from_end(self, name: str) -> int | None:
        axis = self._batch_axis(name)
        return None if axis is None else axis - len(self._shape(name))

    def _spread(self, node: onnx.NodeProto, name: str, place: int, *, expand: bool) -> str:
        """Return a tensor with equal rows, or with rows that count, for any batch.

        Args:
            node: its user.
            name: the tensor, with a row for each of the fixed batch.
            place: the axis of the rows, counted from the end.
            expand: repeat the rows; otherwise one row is enough, since it is broadcast.
        """
        values = self._values.get(name)
        if values is not None and values.dtype.kind == "i" and self._counts(values, place):
            return self._counted(node, values, place)
        label = node.name
        row = name
        if self._batch > 1:
            axes = self._constant(label, np.array([place % len(self._shape(name))], np.int64))
            limits = [self._constant(label, np.array([number], np.int64)) for number in (0, 1)]
            row = self._add("Slice", [name, *limits, axes], label)
        if not expand:
            return row
        shape = self._shape(row)
        before, after = shape[: len(shape) + place], shape[len(shape) + place + 1 :]
        parts = [
            *([self._constant(label, np.array(before, np.int64))] if before else []),
            self._rows(label),
            *([self._constant(label, np.array(after, np.int64))] if after else []),
        ]
        target = self._add("Concat", parts, label, axis=0) if len(parts) > 1 else parts[0]
        return self._add("Expand", [row, target], label)

    def _counts(self, values: Array, place: int) -> bool:
        """Return whether the rows are 0, k, 2k, ..., such as the offsets of rows in a flattened table."""
        rows = np.moveaxis(values, place, 0).reshape(len(np.moveaxis(values, place, 0)), -1)
        step = rows[1] - rows[0] if len(rows) > 1 else rows[0]
        return bool(step.any() and (rows == np.arange(len(rows))[:, None] * step).all())

    def _counted(self, node: onnx.NodeProto, values: Array, place: int) -> str:
        rows = np.moveaxis(values, place, 0)
        return self._numbers(node, int((rows[1] - rows[0]).reshape(-1)[0]), values, place)

    def _numbers(self, node: onnx.NodeProto, step: int, like: Array, place: int) -> str:
        """Return 0, step, 2 * step, ... for all rows of the batch, with the axes of ``like``."""
        label = node.name
        numbers = self._range(label)
        scaled = self._add("Mul", [numbers, self._constant(label, np.array(step, np.int64))], label)
        shape = [1] * like.ndim
        shape[place] = -1
        shaped = self._add("Reshape", [scaled, self._constant(label, np.array(shape, np.int64))], label)
        kind = helper.np_dtype_to_tensor_dtype(like.dtype)
        return self._add("Cast", [shaped], label, to=kind)

    def _range(self, label: str) -> str:
        """Return 0, 1, ... for the rows of the batch."""
        scalar = self._constant(label, np.zeros(0, np.int64))
        count = self._add("Reshape", [self._rows(label), scalar], label)
        zero, one = (self._constant(label, np.array(number, np.int64)) for number in (0, 1))
        return self._add("Range", [zero, count, one], label)

    def _correct_gather(self, node: onnx.NodeProto) -> None:
        """Choose one token of each text: x[arange(batch), position], exported for a batch of 1, where arange is 0."""
        if self._batch > 1:
            return
        data, indices = node.input[0], node.input[1]
        if self._batch_axis(data) != 0 or self._batch_axis(indices) is None:
            return
        rows, fixed = self._shape(data)[0] // self._other, self._fixed[indices]
        if node.op_type == "Gather" and attributes_of(node).get("axis", 0) == 0 and rows > 1:
            like = np.zeros((1,) * len(fixed or ()), _dtype(self._types[indices]))
            offsets = self._numbers(node, rows, like, self._axis_from_end(indices) or -1)
            node.input[1] = self._add("Add", [indices, offsets], node.name)
        elif (
            node.op_type == "GatherND"
            and not attributes_of(node).get("batch_dims", 0)
            and fixed is not None
            and len(fixed) == 2
        ):
            like = np.zeros((1, 1), np.int64)
            last = self._constant(node.name, np.array([fixed[1]], np.int64))
            one, axis = (self._constant(node.name, np.array([number], np.int64)) for number in (1, 1))
            rest = self._add("Slice", [indices, one, last, axis], node.name)
            first = self._numbers(node, 1, like, 0)
            node.input[1] = self._add("Concat", [first, rest], node.name, axis=1)


def _dtype(kind: onnx.TypeProto) -> Any:
    return helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type)
