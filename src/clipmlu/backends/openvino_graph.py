"""Reading an ONNX file into OpenVINO, rewritten where OpenVINO computes another form faster or right."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from clipmlu.backends.cpu_graphs import load_single_file, runtime_path
from clipmlu.backends.openvino_runtime import import_openvino


def read_graph(path: Path, *, quantised: bool = False) -> Any:
    """Read an ONNX file with the ONNX frontend; ``Core.read_model`` would try other frontends if this one fails.

    Args:
        path: the file.
        quantised: whether the graph is in 8 bits; then its attention is rewritten, see ``batch_first``.

    Returns:
        An ``openvino.Model``.
    """
    frontends = import_openvino().frontend.FrontEndManager()
    frontend = frontends.load_by_framework("onnx")
    location = runtime_path(path)
    graph = frontend.convert(frontend.load((_batch_first(path) if quantised else None) or location))
    _separate_reshapes(graph)
    return graph


def _batch_first(path: Path) -> io.BytesIO | None:
    """Return a graph with its attention rewritten, serialised; None if the weights are in a second file."""
    from clipmlu.backends.batch_first import make_batch_first

    model = load_single_file(path)
    if model is None:
        return None
    make_batch_first(model)
    return io.BytesIO(model.SerializeToString())


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
