"""Shape inference for the tensors of an ONNX graph: of a whole graph, and of a single node's results.

``onnx.shape_inference`` is not sufficient: for operators of opset 11 it does not follow computed Reshape targets
(Shape, Gather, Concat, Reshape), which exporters of that time wrote. ``infer_shapes`` visits the nodes in the graph's
order, infers each with ``infer_node``, and computes the values of small tensors. ``lowering.analysis``, which also
folds constants, uses the same functions for a node: ``infer_node`` and ``NodeEvaluator``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnx.defs
import onnx.reference
import onnx.shape_inference
from onnx import helper, numpy_helper

from clipmlu.errors import CompileError
from clipmlu.graph.operators import CONTRIBUTED

Array = npt.NDArray[np.generic]
Shape = tuple[int, ...]


class TensorShape(NamedTuple):
    """Shape and type of a tensor.

    Attributes:
        shape: its sizes, -1 for an unknown one; None for an unknown rank.
        element_type: ONNX element type.
    """

    shape: Shape | None
    element_type: int


Shapes = dict[str, TensorShape]
"""Maps a tensor name to its shape and element type."""

_SMALL = 1024
"""Largest number of elements of a tensor whose values are computed."""


class ShapeInferenceError(CompileError):
    """The shapes contradict each other."""


class UnknownOperatorError(CompileError):
    """No imported operator set has the operator."""


def set_shape(value: onnx.ValueInfoProto, sizes: Sequence[int]) -> None:
    """Set the shape of a graph input; -1 makes an axis dynamic."""
    shape = value.type.tensor_type.shape
    shape.Clear()
    shape.SetInParent()
    for size in sizes:
        dim = shape.dim.add()
        if size >= 0:
            dim.dim_value = size


def get_shape(value: onnx.ValueInfoProto) -> Shape | None:
    """Return the declared shape."""
    return known_sizes(value.type)


def without_weights(graph: bytes) -> onnx.ModelProto:
    """Return the model without the values of its large weights, but with their shapes; for ``infer_shapes`` only."""
    model = onnx.ModelProto()
    model.ParseFromString(graph)
    for weight in model.graph.initializer:
        if np.prod(weight.dims, dtype=np.int64) > _SMALL:
            for field in ("raw_data", "float_data", "int32_data", "int64_data"):
                weight.ClearField(field)
    return model


def infer_shapes(
    model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]] | None = None, *, free_size: int = -1
) -> Shapes:
    """Infer the shapes of all tensors, including weights; declared shapes of inner tensors and outputs are ignored.

    Args:
        model: the model; it is not changed.
        inputs: maps input names to shapes that replace the declared ones.
        free_size: size to assume for the inputs' dynamic axes; -1 leaves them unknown.

    Raises:
        ShapeInferenceError: the shapes contradict each other, as in a graph that was exported for another batch size.
        UnknownOperatorError: an operator is unknown.
    """
    return _Inference(model, inputs or {}, free_size).run()


def find_schema(node: onnx.NodeProto, opsets: Mapping[str, int]) -> onnx.defs.OpSchema:
    """Return ONNX's schema of a node's operator.

    Args:
        node: the node.
        opsets: maps a domain to the version of its operator set.

    Raises:
        UnknownOperatorError: none of the operator sets has it.
    """
    try:
        return onnx.defs.get_schema(node.op_type, opsets[node.domain], node.domain)
    except (KeyError, onnx.defs.SchemaError) as error:
        raise UnknownOperatorError(f"node '{node.name}': unknown operator {node.op_type}") from error


def infer_node(
    node: onnx.NodeProto,
    schema: onnx.defs.OpSchema,
    types: Mapping[str, onnx.TypeProto],
    values: Mapping[str, onnx.TensorProto],
    opsets: Sequence[onnx.OperatorSetIdProto],
    ir_version: int = onnx.IR_VERSION,
) -> dict[str, onnx.TypeProto]:
    """Infer the types and shapes of a node's results.

    Args:
        node: the node.
        schema: schema of its operator, see ``find_schema``.
        types: type of each input, by tensor name.
        values: the inputs whose values are known, by tensor name.
        opsets: operator sets of its graph.
        ir_version: format version of its graph.

    Returns:
        Maps tensor names to types, for the results that ONNX can infer.

    Raises:
        ShapeInferenceError: the inputs do not fit the operator or each other; the message is one line.
    """
    try:
        found: dict[str, onnx.TypeProto] = onnx.shape_inference.infer_node_outputs(
            schema, node, dict(types), dict(values), opset_imports=list(opsets), ir_version=ir_version
        )
    except Exception as error:  # InferenceError, or errors of its native code for extreme numbers
        raise ShapeInferenceError(" ".join(str(error).split())) from error
    return found


class NodeEvaluator:
    """Computes the results of one node with ONNX's reference implementation.

    Args:
        node: the node.
        opsets: operator sets of its graph.
        ir_version: format version of its graph.
    """

    def __init__(
        self, node: onnx.NodeProto, opsets: Sequence[onnx.OperatorSetIdProto], ir_version: int = onnx.IR_VERSION
    ) -> None:
        self._node = node
        graph = helper.make_graph(
            [node],
            "node",
            [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(node.input) if name],
            [onnx.ValueInfoProto(name=name) for name in node.output if name],
        )
        self._evaluator = onnx.reference.ReferenceEvaluator(
            helper.make_model(graph, opset_imports=list(opsets), ir_version=ir_version)
        )

    def run(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the results; errors of the reference implementation are not converted.

        Args:
            values: values of the inputs, by tensor name.

        Returns:
            Maps tensor names to values.
        """
        names = [name for name in self._node.output if name]
        results = self._evaluator.run(None, dict(values))
        return {name: np.asarray(result) for name, result in zip(names, results, strict=True)}


