"""Reading a graph for lowering, with full checks first, so that the passes can rely on a valid graph."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from clipmlu.errors import CompileError, reason_of
from clipmlu.graph.validation import check_proto, first_cause


def load_graph(source: str | os.PathLike[str] | ir.Model | onnx.ModelProto) -> ir.Model:
    """Read a graph, inline its functions, and name all nodes.

    Args:
        source: the graph, or the path of its file; it is not changed. Graphs of onnx-ir are assumed to be valid.

    Raises:
        CompileError: the file cannot be read, or the graph is invalid.
    """
    if isinstance(source, ir.Model):
        model = source.clone()
    elif isinstance(source, onnx.ModelProto):
        model = _checked(source, name_graph(source), None)
    else:
        model = _checked(_read(source), name_graph(source), Path(source).parent)
    if model.functions:
        model = InlinePass()(model).model
    for number, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}_{number}"
    return model


def name_graph(source: str | os.PathLike[str] | ir.Model | onnx.ModelProto) -> str:
    """Return the graph's name for messages."""
    return f"The graph '{os.fspath(source)}'" if isinstance(source, (str, os.PathLike)) else "The graph"


def damaged(what: str, reason: str) -> CompileError:
    """Return the error for an invalid graph."""
    return CompileError(f"{what} is damaged: {reason.rstrip('.')}. Export the model again, as a new bundle.")


def _read(path: str | os.PathLike[str]) -> onnx.ModelProto:
    try:
        return onnx.load(os.fspath(path), load_external_data=False)
    except Exception as error:  # protobuf raises several types
        raise CompileError(
            f"Cannot read the graph '{os.fspath(path)}': {reason_of(error)}. Export the model again."
        ) from error


def _checked(proto: onnx.ModelProto, what: str, folder: Path | None) -> ir.Model:
    try:
        check_proto(proto, folder)
    except ValueError as error:
        raise damaged(what, str(error)) from error
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # the library raises many types
        raise damaged(what, first_cause(error)) from error
    if "" not in model.opset_imports:
        raise damaged(what, "it does not state its opset")
    if folder is not None:
        ir.external_data.set_base_dir(model.graph, folder)
    return model
