"""Helpers for onnx-ir graphs: attributes, constants, and replacing one node by several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from clipmlu.errors import CompileError
from clipmlu.specs import MODULE_KEY

Array = npt.NDArray[Any]


def describe(node: ir.Node) -> str:
    """Return a node's name, block and operator for messages."""
    block = node.metadata_props.get(MODULE_KEY) or "(whole model)"
    domain = f"{node.domain}." if node.domain else ""
    return f"Node '{node.name}' of block '{block}' (operator {domain}{node.op_type})"


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """Return the value of an attribute, or the default if the node does not have it."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def set_attributes(node: ir.Node, **values: Any) -> None:
    """Set attributes; None removes one."""
    for name, value in values.items():
        if value is None:
            node.attributes.pop(name, None)
        else:
            node.attributes[name] = ir.convenience.convert_attribute(name, value)


def input_or_none(node: ir.Node, index: int) -> ir.Value | None:
    """Return an input, or None if it is missing."""
    return node.inputs[index] if index < len(node.inputs) else None


def constant_of(value: ir.Value | None) -> Array | None:
    """Return the array of a weight or constant of the graph, or None for any other value."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return np.asarray(value.const_value.numpy())


def constant_input(node: ir.Node, index: int) -> Array | None:
    """Return the array of a constant input, or None if the input is missing.

    Raises:
        CompileError: the input is computed, so that it cannot become an attribute.
    """
    value = input_or_none(node, index)
    if value is None:
        return None
    array = constant_of(value)
    if array is None:
        raise CompileError(f"{describe(node)} computes its input {index}, '{value.name}', where a constant is needed.")
    return array


def producer_of(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """Return the node that computes a value, if it has that operator, else None."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


def rank_of(node: ir.Node, value: ir.Value | None) -> int:
    """Return the number of axes.

    Raises:
        CompileError: it is not known.
    """
    if value is None or value.shape is None:
        raise CompileError(f"{describe(node)} has an input of unknown rank, '{value and value.name}'.")
    return len(value.shape)


def static_size(node: ir.Node, value: ir.Value | None, axis: int) -> int:
    """Return the size of an axis that does not depend on the batch.

    Raises:
        CompileError: it depends on the batch.
    """
    rank = rank_of(node, value)
    assert value is not None
    assert value.shape is not None
    size = value.shape[axis % rank]
    if not isinstance(size, int):
        raise CompileError(f"{describe(node)} needs a static axis {axis} of '{value.name}', which is '{size}'.")
    return size


def drop_inputs(node: ir.Node, keep: int) -> None:
    """Keep the first inputs only."""
    node.resize_inputs(min(keep, len(node.inputs)))


class GraphEditor:
    """Adds nodes and constants to one graph with unique names."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._node_names = {node.name for node in graph.all_nodes() if node.name}
        self._value_names = {value.name for value in (*graph.inputs, *graph.initializers.values()) if value.name}
        self._value_names |= {value.name for node in graph.all_nodes() for value in node.outputs if value.name}

    def add_constant(self, name: str, array: Array) -> ir.Value:
        """Return a new initializer; a used name gets a number as a suffix."""
        name = _free_name(name, self._value_names)
        array = np.ascontiguousarray(array) if array.ndim else array
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def make_node(
        self,
        name: str,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any],
        origin: ir.Node | None,
        num_outputs: int = 1,
    ) -> ir.Node:
        """Return a new node, not yet placed in the graph; it belongs to the block of ``origin``."""
        node = ir.node(op_type, inputs, attributes=dict(attributes), num_outputs=num_outputs)
        node.name = _free_name(name, self._node_names)
        if origin is not None:
            node.metadata_props.update(origin.metadata_props)
        for index, value in enumerate(node.outputs):
            value.name = _free_name(f"{node.name}:{index}", self._value_names)
        return node

    def rename(self, node: ir.Node, name: str) -> None:
        """Rename a node; a used name gets a number as a suffix."""
        node.name = _free_name(name, self._node_names)


class Steps:
    """The nodes that replace one node, named ``<its name>/<operator>``; the last one is the node itself."""

    def __init__(self, editor: GraphEditor, origin: ir.Node) -> None:
        self._editor = editor
        self._origin = origin
        self._counts: dict[str, int] = {}

    def add(
        self, op_type: str, *inputs: ir.Value | None, dtype: ir.DataType | None = None, **attributes: Any
    ) -> ir.Value:
        """Add one step; its result has the type of the first input unless ``dtype`` is given."""
        number = self._counts.get(op_type, 0)
        self._counts[op_type] = number + 1
        name = f"{self._origin.name}/{op_type}" + (f"_{number}" if number else "")
        node = self._editor.make_node(name, op_type, inputs, attributes, self._origin)
        self._origin.prepend(node)
        first = inputs[0] if inputs else None
        known = dtype or (first.dtype if first is not None else None)
        if known is not None:
            node.outputs[0].type = ir.TensorType(known)
        return node.outputs[0]

    def constant(self, label: str, array: Array) -> ir.Value:
        """Return a constant named ``<name of the node>:<label>``."""
        return self._editor.add_constant(f"{self._origin.name}:{label}", array)

    def like(self, label: str, number: float, value: ir.Value) -> ir.Value:
        """Return a scalar constant of the same type as ``value``."""
        if value.dtype is None:
            raise CompileError(f"{describe(self._origin)} has an input of unknown type, '{value.name}'.")
        return self.constant(label, np.array(number, value.dtype.numpy()))

    def integers(self, label: str, numbers: Sequence[int]) -> ir.Value:
        """Return a constant vector of int64."""
        return self.constant(label, np.array(numbers, np.int64))

    def finish(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> None:
        """Add the last step: the node itself gets this operator.

        Its results stay the same tensors with the same names, so both graphs can be compared tensor by tensor.
        """
        node = self._origin
        name = f"{node.name}/{op_type}"
        number = self._counts.get(op_type, 0)
        self._editor.rename(node, name + (f"_{number}" if number else ""))
        node.op_type, node.domain = op_type, ""
        node.resize_inputs(len(inputs))
        for index, value in enumerate(inputs):
            node.replace_input_with(index, value)
        node.attributes.clear()
        set_attributes(node, **attributes)


def _free_name(name: str, taken: set[str]) -> str:
    free, number = name, 0
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free)
    return free
