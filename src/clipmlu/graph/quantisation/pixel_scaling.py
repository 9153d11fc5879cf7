"""Scaling of normalised pixels to the grid of their 8-bit values, so that asymmetric quantisation in 8 bits is exact.

Normalisation divides each colour by its own standard deviation, so one scale cannot represent the 256 values of all three
colours. A Mul and an Add before the first convolution undo the division and leave ``(value - zero point) / 255``; the
convolution's weights and bias take the inverse, so float results are equal.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from clipmlu.graph.index import GraphIndex, attributes_of
from clipmlu.graph.pixels import PIXELS
from clipmlu.graph.quantisation.parameters import Array
from clipmlu.graph.roles import Operator
from clipmlu.specs import PixelScaling, PreprocessSpec

_SCALED = f"{PIXELS}/scaled"


def choose_scaling(
    model: onnx.ModelProto, operators: Sequence[Operator], preprocess: PreprocessSpec, *, in_float: Collection[str]
) -> PixelScaling | None:
    """Return the scaling of a graph's pixels, or None if no quantised convolution can take the inverse.

    Args:
        model: a lowered graph.
        operators: its operators.
        preprocess: mean and standard deviation of the pixels.
        in_float: names of operators that are not quantised.
    """
    node = _first_convolution(model)
    if node is None or node.name in in_float or node.name not in {operator.node for operator in operators}:
        return None
    zero_point = np.rint(255 * np.mean(preprocess.mean))  # the same for all colours: a range of 256 values
    red, green, blue = (float(mean - zero_point / 255) for mean in preprocess.mean)
    return PixelScaling(scale=preprocess.std, shift=(red, green, blue))


def scale_pixels(model: onnx.ModelProto, scaling: PixelScaling | None) -> onnx.ModelProto:
    """Apply a scaling to a graph.

    Args:
        model: a lowered graph; it is not changed.
        scaling: result of ``choose_scaling`` for this graph; None changes nothing.
    """
    if scaling is None:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    node = _first_convolution(result)
    assert node is not None, "a graph with a scaling has such a convolution"
    scale, shift = (np.asarray(values, np.float64).reshape(1, 3, 1, 1) for values in (scaling.scale, scaling.shift))
    _scale_convolution(result.graph, node, scale, shift)
    factors, offsets, product = (f"{_SCALED}:{part}" for part in ("scale", "shift", "product"))
    for name, values in ((factors, scale), (offsets, shift)):
        result.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    result.graph.node.insert(0, helper.make_node("Add", [product, offsets], [_SCALED], name=_SCALED))
    result.graph.node.insert(0, helper.make_node("Mul", [PIXELS, factors], [product], name=product))
    return result


def _first_convolution(model: onnx.ModelProto) -> onnx.NodeProto | None:
    """Return the convolution of the pixels if it pads nothing and has weights of its own, else None."""
    index = GraphIndex(model)
    for node, position in index.consumers[PIXELS]:
        attributes = attributes_of(node)
        plain = node.op_type == "Conv" and position == 0 and attributes.get("group", 1) == 1
        padded = any(attributes.get("pads", ())) or attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
        weights = [name for name in node.input[1:] if name]
        own = all(name in index.weights and not index.is_shared(name) for name in weights)
        if plain and not padded and own and list(index.weights[weights[0]].dims[1:2]) == [3]:
            return node
    return None


def _scale_convolution(graph: onnx.GraphProto, node: onnx.NodeProto, scale: Array, shift: Array) -> None:
    """Make a convolution of pixels one of scaled pixels with the same result."""
    weights = {weight.name: weight for weight in graph.initializer}
    kernel = numpy_helper.to_array(weights[node.input[1]]).astype(np.float64) / scale
    bias = -(kernel * shift).sum(axis=(1, 2, 3))
    weights[node.input[1]].CopyFrom(numpy_helper.from_array(kernel.astype(np.float32), node.input[1]))
    if len(node.input) > 2 and node.input[2]:
        bias += numpy_helper.to_array(weights[node.input[2]])
        weights[node.input[2]].CopyFrom(numpy_helper.from_array(bias.astype(np.float32), node.input[2]))
    else:
        node.input[:] = [*node.input[:2], f"{_SCALED}:bias"]
        graph.initializer.append(numpy_helper.from_array(bias.astype(np.float32), node.input[2]))
    node.input[0] = _SCALED
