"""The nodes of a graph and their connections; its quantisable operators and their multiply-accumulates.

The *stream* of a graph is every tensor that is computed from pixels or from looked-up embeddings. Masks, latent queries
and columns of zeros do not belong to it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from clipmlu.errors import CompileError
from clipmlu.graph.operators import QUANTISED

if TYPE_CHECKING:
    import onnx


def macs_by_input(model: onnx.ModelProto) -> dict[str, int]:
    """Return the multiply-accumulates for one row of each input, without products of two inputs.

    Args:
        model: a lowered graph, of one tower or of both; it is not changed.

    Raises:
        CompileError: a required shape cannot be inferred.
    """
    graph = OperatorGraph(model)
    found = {value.name: 0 for value in graph.inputs}
    for index in graph.operators:
        takes = graph.inputs_of(index)
        if len(takes) == 1:
            found[takes[0].name] += graph.macs(index)
    return found


class OperatorGraph:
    """The nodes of a graph, numbered in its order, and their connections.

    Attributes:
        nodes: the nodes.
        operators: numbers of the nodes that the ``qintN`` modes quantise.
        inputs: inputs of the graph except weights.
        predecessors: for each node, the nodes that produce its inputs.
        successors: for each node, the nodes that use its results.
        streams: for each node, the inputs of the graph that its result depends on, as bits; 0 if the result is outside
            the stream.
        alive: for each node, whether an output of the graph depends on it.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.operators = [index for index, node in enumerate(self.nodes) if node.op_type in QUANTISED]
        self._weights = {weight.name: weight for weight in model.graph.initializer}
        self.inputs = [value for value in model.graph.input if value.name not in self._weights]
        self._shapes = _shapes_for_one_row(model)
        self.predecessors: list[list[int]] = []
        self.successors: list[list[int]] = [[] for _ in self.nodes]
        self.streams: list[int] = []
        self._producers: dict[str, int] = {}
        self._connect()
        results = {value.name for value in model.graph.output}
        self.alive = [not results.isdisjoint(node.output) for node in self.nodes]
        for index in reversed(range(len(self.nodes))):
            self.alive[index] |= any(self.alive[successor] for successor in self.successors[index])

    def is_operator(self, index: int) -> bool:
        """Return whether the ``qintN`` modes quantise it."""
        return self.nodes[index].op_type in QUANTISED

    def is_weighted(self, index: int) -> bool:
        """Return whether it is an operator with weights, not a product of two activations."""
        return self.is_operator(index) and len(self.activations(index)) < len(self._operands(index))

    def is_convolution(self, index: int) -> bool:
        """Return whether it is a convolution, transposed or not."""
        return self.nodes[index].op_type in ("Conv", "ConvTranspose")

    def is_pointwise(self, index: int) -> bool:
        """Return whether it is a linear layer, possibly written as a convolution of 1 x 1."""
        if not self.is_convolution(index):
            return self.is_weighted(index)
        kernel = self.shape(self.nodes[index].input[1])[2:]
        return self.is_weighted(index) and math.prod(kernel) == 1 and _attribute(self.nodes[index], "group", 1) == 1

    def is_lookup(self, index: int) -> bool:
        """Return whether it looks up embeddings."""
        from onnx import TensorProto

        node = self.nodes[index]
        table = self._weights.get(node.input[0]) if node.op_type == "Gather" else None
        return table is not None and table.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)

    def activations(self, index: int) -> tuple[str, ...]:
        """Return the inputs that an operator multiplies, without weights."""
        return tuple(name for name in self._operands(index) if name not in self._weights)

    def is_stream(self, name: str) -> bool:
        """Return whether a tensor belongs to the stream."""
        return name in self._producers and self.streams[self._producers[name]] > 0

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, for a batch of 1 if it is dynamic.

        Raises:
            CompileError: the shape cannot be inferred.
        """
        if name in self._weights:
            return tuple(self._weights[name].dims)
        if name not in self._shapes:
            raise CompileError(f"the shape of tensor '{name}' cannot be inferred; expected a graph that was lowered")
        return self._shapes[name]

    def macs(self, index: int) -> int:
        """Return the multiply-accumulates of an operator, for one row of a static batch."""
        node = self.nodes[index]
        first, second = (self.shape(name) for name in self._operands(index))
        result = self.shape(node.output[0])
        if node.op_type == "ConvTranspose":
            total = math.prod(first) * math.prod(second[1:])
        elif node.op_type == "Conv":
            total = math.prod(result) * math.prod(second[1:])
        else:
            total = math.prod(result) * first[0 if node.op_type == "Gemm" and _attribute(node, "transA", 0) else -1]
        rows = self._rows(index)
        return total if total % rows else total // rows

    def towers(self) -> Iterator[list[int]]:
        """Yield the nodes of each tower; nodes that use the streams of two towers form another one."""
        towers: dict[int, list[int]] = {}
        for index, stream in enumerate(self.streams):
            if stream and self.alive[index]:
                towers.setdefault(stream, []).append(index)
        yield from towers.values()

    def nearest(self, index: int, links: Sequence[Sequence[int]], barriers: Collection[int]) -> set[int]:
        """Return the first operators on all paths from a node along ``links``; paths end at ``barriers``."""
        found: set[int] = set()
        seen, waiting = {index}, [index]
        while waiting:
            for node in links[waiting.pop()]:
                if node in seen or node in barriers:
                    continue
                seen.add(node)
                if self.is_operator(node):
                    found.add(node)
                else:
                    waiting.append(node)
        return found

    def _operands(self, index: int) -> tuple[str, ...]:
        node = self.nodes[index]
        return tuple(node.input[operand] for operand in QUANTISED[node.op_type])

    def _connect(self) -> None:
        origins = {value.name: 1 << number for number, value in enumerate(self.inputs)}  # streams of all tensors
        for index, node in enumerate(self.nodes):
            taken = () if self._depends_on_shape_only(node) else node.input
            names = [name for name in taken if name and name not in self._weights]
            predecessors = list(dict.fromkeys(self._producers[name] for name in names if name in self._producers))
            origin = _union(origins.get(name, 0) for name in names)
            starts = self.is_weighted(index) or self.is_lookup(index)
            self.predecessors.append(predecessors)
            self.streams.append(
                _union(self.streams[predecessor] for predecessor in predecessors) or (origin if starts else 0)
            )
            for predecessor in predecessors:
                self.successors[predecessor].append(index)
            self._producers.update(dict.fromkeys(node.output, index))
            origins.update(dict.fromkeys(node.output, origin))

    def _depends_on_shape_only(self, node: onnx.NodeProto) -> bool:
        """Return whether its result depends only on its input's shape, such as lowering's columns of zeros."""
        from onnx import numpy_helper

        small = [self._weights[name] for name in node.input if name in self._weights] if node.op_type == "Mul" else []
        zero = any(math.prod(weight.dims) == 1 and not numpy_helper.to_array(weight).any() for weight in small)
        return zero or node.op_type in ("Shape", "Size")

    def inputs_of(self, index: int) -> list[onnx.ValueInfoProto]:
        """Return the inputs of an operator's stream."""
        stream = self.streams[index] or _union(
            self.streams[successor] for successor in self.nearest(index, self.successors, ())
        )
        return [value for number, value in enumerate(self.inputs) if stream >> number & 1]

    def _rows(self, index: int) -> int:
        """Return the batch size of the graph at an operator."""
        return math.prod(self.shape(value.name)[0] for value in self.inputs_of(index))


def _shapes_for_one_row(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors that can be inferred, for a batch of 1 if it is dynamic.

    Raises:
        CompileError: the shapes contradict each other, or an operator is unknown.
    """
    from clipmlu.graph.shapes import infer_shapes

    found = infer_shapes(model, free_size=1)
    return {name: each.shape for name, each in found.items() if each.shape is not None and -1 not in each.shape}


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def _union(sets: Iterable[int]) -> int:
    union = 0
    for bits in sets:
        union |= bits
    return union
