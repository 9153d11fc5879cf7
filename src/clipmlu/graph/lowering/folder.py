"""Folding: removes shape arithmetic, constants and all values that depend on sizes only.

Every known value becomes a constant. A value that depends on the batch is expressed without reading a shape: by -1 in a
Reshape, by broadcasting, or by a column of zeros as long as the batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from clipmlu.graph.lowering.analysis import Analysis
from clipmlu.graph.lowering.nodes import Array, GraphEditor, Steps, constant_of, input_or_none
from clipmlu.graph.lowering.sizes import Size
from clipmlu.graph.shapes import Shape

_BROADCASTING = frozenset(
    {"Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min"}
    | {"Mod", "Mul", "Or", "Pow", "Sub", "Sum", "Where", "Xor"}
)


class Folder:
    """Folds one node after the other, from inputs to outputs."""

    def __init__(self, analysis: Analysis, editor: GraphEditor) -> None:
        self.analysis = analysis
        self.editor = editor
        self._constants: dict[ir.Value, ir.Value] = {}
        self._cores: dict[ir.Value, ir.Value] = {}
        self._columns: dict[tuple[str, ir.DataType], ir.Value] = {}
        self._splits: dict[ir.Node, ir.Node] = {}
        self._reshaped: dict[tuple[ir.Value, int, int], ir.Value] = {}

    def fold_inputs(self, node: ir.Node) -> None:
        """Replace known inputs of a node by constants."""
        for index, value in enumerate(node.inputs):
            if value is not None and value.const_value is None and self.analysis.is_known(value):
                self._fold_input(node, index, value)

    def _fold_input(self, node: ir.Node, index: int, value: ir.Value) -> None:
        constant = self.analysis.constant(value)
        if constant is not None:
            node.replace_input_with(index, self.constant(value, constant))
            return
        core = self.core(value)
        if core is None:
            return
        if self._broadcasts(node, value, core.shape):
            node.replace_input_with(index, self._core_value(value, core))
        else:
            spread = self._spread_core(value, core)
            if spread is not None:
                node.replace_input_with(index, spread)

    def constant(self, value: ir.Value, array: Array) -> ir.Value:
        """Return the constant for a computed value."""
        if value not in self._constants:
            self._constants[value] = self.analysis.register(self.editor.add_constant(f"{value.name}:constant", array))
        return self._constants[value]

    def core(self, value: ir.Value) -> Array | None:
        """Return the constant whose repetition along the batch-dependent axes is the value, or None."""
        arrays = self.analysis.known(value)
        if arrays is None:
            return None
        sizes = self.analysis.sizes(value)
        first = tuple(slice(None) if size is not None and size.constant is not None else slice(0, 1) for size in sizes)
        core = arrays[0][first]
        same = all(np.array_equal(np.broadcast_to(core, array.shape), array) for array in arrays)
        return core if same and core.shape != () else None

    def _core_value(self, value: ir.Value, core: Array) -> ir.Value:
        if value not in self._cores:
            self._cores[value] = self.analysis.register(self.editor.add_constant(f"{value.name}:row", core))
        return self._cores[value]

    def _broadcasts(self, node: ir.Node, value: ir.Value, shape: Shape) -> bool:
        return self.broadcasts_with(node, {value: (shape,) * len(self.analysis.probes)})

    def broadcasts_with(self, node: ir.Node, replaced: Mapping[ir.Value, tuple[Shape, ...]]) -> bool:
        """Return whether the node's result stays the same if some inputs are not expanded before it.

        Args:
            node: the user of the inputs.
            replaced: maps an input to its smaller shape at each probe.
        """
        if node.op_type not in _BROADCASTING or node.domain:
            return False
        for index, probe in enumerate(self.analysis.probes):
            shapes = [
                replaced[value][index] if value in replaced else probe.shapes.get(value)
                for value in node.inputs
                if value is not None
            ]
            wanted = probe.shapes.get(node.outputs[0])
            if wanted is None or any(shape is None for shape in shapes):
                return False
            if np.broadcast_shapes(*(shape for shape in shapes if shape is not None)) != wanted:
                return False
        return True

    def _spread_core(self, value: ir.Value, core: Array) -> ir.Value | None:
        """Return the row repeated along the batch: row + a column of zeros."""
        origin = value.producer()
        column = self.zeros_for(value)
        if origin is None or column is None or core.dtype == np.bool_:
            return None
        if value not in self._constants:
            steps = Steps(self.editor, origin)
            self._constants[value] = steps.add("Add", self._core_value(value, core), column)
            self._constants[value].shape = value.shape
            self.analysis.register(self._constants[value], like=value)
        return self._constants[value]

    def zeros_for(self, value: ir.Value) -> ir.Value | None:
        """Return zeros that broadcast a tensor to the batch sizes of ``value``; None if its sizes are not plain axes."""
        sizes = self.analysis.sizes(value)
        if value.dtype is None:
            return None
        result: ir.Value | None = None
        for index, size in enumerate(sizes):
            if size is not None and size.constant is not None:
                continue
            if size is None or size.axis is None or result is not None:
                return None
            column = self._column(size.axis, value.dtype)
            if column is None:
                return None
            result = self._reshape_column(column, len(sizes), index)
        return result

    def _column(self, axis: str, dtype: ir.DataType) -> ir.Value | None:
        """Return zeros of shape (axis, 1, 1, ...): the first element of each row of some tensor, times zero."""
        source = next((value for value in self.editor.graph.inputs if _leading_axis(value) == axis), None)
        if source is None or dtype == ir.DataType.BOOL:
            return None
        anchor = self._anchor(source, axis)
        if anchor.shape is None:
            return None
        if (axis, dtype) not in self._columns:
            self._columns[axis, dtype] = self._make_column(anchor, len(anchor.shape), dtype)
        return self._columns[axis, dtype]

    def _anchor(self, source: ir.Value, axis: str) -> ir.Value:
        """Return the result of the first node on an input, if that node uses only weights besides; else the input.

        The SDK adds mean and variance of uint8 pixels before *the* first node (``insert_bn_before_firstnode``), so the
        input should have one user only.
        """
        users = [node for node in source.consumers() if not self.analysis.is_known(node.outputs[0])]
        result = users[0].outputs[0] if len(users) == 1 else source
        others = [value for value in users[0].inputs if value not in (None, source)] if len(users) == 1 else []
        is_float = result.dtype is not None and result.dtype.is_floating_point()
        fits = is_float and _leading_axis(result) == axis and self.is_analysed(result)
        return result if fits and all(value is None or value.const_value is not None for value in others) else source

    def _make_column(self, anchor: ir.Value, rank: int, dtype: ir.DataType) -> ir.Value:
        name = f"{_producer_name(anchor)}/zeros"
        first = anchor
        if rank > 1:
            limits = {"starts": [0] * (rank - 1), "ends": [1] * (rank - 1), "axes": list(range(1, rank))}
            values = [
                self.editor.add_constant(f"{name}/Slice:{label}", np.array(numbers, np.int64))
                for label, numbers in limits.items()
            ]
            first = self._column_node(f"{name}/Slice", "Slice", anchor, *values, dtype=anchor.dtype)
        if anchor.dtype != dtype:
            first = self._column_node(f"{name}/Cast", "Cast", first, dtype=dtype, to=int(dtype))
        zero = self.editor.add_constant(f"{name}/Mul:zero", np.zeros((), dtype.numpy()))
        column = self._column_node(f"{name}/Mul", "Mul", first, zero, dtype=dtype)
        column.shape = ir.Shape([anchor.shape[0] if anchor.shape else 1, *[1] * (rank - 1)])
        return column

    def _column_node(
        self, name: str, op_type: str, *inputs: ir.Value, dtype: ir.DataType | None, **attributes: int
    ) -> ir.Value:
        producer = inputs[0].producer()
        node = self.editor.make_node(name, op_type, inputs, attributes, producer)
        if producer is None:
            self.editor.graph.insert_before(self.editor.graph[0], node)
        else:
            producer.append(node)
        if dtype is not None:
            node.outputs[0].type = ir.TensorType(dtype)
        return node.outputs[0]

    def _reshape_column(self, column: ir.Value, rank: int, axis: int) -> ir.Value:
        if axis == 0 and column.shape is not None and len(column.shape) == rank:
            return column
        target = [1] * rank
        target[axis] = -1
        key = (column, rank, axis)
        if key not in self._reshaped:
            name = f"{_producer_name(column)}/Reshape"
            shape = self.editor.add_constant(f"{name}:shape", np.array(target, np.int64))
            self._reshaped[key] = self._column_node(name, "Reshape", column, shape, dtype=column.dtype)
        return self._reshaped[key]

    def is_analysed(self, value: ir.Value) -> bool:
        """Return whether the tensor existed when the graph was analysed."""
        return value in self.analysis.probes[0].shapes

    def constant_input(self, node: ir.Node, index: int) -> Array | None:
        """Return the value of an input that does not depend on the batch, else None."""
        value = input_or_none(node, index)
        return self.analysis.constant(value) if value is not None and self.analysis.is_known(value) else None

    def split_last_axis(self, origin: ir.Node, source: ir.Value, count: int) -> ir.Node:
        """Return the Split of a tensor into equal parts of its last axis, shared by all users, after ``origin``."""
        if origin not in self._splits:
            size = self.analysis.shapes(source)[0][-1] // count
            sizes = self.editor.add_constant(f"{origin.name}/Split:sizes", np.full(count, size, np.int64))
            inputs, attributes = (source, sizes), {"axis": -1}
            node = self.editor.make_node(f"{origin.name}/Split", "Split", inputs, attributes, origin, count)
            origin.append(node)
            for value in node.outputs:
                value.type = source.type
                value.shape = ir.Shape([*source.shape[:-1], size]) if source.shape is not None else None
            self._splits[origin] = node
        return self._splits[origin]

    def reshape_target(self, source: ir.Value, result: ir.Value) -> list[int] | None:
        """Return the target of a Reshape for this result: numbers, one -1, and 0 for a copied size; None if impossible."""
        before, after = self.analysis.sizes(source), self.analysis.sizes(result)
        target: list[int | None] = [None if size is None else size.constant for size in after]
        open_axes = [index for index, number in enumerate(target) if number is None]
        while len(open_axes) > 1:
            copied = next((index for index in open_axes if copies_axis(before, after, index)), None)
            if copied is None:
                return None
            target[copied] = 0
            open_axes.remove(copied)
        return [-1 if number is None else number for number in target]

    def put_reshape(self, node: ir.Node, source: ir.Value) -> bool:
        """Replace a node by a Reshape of ``source``, or by ``source`` itself if that has the same shape."""
        result = node.outputs[0]
        if self.analysis.shapes(source) == self.analysis.shapes(result):
            return self.bypass(node, source)
        target = self.reshape_target(source, result)
        if target is None:
            return False
        if node.op_type == "Reshape":
            given = constant_of(node.inputs[1])
            if given is None or given.tolist() != target:
                shape = self.editor.add_constant(f"{node.name}:shape", np.array(target, np.int64))
                node.replace_input_with(1, shape)
            node.attributes.pop("allowzero", None)
        else:
            steps = Steps(self.editor, node)
            steps.finish("Reshape", source, steps.integers("shape", target))
        return True

    def bypass(self, node: ir.Node, source: ir.Value) -> bool:
        """Replace all uses of the node's result by ``source``."""
        result = node.outputs[0]
        if result.is_graph_output():
            if node.op_type != "Identity":
                Steps(self.editor, node).finish("Identity", source)
        else:
            result.replace_all_uses_with(source)
        if not self.is_analysed(source):
            self.analysis.register(source, like=result)
        return True


def _producer_name(value: ir.Value) -> str:
    node = value.producer()
    return (node.name if node is not None else value.name) or ""


def _leading_axis(value: ir.Value) -> str | None:
    size = value.shape[0] if value.shape is not None and len(value.shape) else None
    return str(size.value) if isinstance(size, ir.SymbolicDim) else None


def copies_axis(before: tuple[Size | None, ...], after: tuple[Size | None, ...], index: int) -> bool:
    """Return whether two shapes have the same known size at an index."""
    return index < len(before) and before[index] is not None and before[index] == after[index]
