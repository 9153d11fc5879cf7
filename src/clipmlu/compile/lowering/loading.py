"""Reading a graph for lowering: it is checked in full first, so that the passes may trust what they find.

ONNX's checker and its shape inference look at the graph without its weights, which keeps them fast at any size; the sizes of
the weights are compared here, with what the graph says of their shapes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import helper
from onnx_ir.passes.common import InlinePass

from clipmlu.errors import CompileError, reason_of

_LARGE_BYTES = 1024  # weights above that decide no shape
_LONGEST_REASON = 400
_UNCHECKED = "clipmlu.unchecked"


def load_graph(source: str | os.PathLike[str] | ir.Model | onnx.ModelProto) -> ir.Model:
    """Read a graph, without functions, and with a name for each node.

    Args:
        source: the graph, or the path of its file; it is not changed. Graphs of onnx-ir were checked when they were made.

    Raises:
        CompileError: the file cannot be read, or the graph contradicts itself.
    """
    if isinstance(source, ir.Model):
        model = source.clone()
    elif isinstance(source, onnx.ModelProto):
        model = _checked(source, "The graph", None)
    else:
        model = _checked(_read(source), f"The graph '{os.fspath(source)}'", Path(source).parent)
    if model.functions:
        model = InlinePass()(model).model
    for number, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}_{number}"
    return model


def damaged(what: str, reason: str) -> CompileError:
    """The error of a graph that contradicts itself."""
    return CompileError(f"{what} is damaged: {reason.rstrip('.')}. Export the model again, as a new bundle.")


def _read(path: str | os.PathLike[str]) -> onnx.ModelProto:
    try:
        return onnx.load(os.fspath(path), load_external_data=False)
    except Exception as error:  # protobuf has several of its own
        raise CompileError(
            f"Cannot read the graph '{os.fspath(path)}': {reason_of(error)}. Export the model again."
        ) from error


def _checked(proto: onnx.ModelProto, what: str, folder: Path | None) -> ir.Model:
    try:
        for tensor in _tensors(proto):
            _check_weight(tensor, folder)
        _check_outputs(proto.graph)
    except (ValueError, TypeError, OSError) as error:  # onnx-ir has the first two for types that do not exist
        raise damaged(what, _reason(error)) from error
    try:
        onnx.checker.check_model(_without_weights(proto), full_check=True)
        model = ir.from_proto(proto)
    except Exception as error:  # each check of the two libraries has an exception of its own
        raise damaged(what, _reason(error)) from error
    if "" not in model.opset_imports:
        raise damaged(what, "it does not say of which opset it is")
    if folder is not None:
        ir.external_data.set_base_dir(model.graph, folder)
    return model


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """The weights, and the constants of the nodes."""
    yield from proto.graph.initializer
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t


def _check_weight(tensor: onnx.TensorProto, folder: Path | None) -> None:
    """Check that a weight has as many values as its shape says.

    Raises:
        ValueError, TypeError: it has not, or is of no type that there is.
        OSError: the file that has the values cannot be asked.
    """
    dims = tuple(tensor.dims)
    if any(size < 0 for size in dims):
        raise ValueError(f"the weight '{tensor.name}' has the shape {dims}")
    if tensor.data_type == onnx.TensorProto.STRING:
        return
    expected = -(-math.prod(dims) * ir.DataType(tensor.data_type).bitwidth // 8)
    if not tensor.external_data and not tensor.HasField("raw_data"):
        ir.serde.deserialize_tensor(tensor).numpy()  # raises ValueError where the counts differ
        return
    found = _external_bytes(tensor, folder, expected) if tensor.external_data else len(tensor.raw_data)
    if found != expected:
        raise ValueError(f"the weight '{tensor.name}' has {found:,} bytes; its shape {dims} needs {expected:,}")


def _check_outputs(graph: onnx.GraphProto) -> None:
    """Check that something makes each output, which ONNX's checker does not ask.

    Raises:
        ValueError: nothing does.
    """
    made = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    made.update(name for node in graph.node for name in node.output)
    for value in graph.output:
        if value.name not in made:
            raise ValueError(f"nothing makes the output '{value.name}'")


def _external_bytes(tensor: onnx.TensorProto, folder: Path | None, expected: int) -> int:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    length = int(entries.get("length", expected))
    if folder is None:
        return length
    size: int = (folder / entries.get("location", "")).stat().st_size
    return min(length, size - int(entries.get("offset", 0)))


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every large weight is an input, so that a check costs the same for every size of model."""
    copy = onnx.ModelProto(ir_version=proto.ir_version)
    copy.opset_import.extend(proto.opset_import)
    copy.functions.extend(proto.functions)
    copy.graph.name = proto.graph.name
    copy.graph.node.extend(proto.graph.node)
    copy.opset_import.add(domain=_UNCHECKED, version=1)
    for node in copy.graph.node:
        if node.op_type == "GroupNormalization" and not node.domain:
            node.domain = (
                _UNCHECKED  # the checker refuses that of opset 18 as deprecated; it is taken apart all the same
            )
    copy.graph.input.extend(proto.graph.input)
    copy.graph.output.extend(value for value in proto.graph.output if value.HasField("type"))  # the rest says nothing
    copy.graph.value_info.extend(proto.graph.value_info)
    inputs = {value.name for value in proto.graph.input}
    for tensor in proto.graph.initializer:
        if not tensor.external_data and tensor.ByteSize() <= _LARGE_BYTES:
            copy.graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            copy.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return copy


def _reason(error: BaseException) -> str:
    """The message of the first cause, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return f"'{error.filename}': {error.strerror}"
    return " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
