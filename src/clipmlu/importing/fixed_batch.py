"""Making the batch of a graph dynamic that was exported with a fixed one.

Such a graph has the batch in the targets of Reshape and Expand, and in constants with a row for each image or text. The nodes are
visited in order, with all shapes for the fixed batch and for another one. Where a node does not fit the other batch, a rule for
its operator replaces the fixed number. Several forms are ambiguous for a batch of 1; the comparison with the given file at other
batch sizes decides whether the result is right.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from clipmlu.errors import ExportError
from clipmlu.graph.index import attributes_of
from clipmlu.graph.shapes import Shape, ShapeInferenceError
from clipmlu.importing.batch_shapes import FACTOR, Array, BatchShapes
from clipmlu.importing.reading import describe

_MOST_ATTEMPTS = 16
_ADVICE = "Export it again with a dynamic batch."
_SIZED = frozenset({"MatMul", "Gemm", "LayerNormalization", "Conv"})
"""Operators whose weights fix some sizes of their inputs."""
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
    graph = model.graph
    body = onnx.GraphProto(node=graph.node).node
    weights = len(graph.initializer)
    first_error: ExportError | None = None
    choices: list[dict[str, int]] = [{}]
    while choices:
        attempt = _BatchEditor(model, batch, where, choices.pop())
        try:
            attempt.run()
            return
        except ExportError as error:
            if first_error is None:
                first_error = error
                choices = [{name: 1} for name in attempt.ambiguous[-_MOST_ATTEMPTS:]]
            graph.ClearField("node")
            graph.node.extend(body)
            del graph.initializer[weights:]
    assert first_error is not None
    raise first_error


class _BatchEditor(BatchShapes):
    """One pass over the nodes of a tower, which corrects those that do not fit another batch.

    Args:
        model: the tower.
        batch: its batch size.
        where: the graph, for messages.
        choices: maps an ambiguous Reshape to the number of the axis to take.

    Attributes:
        ambiguous: names of Reshapes to several axes of size 1, one of which takes the batch.
    """

    def __init__(self, model: onnx.ModelProto, batch: int, where: str, choices: Mapping[str, int]) -> None:
        super().__init__(model, batch)
        self.ambiguous: list[str] = []
        self._where = where
        self._choices = choices
        self._users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self._users[name].append(node)

    def run(self) -> None:
        """Correct the nodes, in place."""
        graph = self.model.graph
        for node in list(graph.node):
            self._visit(node)
        graph.ClearField("node")
        graph.node.extend(self.made)
        result = graph.output[0].name
        if self.shape_of(result)[:1] != (self.other,):
            raise ExportError(
                f"{self._where} has a fixed batch of {self.batch}, and '{result}' does not depend on it. {_ADVICE}"
            )

    def _visit(self, node: onnx.NodeProto) -> None:
        try:
            self._correct(node)
            self.infer(node)
        except (ShapeInferenceError, KeyError, ValueError) as error:
            raise self._refusal(node) from error
        self.finish(node)

    def _refusal(self, node: onnx.NodeProto) -> ExportError:
        return ExportError(
            f"{self._where} has a fixed batch of {self.batch}, and the {describe(node)} prevents another one. {_ADVICE}"
        )

    def _correct(self, node: onnx.NodeProto) -> None:
        if node.op_type == "Reshape":
            self._correct_reshape(node)
        elif node.op_type == "Expand":
            self._correct_expand(node)
        elif node.op_type == "Concat":
            self._correct_operands(node, attributes_of(node)["axis"] % len(self.shape_of(node.input[0])))
        elif node.op_type == "GatherND" and node.input[1] in self.weights:
            self._correct_constant_gather(node)
        elif node.op_type in ("Gather", "GatherND"):
            self._correct_gather(node)
        elif node.op_type in _BROADCASTING or node.op_type == "MatMul":
            self._correct_operands(node, None)

    def _correct_reshape(self, node: onnx.NodeProto) -> None:
        axis = self.batch_axis(node.input[0])
        if self.fixed_value(node.input[1]) is None or axis is None:
            return
        fixed = self.fixed[node.output[0]]
        assert fixed is not None
        for place in self._places(node, axis, fixed):
            sizes = [-1 if index == place else size for index, size in enumerate(fixed)]
            if self._fits(node, place):
                node.input[1] = self.constant(node.name, np.array(sizes, np.int64))
                self.inner[node.output[0]] = self.stride(node.input[0], axis) // math.prod(fixed[place + 1 :])
                return
        raise ValueError("no axis takes the batch")

    def _places(self, node: onnx.NodeProto, axis: int, target: Shape) -> Iterator[int]:
        """Yield the axes of a Reshape's target that may take the batch, the most probable one first.

        Args:
            node: the Reshape.
            axis: the axis of its input that has the batch.
            target: its target at the fixed batch.
        """
        source = node.input[0]
        shape, stride = self.fixed[source], self.stride(source, axis)
        assert shape is not None
        after = [math.prod(target[index + 1 :]) for index in range(len(target))]
        kept = 0  # axes at the end that both shapes have in common
        while kept < min(len(shape) - axis - 1, len(target) - 1) and shape[-1 - kept] == target[-1 - kept]:
            kept += 1
        places = [
            index
            for index in range(len(target) - kept)
            if stride % after[index] == 0 and target[index] % (stride // after[index] * self.batch) == 0
        ]
        exact = [index for index in places if after[index] == stride and target[index] == self.batch]
        if len(exact) > 1:
            self.ambiguous.append(node.name)
            chosen = self._choices.get(node.name, 0)
            exact = [*exact[chosen:], *exact[:chosen]]
        yield from exact
        yield from (index for index in reversed(places) if index not in exact)

    def _fits(self, node: onnx.NodeProto, place: int) -> bool:
        """Return whether the users of a Reshape take its result if the batch is in one of its axes."""
        result = node.output[0]
        shape = tuple(size * FACTOR if index == place else size for index, size in enumerate(self.fixed[result] or ()))
        return all(
            self.takes(user, result, shape, like=node.input[0])
            for user in self._users[result]
            if user.op_type in _SIZED
        )

    def _correct_expand(self, node: onnx.NodeProto) -> None:
        """Expand: where the input has the batch, a target of 1 keeps it."""
        target, axis = self.fixed_value(node.input[1]), self.batch_axis(node.input[0])
        if target is None or axis is None:
            return
        place = axis - len(self.shape_of(node.input[0])) + len(target)
        if place >= 0:
            sizes = target.copy()
            sizes[place] = 1
            node.input[1] = self.constant(node.name, sizes)

    def _correct_operands(self, node: onnx.NodeProto, joined: int | None) -> None:
        """Give operands with a row for each of the fixed batch as many rows as the others have.

        Args:
            node: a node that joins its operands along one axis, or broadcasts them, or multiplies matrices.
            joined: that axis, or None.
        """
        result = self.fixed[node.output[0]]
        axes = [self.axis_from_end(name) for name in node.input]
        leader = next((index for index, axis in enumerate(axes) if axis is not None), None)
        if result is None or leader is None:
            return
        place = axes[leader] or 0
        if (joined is not None and place == joined - len(result)) or (node.op_type == "MatMul" and place > -3):
            return
        size = (self.fixed[node.input[leader]] or ())[place]
        inner = self.inner.get(node.input[leader], size // self.batch)
        expand = joined is not None or inner > 1
        for index, name in enumerate(node.input):
            shape = self.shape_of(name)
            if axes[index] is not None or len(shape) < -place or shape[place] != size:
                continue
            if size == self.batch * inner and (self.batch > 1 or expand):
                node.input[index] = self._spread(node, name, place, inner if expand else None)

    def _spread(self, node: onnx.NodeProto, name: str, place: int, inner: int | None) -> str:
        """Return a tensor with equal rows, or with rows that count, for any batch.

        Args:
            node: its user.
            name: the tensor, with rows for each of the fixed batch.
            place: the axis of the rows, counted from the end.
            inner: repeat the rows, which are as many for each of the batch; None: one row is enough, since it is broadcast.
        """
        values = self.fixed_value(name)
        if values is not None and values.dtype.kind == "i" and _counts(values, place):
            rows = np.moveaxis(values, place, 0)
            return self.number(node.name, int((rows[1] - rows[0]).reshape(-1)[0]), values, place)
        if values is not None and inner in (None, 1) and (values != np.take(values, [0], place)).any():
            raise ValueError("its rows differ")
        label, shape = node.name, self.shape_of(name)
        row = name
        if self.batch > 1:
            axes = self.constant(label, np.array([place % len(shape)], np.int64))
            limits = [self.constant(label, np.array([number], np.int64)) for number in (0, inner or 1)]
            row = self.add("Slice", [name, *limits, axes], label)
        if inner is None:
            return row
        before, after = shape[: len(shape) + place], shape[len(shape) + place + 1 :]
        split = self.constant(label, np.array([*before, 1, inner, *after], np.int64))
        target = self.join(label, before, (inner, *after))
        repeated = self.add("Expand", [self.add("Reshape", [row, split], label), target], label)
        merged = self.constant(label, np.array([*before, -1, *after], np.int64))
        return self.add("Reshape", [repeated, merged], label)

    def _correct_gather(self, node: onnx.NodeProto) -> None:
        """Choose one token of each text: x[arange(batch), position], exported for a batch of 1, where arange is 0."""
        if self.batch > 1:
            return
        data, indices = node.input[0], node.input[1]
        if self.batch_axis(data) != 0 or self.batch_axis(indices) is None:
            return
        rows, fixed = self.shape_of(data)[0] // self.other, self.fixed[indices]
        if node.op_type == "Gather" and attributes_of(node).get("axis", 0) == 0 and rows > 1:
            like = np.zeros((1,) * len(fixed or ()), self.dtype_of(indices))
            offsets = self.number(node.name, rows, like, self.axis_from_end(indices) or -1)
            node.input[1] = self.add("Add", [indices, offsets], node.name)
        elif (
            node.op_type == "GatherND"
            and not attributes_of(node).get("batch_dims", 0)
            and fixed is not None
            and len(fixed) == 2
        ):
            like = np.zeros((1, 1), np.int64)
            last = self.constant(node.name, np.array([fixed[1]], np.int64))
            one, axis = (self.constant(node.name, np.array([number], np.int64)) for number in (1, 1))
            rest = self.add("Slice", [indices, one, last, axis], node.name)
            first = self.number(node.name, 1, like, 0)
            node.input[1] = self.add("Concat", [first, rest], node.name, axis=1)

    def _correct_constant_gather(self, node: onnx.NodeProto) -> None:
        """Choose the same tokens of each text by pairs of numbers, such as a mask for all of them: x[row, token]."""
        indices = numpy_helper.to_array(self.weights[node.input[1]])
        if self.batch_axis(node.input[0]) != 0 or indices.shape[0] != self.batch or indices.shape[-1] != 2:
            return
        numbers = np.arange(self.batch).reshape(-1, *[1] * (indices.ndim - 2))
        tokens = indices[..., 1]
        if (
            attributes_of(node).get("batch_dims", 0)
            or (indices[..., 0] != numbers).any()
            or (tokens != tokens[:1]).any()
        ):
            return
        node.op_type = "Gather"
        node.input[1] = self.constant(node.name, tokens[0])
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("axis", 1))


def _counts(values: Array, place: int) -> bool:
    """Return whether the rows are 0, k, 2k, ..., such as the offsets of rows in a flattened table."""
    rows = np.moveaxis(values, place, 0).reshape(values.shape[place], -1)
    step = rows[-1] - rows[-2] if len(rows) > 1 else np.zeros(1)
    return bool(step.any() and (rows == np.arange(len(rows))[:, None] * step).all())
