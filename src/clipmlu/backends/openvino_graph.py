"""Reading an ONNX file into OpenVINO, rewritten where OpenVINO computes another form faster or right."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from clipmlu.backends.batch_first import make_batch_first
from clipmlu.backends.cpu_graphs import runtime_path
from clipmlu.backends.openvino_runtime import import_openvino
from clipmlu.graph.messages import MessageIndex, Model, Node, read_single_file


def read_graph(path: Path, *, quantised: bool = False) -> Any:
    """Read an ONNX file with the ONNX frontend; ``Core.read_model`` would try other frontends if this one fails.

    Args:
        path: the file.
        quantised: whether the graph is in 8 bits; then it is rewritten.

    Returns:
        An ``openvino.Model``.
    """
    frontends = import_openvino().frontend.FrontEndManager()
    frontend = frontends.load_by_framework("onnx")
    location = runtime_path(path)
    graph = frontend.convert(frontend.load((_prepared(path) if quantised else None) or location))
    _separate_reshapes(graph)
    return graph


def _prepared(path: Path) -> io.BytesIO | None:
    """Return an 8-bit graph, rewritten and serialised; None if the weights are in a second file."""
    model = read_single_file(path)
    if model is None:
        return None
    make_batch_first(model)
    quantise_before_reshapes(model)
    return io.BytesIO(model.to_bytes())


def quantise_before_reshapes(model: Model) -> None:
    """Quantise tensors before they are reshaped, where one follows the other; the numbers stay the same.

    OpenVINO joins a quantisation to the operator before it, such as an attention, but not if a Reshape is between them.

    Args:
        model: an 8-bit graph, changed in place.
    """
    index = MessageIndex(model)
    moved: dict[str, Node] = {}  # a dequantised tensor -> the Reshape that follows it now
    for reshape in model.graph.node:
        quantise = index.only_user(reshape.output[0]) if reshape.op_type == "Reshape" else None
        dequantise = index.only_user(quantise.output[0]) if quantise and quantise.op_type == "QuantizeLinear" else None
        if not quantise or not dequantise or index.weights[quantise.input[1]].dims not in ([], [1]):
            continue
        values, whole = dequantise.output[0], f"openvino/{reshape.output[0]}"
        quantise.input[0], dequantise.output[0] = reshape.input[0], whole
        reshape.input[0], reshape.output[0] = whole, values
        moved[whole] = reshape
    later = {reshape.output[0] for reshape in moved.values()}
    nodes = [node for node in model.graph.node if node.output[0] not in later]
    ordered = [each for node in nodes for each in (node, moved.get(node.output[0])) if each is not None]
    del model.graph.node[:]
    model.graph.node.extend(ordered)


def _separate_reshapes(graph: Any) -> None:
    """Put a Maximum with minus infinity, which changes no value, before a Reshape that shares its input, a convolution's result.

    OpenVINO 2026.4.1 moves the scales of an 8-bit convolution behind the operators that follow it. Where one is a Reshape
    and there is another, results were wrong with one scale per channel. Its transformations do not move scales behind a
    Maximum.
    """
    if not any(node.get_type_name() == "FakeQuantize" for node in graph.get_ops()):
        return
    operators = import_openvino().opset13
    for node in graph.get_ops():
        users = list(node.output(0).get_target_inputs()) if node.get_type_name() == "Convolution" else []
        reshaping = [user for user in users if user.get_node().get_type_name() == "Reshape"]
        if reshaping and len(users) > 1:
            separate = operators.maximum(node.output(0), operators.constant(np.float32(-np.inf)))
            for user in reshaping:
                user.replace_source_output(separate.output(0))
