"""Producers and consumers of a graph's tensors, and attributes of its nodes; writing a graph to a file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:  # onnx is imported on use: the graph of a compiled bundle has an index without it
    import onnx

EXTERNAL_DATA_BYTES = 1_900_000_000
"""A graph with more bytes of weights stores them in a second file: protobuf limits a file to 2 GiB."""


class _Named(Protocol):
    @property
    def name(self) -> str: ...


class _AnyNode(_Named, Protocol):
    @property
    def input(self) -> Sequence[str]: ...

    @property
    def output(self) -> Sequence[str]: ...


NodeT = TypeVar("NodeT", bound=_AnyNode)
WeightT = TypeVar("WeightT", bound=_Named)


class Index(Generic[NodeT, WeightT]):
    """An index of the nodes and tensors of one graph, which must not change meanwhile.

    Attributes:
        weights: maps a name to the initializer.
        producers: maps a tensor to the node that produces it.
        consumers: maps a tensor to the nodes that use it, with the index of the input.
        nodes: maps a name to the node.
        outputs: names of the graph's outputs.
    """

    def __init__(self, nodes: Iterable[NodeT], weights: Iterable[WeightT], outputs: Iterable[str]) -> None:
        self.weights: dict[str, WeightT] = {weight.name: weight for weight in weights}
        self.producers: dict[str, NodeT] = {}
        self.consumers: dict[str, list[tuple[NodeT, int]]] = defaultdict(list)
        self.nodes: dict[str, NodeT] = {}
        self.outputs = frozenset(outputs)
        for node in nodes:
            self.nodes[node.name] = node
            for name in node.output:
                self.producers[name] = node
            for position, name in enumerate(node.input):
                self.consumers[name].append((node, position))

    def is_shared(self, weight: str) -> bool:
        """Return whether several inputs use the same weight."""
        return len(self.consumers[weight]) > 1

    def only_user(self, name: str) -> NodeT | None:
        """Return the node that uses a tensor, if nothing else does and the tensor is no output of the graph."""
        users = self.consumers[name]
        return users[0][0] if len(users) == 1 and name not in self.outputs else None


class GraphIndex(Index["onnx.NodeProto", "onnx.TensorProto"]):
    """An index of the nodes and tensors of a graph of the package onnx."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        super().__init__(graph.node, graph.initializer, (value.name for value in graph.output))


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Map each attribute name to its value."""
    from onnx import helper

    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def used_nodes(nodes: Sequence[NodeT], outputs: Collection[str]) -> list[NodeT]:
    """Return the nodes that the outputs depend on."""
    used, kept = set(outputs), []
    for node in reversed(nodes):
        if used.intersection(node.output):
            used.update(node.input)
            kept.append(node)
    return kept[::-1]


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph; weights that do not fit into one file go to ``<path>.data``."""
    import onnx

    large = sum(len(weight.raw_data) for weight in model.graph.initializer) > EXTERNAL_DATA_BYTES
    if large:
        onnx.save(model, str(path), save_as_external_data=True, location=f"{path.name}.data")
    else:
        onnx.save(model, str(path))
