"""Look-ups in a graph: what makes each tensor, what takes it, attributes of a node; and how a graph is written to a file."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

EXTERNAL_DATA_BYTES = 1_900_000_000
"""A graph with more bytes of weights keeps them beside it: protobuf cannot hold more than 2 GiB in one file."""


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
