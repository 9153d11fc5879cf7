"""Shapes of every tensor of an ONNX graph, from its inputs on.

``onnx.shape_inference`` alone does not do it: for the operators of opset 11 it does not follow computed Reshape targets
(Shape, Gather, Concat, Reshape), which is how the exporters of that time wrote them. Here one pass in the graph's order
infers node by node and computes what small tensors hold on the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.defs
import onnx.reference
import onnx.shape_inference
from onnx import helper, numpy_helper

Array = npt.NDArray[np.generic]
Shape = tuple[int, ...]
Shapes = dict[str, tuple[Shape | None, int]]
"""Tensor name -> shape (-1 for an unknown axis, None for an unknown rank) and ONNX element type."""

_SMALL = 1024
"""Elements up to which a tensor's values are followed."""


class ShapeInferenceError(ValueError):
    """The shapes contradict one another."""


class UnknownOperatorError(ValueError):
    """The operator is in none of the imported operator sets."""


def set_shape(value: onnx.ValueInfoProto, sizes: Sequence[int]) -> None:
    """Give a graph input a shape; -1 leaves an axis free."""
    shape = value.type.tensor_type.shape
    shape.Clear()
    shape.SetInParent()
    for size in sizes:
        dim = shape.dim.add()
        if size >= 0:
            dim.dim_value = size


def get_shape(value: onnx.ValueInfoProto) -> Shape | None:
    """The declared shape."""
    return _type_shape(value.type)


def without_weights(graph: bytes) -> onnx.ModelProto:
    """A model that keeps the shapes of its large weights and forgets their values; for ``infer_shapes`` only."""
    model = onnx.ModelProto()
    model.ParseFromString(graph)
    for weight in model.graph.initializer:
        if np.prod(weight.dims, dtype=np.int64) > _SMALL:
            for field in ("raw_data", "float_data", "int32_data", "int64_data"):
                weight.ClearField(field)
    return model


def infer_shapes(model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]] | None = None) -> Shapes:
    """Infer all shapes, whatever the file declares for inner tensors and outputs.

    Args:
        model: the model; it is not changed.
        inputs: input name -> shape to assume instead of the declared one.

    Raises:
        ShapeInferenceError: the shapes contradict one another, as in a graph that was exported for another batch size.
        UnknownOperatorError: there is an operator that nobody knows.
    """
    return _Inference(model, inputs or {}).run()


class _Inference:
    def __init__(self, model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]]) -> None:
        self._model = model
        self._opsets = list(model.opset_import)
        self._versions = {entry.domain: entry.version for entry in model.opset_import}
        self._types: dict[str, onnx.TypeProto] = {}
        self._values: dict[str, onnx.TensorProto] = {}
        for value in model.graph.input:
            declared = onnx.ValueInfoProto()
            declared.CopyFrom(value)
            if value.name in inputs:
                set_shape(declared, inputs[value.name])
            self._types[value.name] = declared.type
        for weight in model.graph.initializer:
            self._types[weight.name] = helper.make_tensor_type_proto(weight.data_type, list(weight.dims))
            if np.prod(weight.dims, dtype=np.int64) <= _SMALL:
                self._values[weight.name] = weight

    def run(self) -> Shapes:
        for node in self._model.graph.node:
            self._infer(node)
            self._evaluate(node)
        return {name: (_type_shape(kind), kind.tensor_type.elem_type) for name, kind in self._types.items()}

    def _infer(self, node: onnx.NodeProto) -> None:
        if node.domain == "com.microsoft":  # quantise and come back: the shape stays, and inference knows neither
            self._types[node.output[0]] = self._types[node.input[0]]
            return
        names = [name for name in node.input if name]
        if any(name not in self._types for name in names):
            return  # behind something whose type cannot be known, such as a node with subgraphs
        try:
            schema = onnx.defs.get_schema(node.op_type, self._versions[node.domain], node.domain)
            found = onnx.shape_inference.infer_node_outputs(
                schema,
                node,
                {name: self._types[name] for name in names},
                {name: self._values[name] for name in names if name in self._values},
                opset_imports=self._opsets,
                ir_version=self._model.ir_version,
            )
        except onnx.shape_inference.InferenceError as error:
            if node.op_type in ("If", "Loop", "Scan"):
                return
            raise ShapeInferenceError(f"node '{node.name}': shapes do not fit together: {_one_line(error)}") from error
        except (KeyError, onnx.defs.SchemaError) as error:
            raise UnknownOperatorError(f"node '{node.name}': unknown operator {node.op_type}") from error
        self._types.update(found)
        if node.op_type == "Reshape":
            self._check_reshape(node)

    def _check_reshape(self, node: onnx.NodeProto) -> None:
        """Inference believes a constant target; the element counts must agree too."""
        before, after = (_type_shape(self._types[name]) for name in (node.input[0], node.output[0]))
        if before is None or after is None or -1 in before or -1 in after:
            return
        if np.prod(before, dtype=np.int64) != np.prod(after, dtype=np.int64):
            raise ShapeInferenceError(
                f"node '{node.name}' reshapes {list(before)} to {list(after)}: the graph was exported for another shape",
            )

    def _evaluate(self, node: onnx.NodeProto) -> None:
        """Note what a small tensor holds, when all that it is computed from is known."""
        if node.op_type == "Shape":
            shape = _type_shape(self._types[node.input[0]]) if node.input[0] in self._types else None
            if shape is not None and -1 not in shape and not node.attribute:
                self._note(node.output[0], np.array(shape, np.int64))
            return
        shape = _type_shape(self._types[node.output[0]]) if node.output and node.output[0] in self._types else None
        if shape is None or -1 in shape or np.prod(shape, dtype=np.int64) > _SMALL:
            return
        if not all(name in self._values for name in node.input if name) or node.op_type.startswith("Random"):
            return
        try:
            values = self._compute(node)
        except Exception:  # whatever the reference cannot compute is not followed; the runtime will
            return
        for name, value in zip(node.output, values, strict=True):
            if name:
                self._note(name, np.asarray(value))

    def _compute(self, node: onnx.NodeProto) -> list[Any]:
        names = [name for name in dict.fromkeys(node.input) if name]
        graph = helper.make_graph(
            [node],
            "small",
            [onnx.ValueInfoProto(name=name) for name in names],
            [onnx.ValueInfoProto(name=name) for name in node.output if name],
        )
        small = helper.make_model(graph, opset_imports=self._opsets, ir_version=self._model.ir_version)
        feeds = {name: numpy_helper.to_array(self._values[name]) for name in names}
        results = iter(onnx.reference.ReferenceEvaluator(small).run(None, feeds))
        return [next(results) if name else None for name in node.output]

    def _note(self, name: str, value: Array) -> None:
        self._values[name] = numpy_helper.from_array(value, name)


def _type_shape(kind: onnx.TypeProto) -> Shape | None:
    tensor = kind.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
