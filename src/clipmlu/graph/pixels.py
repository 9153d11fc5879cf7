"""Normalisation of uint8 pixels in the graph: inserting the nodes, and removing them again.

The nodes divide, subtract and divide in float32 and in the order of ``Preprocessor.normalise``, so that the first
layer's input is bit-identical to that from pixels normalised before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from clipmlu.bundle.manifest import Tower
from clipmlu.specs import PreprocessSpec, TensorSpec

if TYPE_CHECKING:
    import onnx

PIXELS = "pixel_values"
"""Name of the image input of every graph, as in Optimum and transformers."""

NORMALISATION_KEY = "insert_bn_before_firstnode"
"""SDK key for uint8 input with normalisation: (x - mean) / sqrt(var) for each channel (api 3)."""

_CHAIN = ("Cast", "Div", "Sub", "Div")
_PREFIX = "uint8_input/"


def takes_uint8(tower: Tower) -> bool:
    """Return whether a graph takes uint8 pixels and normalises them itself."""
    return any(tensor.name == PIXELS and tensor.dtype == "uint8" for tensor in tower.inputs)


def with_uint8_pixels(tower: Tower) -> Tower:
    """Return the same graph with uint8 pixels."""
    return _with_pixels(tower, "uint8")


def with_float_pixels(tower: Tower) -> Tower:
    """Return the same graph with float32 pixels."""
    return _with_pixels(tower, "float32")


def mean_and_variance(spec: PreprocessSpec) -> tuple[list[float], list[float]]:
    """Return the SDK's normalisation: mean and variance of each channel, of pixels in 0..255."""
    return [255 * mean for mean in spec.mean], [(255 * std) ** 2 for std in spec.std]


def insert_normalisation(model: onnx.ModelProto, spec: PreprocessSpec) -> None:
    """Change a graph that takes normalised pixels to take uint8 pixels and normalise them first.

    The operators and their arguments are the same in all opsets from 7 on.

    Args:
        model: the graph, changed in place; its input keeps the name ``pixel_values`` and its shape.
        spec: mean and standard deviation.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    prefix = _free_prefix(graph)
    constants = {
        "Div": np.float32(255),
        "Sub": _per_channel(spec.mean),
        "Div_1": _per_channel(spec.std),
    }
    made = [f"{prefix}{part}" for part in ("Cast", *constants)]
    nodes = [helper.make_node("Cast", [PIXELS], [made[0]], name=made[0], to=TensorProto.FLOAT)]
    for (part, values), op_type, given, result in zip(constants.items(), _CHAIN[1:], made[:-1], made[1:], strict=True):
        constant = f"{prefix}{part}:constant"
        graph.initializer.append(numpy_helper.from_array(np.asarray(values), constant))
        nodes.append(helper.make_node(op_type, [given, constant], [result], name=result))
    _rename_uses(graph.node, PIXELS, made[-1])
    body = list(graph.node)
    graph.ClearField("node")
    graph.node.extend([*nodes, *body])
    _set_type(graph, TensorProto.UINT8)


def remove_normalisation(model: onnx.ModelProto) -> None:
    """Undo ``insert_normalisation``, in place.

    Raises:
        ValueError: the graph does not begin with these nodes.
    """
    from onnx import TensorProto

    graph = model.graph
    chain = list(graph.node[: len(_CHAIN)])
    if tuple(node.op_type for node in chain) != _CHAIN or list(chain[0].input) != [PIXELS]:
        raise ValueError(f"The graph does not begin by normalising '{PIXELS}'.")
    constants = {name for node in chain[1:] for name in node.input[1:]}
    kept = [weight for weight in graph.initializer if weight.name not in constants]
    body = list(graph.node[len(_CHAIN) :])
    _rename_uses(body, chain[-1].output[0], PIXELS)
    graph.ClearField("node")
    graph.node.extend(body)
    graph.ClearField("initializer")
    graph.initializer.extend(kept)
    _set_type(graph, TensorProto.FLOAT)


def _with_pixels(tower: Tower, dtype: str) -> Tower:
    inputs = [
        TensorSpec(name=tensor.name, dtype=dtype, shape=tensor.shape) if tensor.name == PIXELS else tensor
        for tensor in tower.inputs
    ]
    return msgspec.structs.replace(tower, inputs=tuple(inputs))


def _per_channel(values: Iterable[float]) -> npt.NDArray[np.float32]:
    return np.asarray(tuple(values), np.float32).reshape(1, 3, 1, 1)


def _free_prefix(graph: onnx.GraphProto) -> str:
    """Return a prefix that no name of the graph has."""
    names = {name for node in graph.node for name in (node.name, *node.input, *node.output)}
    names.update(weight.name for weight in graph.initializer)
    prefix = _PREFIX
    while any(name.startswith(prefix) for name in names):
        prefix = f"{prefix[:-1]}_/"
    return prefix


def _rename_uses(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        for position, name in enumerate(node.input):
            if name == old:
                node.input[position] = new


def _set_type(graph: onnx.GraphProto, element_type: int) -> None:
    for value in [*graph.input, *graph.value_info]:
        if value.name == PIXELS:
            value.type.tensor_type.elem_type = element_type
