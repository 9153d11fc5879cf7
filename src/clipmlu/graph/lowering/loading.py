"""Reading a graph for lowering, with full checks first, so that the passes can rely on a valid graph.

ONNX's checker and its shape inference run on the graph without its weights, which is fast for any size; ``wellformed``
compares the weights' sizes with their declared shapes.
"""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import helper
from onnx_ir.passes.common import InlinePass

from clipmlu.errors import CompileError, reason_of
from clipmlu.graph.lowering.wellformed import (
    check_group_norms,
    check_texts,
    check_wellformed,
    is_group_norm,
)

_LARGE_BYTES = 1024  # larger weights determine no shape
_LONGEST_REASON = 400
_UNCHECKED = "clipmlu.unchecked"


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
        raise damaged(what, _reason(error)) from error
    if "" not in model.opset_imports:
        raise damaged(what, "it does not state its opset")
    if folder is not None:
        ir.external_data.set_base_dir(model.graph, folder)
    return model


def check_proto(proto: onnx.ModelProto, folder: Path | None) -> None:
    """Check a graph completely, without reading external weights.

    Args:
        proto: the graph.
        folder: folder of its external weights; None for a graph in memory.

    Raises:
        ValueError: it is invalid; the message says why in one line.
    """
    try:
        check_wellformed(proto, folder)
        slim = _without_weights(proto)
        check_texts(slim)
    except OSError as error:
        raise ValueError(_reason(error)) from error
    except (ValueError, TypeError) as error:  # raised by onnx-ir for unknown types
        raise ValueError(" ".join(str(error).split())) from error
    try:
        check_group_norms(proto)
        onnx.checker.check_model(slim, full_check=True)
    except Exception as error:  # the library raises many types
        raise ValueError(_reason(error)) from error


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with every large weight as an input, so that a check is fast for every model size."""
    copy = onnx.ModelProto(ir_version=proto.ir_version)
    copy.opset_import.extend(proto.opset_import)
    copy.functions.extend(proto.functions)
    copy.metadata_props.extend(proto.metadata_props)
    for text in ("producer_name", "producer_version", "domain", "doc_string"):
        setattr(copy, text, getattr(proto, text))
    copy.graph.name = proto.graph.name
    copy.graph.node.extend(proto.graph.node)
    copy.opset_import.add(domain=_UNCHECKED, version=1)
    for node in copy.graph.node:
        if is_group_norm(node):
            node.domain = _UNCHECKED  # the checker rejects it as deprecated at opset 18, but it is decomposed later
    copy.graph.input.extend(proto.graph.input)
    copy.graph.output.extend(value for value in proto.graph.output if value.HasField("type"))  # others declare nothing
    copy.graph.value_info.extend(proto.graph.value_info)
    inputs = {value.name for value in proto.graph.input}
    for tensor in proto.graph.initializer:
        if not tensor.external_data and tensor.ByteSize() <= _LARGE_BYTES:
            copy.graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            copy.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return copy


def _reason(error: BaseException) -> str:
    """Return the message of the first cause, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return f"'{error.filename}': {error.strerror}"
    return " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
