"""Smoothing: moves outliers of activations into the weights of the next layer, without changing float results.

A channel of the activations is divided by a factor and the matching weights are multiplied by it. The division needs no
operation if it can be folded into the producer of the channel: the affine part of a LayerNorm, or the value projection
of an attention. After the nonlinearity of an MLP it is a Mul. Source of the method and of the formula for the factors: G. Xiao et al., "SmoothQuant: Accurate and
Efficient Post-Training Quantization for Large Language Models", 2022, equation 4. The float graph changes, so a card's
own quantiser benefits too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from clipmlu.graph.index import GraphIndex
from clipmlu.graph.quantisation.parameters import Array, Floats
from clipmlu.graph.quantisation.sites import Share, Site

_LEAST, _MOST = 1e-4, 1e4  # bounds of a factor: beyond them a channel has practically no effect


def choose_factors(
    model: onnx.ModelProto, sites: Sequence[Site], maxima: Mapping[str, Array], alpha: Mapping[str, float]
) -> dict[str, Floats]:
    """Choose the factors that balance the ranges of activations and weights.

    Args:
        model: the graph.
        sites: the tensors to smooth.
        maxima: maps the source of each site to the largest magnitude of each channel.
        alpha: maps a role to its strength, 0..1: 1 gives all channels of the activations equal ranges, 0 skips the
            site.

    Returns:
        Maps each tensor to its factors, float32, shape (channels,).
    """
    weights = {weight.name: weight for weight in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    factors = {}
    for site in sites:
        strength = alpha.get(site.role, 0.0)
        if not strength:
            continue
        facing = np.zeros(site.channels)
        for share in site.multiplied:
            values = numpy_helper.to_array(weights[nodes[share.node].input[share.position]])
            rows = np.abs(np.moveaxis(values, share.axis, 0)).reshape(values.shape[share.axis], -1).max(axis=1)
            np.maximum.at(facing, share.channels, rows)
        seen = np.asarray(maxima[site.source], np.float64)
        alive = (seen > 0) & (facing > 0)
        powers = np.where(alive, seen, 1.0) ** strength / np.where(alive, facing, 1.0) ** (1.0 - strength)
        chosen = np.where(alive, np.clip(powers, _LEAST, _MOST), 1.0)
        factors[site.tensor] = np.asarray(chosen if site.divided else _exact_in_half(chosen), np.float32)
    return factors


def _exact_in_half(factors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the nearest factors whose inverses, the weights of a Mul, a mode with binary16 does not round."""
    return 1.0 / (1.0 / factors).astype(np.float16).astype(np.float64)


def smooth_graph(
    model: onnx.ModelProto, sites: Sequence[Site], factors: Mapping[str, Sequence[float] | Floats]
) -> onnx.ModelProto:
    """Apply factors to a graph: change weights, and add a Mul where no weight can take the division.

    Args:
        model: the graph; it is not changed.
        sites: sites of this graph.
        factors: maps the tensor of a site to its factors; sites without factors are not changed.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    editor = _WeightEditor(result)
    for site in sites:
        if site.tensor in factors:
            values = np.asarray(factors[site.tensor], np.float32)
            for share in site.divided:
                editor.scale(share, 1.0 / values.astype(np.float64))
            for share in site.multiplied:
                editor.scale(share, values.astype(np.float64))
    editor.finish()
    for site in sites:
        if site.tensor in factors and site.tensor != site.source:
            _add_division(result.graph, site, np.asarray(factors[site.tensor], np.float32))
    return result


def _add_division(graph: onnx.GraphProto, site: Site, factors: Floats) -> None:
    """Divide the channels of a tensor by factors; only the site's operators use the result."""
    weight = f"{site.tensor}:factors"
    graph.initializer.append(numpy_helper.from_array(1 / factors, weight))
    nodes = list(graph.node)
    for node in nodes:
        node.input[:] = [site.tensor if name == site.source else name for name in node.input]
    (producer,) = [position for position, node in enumerate(nodes) if site.source in node.output]
    graph.node.insert(producer + 1, helper.make_node("Mul", [site.source, weight], [site.tensor], name=site.tensor))


class _WeightEditor:
    """Changes weights, in float64 until the end; a weight that several inputs share is copied first."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._index = GraphIndex(model)
        self._values: dict[str, npt.NDArray[np.float64]] = {}

    def scale(self, share: Share, factors: npt.NDArray[np.float64]) -> None:
        node = self._index.nodes[share.node]
        name = self._own(node, share.position)
        values = self._values[name]
        shape = [1] * values.ndim
        shape[share.axis] = -1
        spread = np.where(share.channels >= 0, factors[share.channels], 1.0)
        self._values[name] = values * spread.reshape(shape)

    def finish(self) -> None:
        kept = [weight for weight in self._model.graph.initializer if weight.name not in self._values]
        made = [numpy_helper.from_array(values.astype(np.float32), name) for name, values in self._values.items()]
        self._model.graph.ClearField("initializer")
        self._model.graph.initializer.extend([*kept, *made])

    def _own(self, node: onnx.NodeProto, position: int) -> str:
        name = str(node.input[position])
        if name in self._values:
            return name
        values = numpy_helper.to_array(self._index.weights[name]).astype(np.float64)
        if self._index.is_shared(name):
            name = f"{node.name}:smoothed_{position}"
            node.input[position] = name
        self._values[name] = values
        return name
