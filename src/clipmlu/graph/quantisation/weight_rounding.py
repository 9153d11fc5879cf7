"""Rounding of weights: replaces float weights by those that a quantiser rounds to chosen integers.

The weights of a linear layer become multiples of their scale. A quantiser that takes the scale from the largest weight, to
the nearest integer, obtains exactly the chosen integers; so every target that does so benefits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from clipmlu.graph.index import GraphIndex, attributes_of
from clipmlu.graph.quantisation.gptq import choose_levels
from clipmlu.graph.quantisation.parameters import Array, for_weights
from clipmlu.graph.quantisation.rewrite import channel_axis
from clipmlu.graph.watch import second_moments
from clipmlu.specs import Granularity
from clipmlu.steps import StartStep, counted, no_steps

_LINEAR = ("MatMul", "Gemm")
_MOMENT_BYTES = 1 << 30  # moments that are held at once; with more of them the data are run several times

Batches = Callable[[], Iterable[Sequence[Array]]]


def round_weights(
    model: onnx.ModelProto,
    batches: Batches,
    *,
    bits: int,
    granularity: Granularity,
    without: Collection[str],
    on_step: StartStep = no_steps,
) -> dict[str, Array]:
    """Choose weights for the inputs of the calibration data, by GPTQ.

    Args:
        model: the lowered graph, with the weights that are to be quantised.
        batches: returns the calibration batches from the first one on, at each call.
        bits: bits of the integers.
        granularity: scales of the weights.
        without: names of operators that are not quantised.
        on_step: shows the layers.

    Returns:
        Maps the name of each weight of a linear layer that only this layer uses to its values after rounding, float32.

    Raises:
        CalibrationError: the data do not fit.
    """
    index = GraphIndex(model)
    layers = [node for node in model.graph.node if node.name not in without and _is_linear(node, index)]
    rounded: dict[str, Array] = {}
    for group in _groups(layers, index):
        with on_step(f"measuring the inputs of {len(group)} layers"):
            moments = second_moments(model, {node.input[0]: _inputs(node, index) for node in group}, batches)
        with on_step("rounding the weights", total=len(group), unit="layers") as step:
            for node in counted(group, step):
                values = _values(node, index)
                rounded[node.input[1]] = _rounded(node, values, moments[node.input[0]], bits, granularity)
    return rounded


def with_weights(model: onnx.ModelProto, values: Mapping[str, Array]) -> onnx.ModelProto:
    """Return a graph with other values of some weights; the graph itself if there are none.

    Args:
        model: the graph; it is not changed.
        values: maps the name of a weight to its new values, float32.
    """
    if not values:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for weight in result.graph.initializer:
        if weight.name in values:
            weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[weight.name]), weight.name))
    return result


def _is_linear(node: onnx.NodeProto, index: GraphIndex) -> bool:
    weight = index.weights.get(node.input[1]) if node.op_type in _LINEAR else None
    return (
        weight is not None
        and len(weight.dims) == 2
        and not index.is_shared(weight.name)
        and not attributes_of(node).get("transA", 0)
        and node.input[0] not in index.weights
    )


def _groups(layers: Sequence[onnx.NodeProto], index: GraphIndex) -> Iterator[list[onnx.NodeProto]]:
    """Divide layers, in order, so that the moments of each group fit in memory."""
    group: list[onnx.NodeProto] = []
    held: dict[str, int] = {}
    for node in layers:
        size = 4 * _inputs(node, index) ** 2
        if group and node.input[0] not in held and sum(held.values()) + size > _MOMENT_BYTES:
            yield group
            group, held = [], {}
        group.append(node)
        held[node.input[0]] = size
    if group:
        yield group


def _values(node: onnx.NodeProto, index: GraphIndex) -> Array:
    return np.asarray(numpy_helper.to_array(index.weights[node.input[1]]), np.float32)


def _inputs(node: onnx.NodeProto, index: GraphIndex) -> int:
    dims = index.weights[node.input[1]].dims
    return int(dims[1 - _output_axis(node, dims)])


def _output_axis(node: onnx.NodeProto, dims: Sequence[int]) -> int:
    axis = channel_axis(node, 1, list(dims))
    assert axis is not None, "a weight of two axes has one of outputs"
    return axis


def _rounded(node: onnx.NodeProto, values: Array, moments: Array, bits: int, granularity: Granularity) -> Array:
    axis = _output_axis(node, values.shape)
    how = for_weights(values, bits, axis if granularity == "per_axis" else None, least_noise=False)
    rows = np.moveaxis(values, axis, 0)
    levels = choose_levels(rows, moments, how.scale.reshape(-1), 2 ** (bits - 1) - 1)
    return how.stored_values(np.moveaxis(levels, 0, axis))
