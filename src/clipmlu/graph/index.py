"""Producers and consumers of a graph's tensors, and attributes of its nodes; writing a graph to a file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

EXTERNAL_DATA_BYTES = 1_900_000_000
"""A graph with more bytes of weights stores them in a second file: protobuf limits a file to 2 GiB."""


class GraphIndex:
    """An index of the nodes and tensors of one graph, which must not change meanwhile.

    Attributes:
        weights: maps a name to the initializer.
        producers: maps a tensor to the node that produces it.
        consumers: maps a tensor to the nodes that use it, with the index of the input.
        nodes: maps a name to the node.
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
        """Return whether several inputs use the same weight."""
        return len(self.consumers[weight]) > 1

    def only_user(self, name: str) -> onnx.NodeProto | None:
        """Return the node that uses a tensor, if nothing else does and the tensor is no output of the graph."""
        users = self.consumers[name]
        return users[0][0] if len(users) == 1 and name not in self.outputs else None


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Map each attribute name to its value."""
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def used_nodes(nodes: Sequence[onnx.NodeProto], outputs: Collection[str]) -> list[onnx.NodeProto]:
    """Return the nodes that the outputs depend on."""
    used, kept = set(outputs), []
    for node in reversed(nodes):
        if used.intersection(node.output):
            used.update(node.input)
            kept.append(node)
    return kept[::-1]


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph; weights that do not fit into one file go to ``<path>.data``."""
    large = sum(len(weight.raw_data) for weight in model.graph.initializer) > EXTERNAL_DATA_BYTES
    if large:
        onnx.save(model, str(path), save_as_external_data=True, location=f"{path.name}.data")
    else:
        onnx.save(model, str(path))
