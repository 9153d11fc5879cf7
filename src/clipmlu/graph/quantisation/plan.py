"""How a graph is rewritten: precision of every node, and how tensors are quantised."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import onnx


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeTypes:
    """Types of one node's inputs and outputs by index: ``float16``, ``float32``, ``qint8`` or ``qint16``."""

    inputs: Mapping[int, str] = dataclasses.field(default_factory=dict)
    outputs: Mapping[int, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a rewriting.

    Attributes:
        half: operators that are not quantised use binary16.
        bits: bits of the quantised operators, or None.
        per_axis: weights have one scale per output channel.
        centred: activations are quantised symmetrically.
        least_noise: weights are clipped for the least noise.
        ranges: maps a tensor to the (smallest, largest) value of quantised activations; the empty name stands for all
            others.
        node_types: maps a node to the types set for it explicitly.
        exact_nodes: names of nodes whose results are not rounded because they compute nothing, such as the conversion
            of an output.
        integer_kernels: write the form for which a runtime uses integer kernels for matrix products: weights stay
            integers before a DequantizeLinear, and Gemm becomes MatMul and Add.
    """

    half: bool = False
    bits: int | None = None
    per_axis: bool = False
    centred: bool = True
    least_noise: bool = False
    ranges: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    node_types: dict[str, NodeTypes] = dataclasses.field(default_factory=dict)
    exact_nodes: frozenset[str] = frozenset()
    integer_kernels: bool = False


def uniform_types(node: onnx.NodeProto, dtype: str) -> NodeTypes:
    """Return the same type for all inputs and outputs of a node."""
    return NodeTypes(
        inputs=dict.fromkeys(range(len(node.input)), dtype), outputs=dict.fromkeys(range(len(node.output)), dtype)
    )
