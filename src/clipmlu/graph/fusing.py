"""Joining two towers to the fused graph of the vendor's sample: images and texts in, scaled similarities out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from clipmlu.errors import CompileError
from clipmlu.specs import TEXT_AXIS

IMAGE_AXIS = "image_batch"
"""Name of the image axis of the fused graph, as an export with the joint layout names it."""

_PREFIX = "logits/"


def fuse_towers(
    image: onnx.ModelProto, text: onnx.ModelProto, logit_scale: float, logit_bias: float | None
) -> onnx.ModelProto:
    """Return one graph with both towers, which gives the logits that an export with the joint layout gives.

    Args:
        image: takes pixels, gives embeddings of unit length; its nodes and tensors get the prefix ``image/``.
        text: takes token ids, gives embeddings of unit length; likewise ``text/``.
        logit_scale: factor of the cosine similarities.
        logit_bias: added to the scaled similarities, or None.

    Returns:
        A graph with the inputs of both, and the outputs ``logits_per_image`` and ``logits_per_text``.

    Raises:
        CompileError: the towers have different opsets.
    """
    if list(image.opset_import) != list(text.opset_import):
        raise CompileError(
            "The towers have different opsets and cannot be joined to one graph. Export the model again."
        )
    fused = onnx.ModelProto(ir_version=max(image.ir_version, text.ir_version), producer_name=image.producer_name)
    fused.opset_import.extend(image.opset_import)
    fused.graph.name = "joint"
    images = _append(fused.graph, image.graph, "image/", IMAGE_AXIS)
    texts = _append(fused.graph, text.graph, "text/", TEXT_AXIS)
    _append_logits(fused.graph, images, texts, logit_scale, logit_bias)
    for name, axes in (("logits_per_image", (IMAGE_AXIS, TEXT_AXIS)), ("logits_per_text", (TEXT_AXIS, IMAGE_AXIS))):
        fused.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, axes))
    return fused


def _append(graph: onnx.GraphProto, source: onnx.GraphProto, prefix: str, axis: str) -> str:
    """Copy a tower's nodes and weights under a prefix, and its inputs under their names; return the name of its result."""
    inputs = {value.name for value in source.input}

    def renamed(name: str) -> str:
        return name if not name or name in inputs else f"{prefix}{name}"

    for node in source.node:
        copy = graph.node.add()
        copy.CopyFrom(node)
        copy.name = renamed(node.name)
        copy.input[:] = map(renamed, node.input)
        copy.output[:] = map(renamed, node.output)
    for weight in source.initializer:
        initializer = graph.initializer.add()
        initializer.CopyFrom(weight)
        initializer.name = renamed(weight.name)
    for value in source.input:
        given = graph.input.add()
        given.CopyFrom(value)
        given.type.tensor_type.shape.dim[0].dim_param = axis
    return renamed(source.output[0].name)


def _append_logits(graph: onnx.GraphProto, images: str, texts: str, scale: float, bias: float | None) -> None:
    numbers = {"scale": scale} if bias is None else {"scale": scale, "bias": bias}
    for name, number in numbers.items():
        graph.initializer.append(numpy_helper.from_array(np.asarray(number, np.float32), f"{_PREFIX}{name}"))
    products = "logits_per_image" if bias is None else f"{_PREFIX}products"
    _add(graph, "Mul", [images, f"{_PREFIX}scale"], f"{_PREFIX}scaled")
    _add(graph, "Transpose", [texts], f"{_PREFIX}turned", perm=[1, 0])
    _add(graph, "MatMul", [f"{_PREFIX}scaled", f"{_PREFIX}turned"], products)
    if bias is not None:
        _add(graph, "Add", [products, f"{_PREFIX}bias"], "logits_per_image")
    _add(graph, "Transpose", ["logits_per_image"], "logits_per_text", perm=[1, 0])


def _add(graph: onnx.GraphProto, op_type: str, inputs: list[str], output: str, **attributes: Any) -> None:
    name = output if output.startswith(_PREFIX) else f"{_PREFIX}{output}"
    graph.node.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