def known_sizes(kind: onnx.TypeProto) -> Shape | None:
    """Return the shape of a tensor type, -1 for an unknown size; None for an unknown rank."""
    tensor = kind.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)


class _Inference:
    def __init__(self, model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]], free_size: int) -> None:
        self._model = model
        self._opsets = list(model.opset_import)
        self._versions = {entry.domain: entry.version for entry in model.opset_import}
        self._types: dict[str, onnx.TypeProto] = {}
        self._values: dict[str, onnx.TensorProto] = {}
        for value in model.graph.input:
            declared = onnx.ValueInfoProto()
            declared.CopyFrom(value)
            sizes = inputs.get(value.name, get_shape(value))
            if sizes is not None and (value.name in inputs or free_size >= 0):
                set_shape(declared, [free_size if size < 0 else size for size in sizes])
            self._types[value.name] = declared.type
        for weight in model.graph.initializer:
            self._types[weight.name] = helper.make_tensor_type_proto(weight.data_type, list(weight.dims))
            if np.prod(weight.dims, dtype=np.int64) <= _SMALL:
                self._values[weight.name] = weight

    def run(self) -> Shapes:
        for node in self._model.graph.node:
            self._infer(node)
            self._evaluate(node)
        return {name: TensorShape(known_sizes(kind), kind.tensor_type.elem_type) for name, kind in self._types.items()}

    def _infer(self, node: onnx.NodeProto) -> None:
        if node.domain == CONTRIBUTED:  # quantise and dequantise: not supported by inference; the shape stays
            self._types[node.output[0]] = self._types[node.input[0]]
            return
        names = [name for name in node.input if name]
        if any(name not in self._types for name in names):
            return  # after a node of unknown type, such as one with subgraphs
        schema = find_schema(node, self._versions)
        types = {name: self._types[name] for name in names}
        values = {name: self._values[name] for name in names if name in self._values}
        try:
            self._types.update(infer_node(node, schema, types, values, self._opsets, self._model.ir_version))
        except ShapeInferenceError as error:
            if node.op_type in ("If", "Loop", "Scan"):
                return
            raise ShapeInferenceError(f"node '{node.name}': shapes do not fit together: {error}") from error
        if node.op_type == "Reshape":
            self._check_reshape(node)

    def _check_reshape(self, node: onnx.NodeProto) -> None:
        """Check the element counts of a Reshape; inference trusts a constant target."""
        before, after = (known_sizes(self._types[name]) for name in (node.input[0], node.output[0]))
        if before is None or after is None or -1 in before or -1 in after:
            return
        if np.prod(before, dtype=np.int64) != np.prod(after, dtype=np.int64):
            raise ShapeInferenceError(
                f"node '{node.name}' reshapes {list(before)} to {list(after)}: the graph was exported for another shape",
            )

    def _evaluate(self, node: onnx.NodeProto) -> None:
        """Compute the values of a small tensor if all its inputs are known."""
        if node.op_type == "Shape":
            shape = known_sizes(self._types[node.input[0]]) if node.input[0] in self._types else None
            if shape is not None and -1 not in shape and not node.attribute:
                self._note(node.output[0], np.array(shape, np.int64))
            return
        shape = known_sizes(self._types[node.output[0]]) if node.output and node.output[0] in self._types else None
        if shape is None or -1 in shape or np.prod(shape, dtype=np.int64) > _SMALL:
            return
        if not all(name in self._values for name in node.input if name) or node.op_type.startswith("Random"):
            return
        try:
            feeds = {name: numpy_helper.to_array(self._values[name]) for name in node.input if name}
            results = NodeEvaluator(node, self._opsets, self._model.ir_version).run(feeds)
        except Exception:  # values that the reference cannot compute stay unknown
            return
        for name, value in results.items():
            self._note(name, value)

    def _note(self, name: str, value: Array) -> None:
        self._values[name] = numpy_helper.from_array(value, name)
