"""The complete check of a graph that this program did not write.

ONNX's checker and its shape inference run on the graph without its weights, which is fast for any size; ``wellformed``
compares the weights' sizes with their declared shapes.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import helper

from clipmlu.graph.wellformed import (
    check_group_norms,
    check_texts,
    check_wellformed,
    is_group_norm,
)

_LARGE_BYTES = 1024  # larger weights determine no shape
_LONGEST_REASON = 400
_UNCHECKED = "clipmlu.unchecked"


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
        raise ValueError(first_cause(error)) from error
    except (ValueError, TypeError) as error:  # raised by onnx-ir for unknown types
        raise ValueError(" ".join(str(error).split())) from error
    try:
        check_group_norms(proto)
        onnx.checker.check_model(slim, full_check=True)
    except Exception as error:  # the library raises many types
        raise ValueError(first_cause(error)) from error


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


def first_cause(error: BaseException) -> str:
    """Return the message of an error's first cause, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return f"'{error.filename}': {error.strerror}"
    return " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
