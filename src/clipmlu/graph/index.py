"""A graph from all sides: what makes each tensor, what takes it, and what shape it has."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

EXTERNAL_DATA_BYTES = 1_900_000_000
"""A graph with more bytes of weights keeps them beside it: protobuf cannot hold more than 2 GiB in one file."""

_SMALL_BYTES = 1024


class GraphIndex:
    """Looks up the nodes and tensors of one graph; the graph must not change meanwhile.

    Attributes:
        weights: initializer by name.
        producers: tensor -> the node that makes it.
        consumers: tensor -> nodes that take it, with the index of the input.
        nodes: node by name.
        outputs: names of the graph's outputs.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.weights: dict[str, onnx.TensorProto] = {weight.name: weight for weight in graph.initializer}
        self.producers: dict[str, onnx.NodeProto] = {}
        self.consumers: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
        self.nodes: dict[str, onnx.NodeProto] = {node.name: node for node in graph.node}
        self.outputs = frozenset(value.name for value in graph.output)
        for node in graph.node:
            for name in node.output:
                self.producers[name] = node
            for position, name in enumerate(node.input):
                self.consumers[name].append((node, position))

    def is_shared(self, weight: str) -> bool:
        """Whether several inputs take the same weight."""
        return len(self.consumers[weight]) > 1


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with the shapes of its large weights and without their values, which are never copied.

    For shape inference only, which has a limit of 2 GiB.
    """
    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph, source = bare.graph, model.graph
    graph.name = source.name
    graph.node.extend(source.node)
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    graph.value_info.extend(source.value_info)
    for weight in source.initializer:
        if len(weight.raw_data) <= _SMALL_BYTES:
            graph.initializer.append(weight)
        else:
            graph.initializer.add(name=weight.name, dims=weight.dims, data_type=weight.data_type)
    return bare


def infer_values(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Type and shape of every tensor but the weights, as far as ONNX can tell."""
    inferred = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    return {value.name: value for value in (*inferred.value_info, *inferred.input, *inferred.output)}


def infer_element_types(model: onnx.ModelProto) -> dict[str, int]:
    """ONNX element type of every tensor but the weights."""
    return {name: value.type.tensor_type.elem_type for name, value in infer_values(model).items()}


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Attribute name -> value."""
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph; weights that do not fit into one file go to ``<path>.data``."""
    large = sum(len(weight.raw_data) for weight in model.graph.initializer) > EXTERNAL_DATA_BYTES
    if large:
        onnx.save(model, str(path), save_as_external_data=True, location=f"{path.name}.data")
    else:
        onnx.save(model, str(path))
