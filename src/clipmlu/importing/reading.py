"""Reading a stranger's ONNX file: bounded, without leaving its directory, and checked before anything uses it."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import onnx
from onnx import AttributeProto, TensorProto

from clipmlu.errors import ExportError, reason_of
from clipmlu.export.filetypes import describe_file
from clipmlu.files.read import open_regular, read_small_file
from clipmlu.graph.validation import check_proto
from clipmlu.graph.wellformed import weight_bytes

MAX_VALUES = 8 << 30
"""Largest number of all weights of a file, 32 GiB in float32: more than any dual encoder has."""

OLDEST_OPSET = 10
"""The opset of the vendor's CLIP sample, and of torch 1.3 to 1.7 in their default settings or the next one."""

_MAX_FILE_BYTES = (2 << 30) - 1  # protobuf's own limit
_NATIVE = ("", "ai.onnx")
_QUANTISED = ("QLinear", "Dequantize", "Quantize", "DynamicQuantize", "MatMulInteger", "ConvInteger")
_HEAD_BYTES = 1024
_MOST_NODES = 1_000_000
_ADVICE = "Get the file again, or export the model again in the program that wrote it."


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphFile:
    """An ONNX file that was read and checked.

    Attributes:
        path: the file.
        data_files: its files of external weights.
        model: its content with inlined functions and all weights in memory; weights are no inputs.
    """

    path: Path
    data_files: tuple[Path, ...]
    model: onnx.ModelProto

    def __str__(self) -> str:
        return f"The graph '{self.path}'"


def read_graph(path: Path) -> GraphFile:
    """Read an ONNX file with all its weights, and check it.

    Args:
        path: the file; external weights must be in its directory.

    Raises:
        ExportError: the file cannot be read, is damaged, or has content that no tower needs; the message names the node.
    """
    model = _parse(path)
    where = f"The graph '{path}'"
    _refuse_broken_text(model, where)
    opset = opset_of(model)
    if opset < OLDEST_OPSET:
        raise ExportError(
            f"{where} has opset {opset or 'none'}; expected {OLDEST_OPSET} or a later one. Export it again."
        )
    _refuse_content(model, where)
    if model.functions:
        model = _inlined(model, where)
    _refuse_nodes(model, where)
    _refuse_weights_of_others(model, where, path)
    try:
        check_proto(model, path.parent)
    except ValueError as error:
        raise ExportError(f"{where} is damaged: {str(error).rstrip('.')}. {_ADVICE}") from error
    _use_short_domain(model)
    locations = dict.fromkeys(location for _, location in _external(model))
    _load_weights(model, path)
    weights = {weight.name for weight in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    model.graph.ClearField("input")
    model.graph.input.extend(inputs)
    return GraphFile(path=path, data_files=tuple(path.parent / name for name in locations), model=model)


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators, or 0 if the file does not state it."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in _NATIVE), 0)


def describe(node: onnx.NodeProto) -> str:
    """Return a node's name and operator for messages."""
    name = node.name or (node.output[0] if node.output else "")
    domain = "" if node.domain in _NATIVE else f"{node.domain}."
    return f"node '{name}' (operator {domain}{node.op_type})"


def _parse(path: Path) -> onnx.ModelProto:
    try:
        content = read_small_file(path, _MAX_FILE_BYTES)
    except OSError as error:
        raise ExportError(f"Cannot read the graph '{path}': {reason_of(error)}.") from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
        parsed = bool(model.graph.node)
    except Exception:  # protobuf raises several types
        parsed = False
    if not parsed:
        reason = describe_file(content[:_HEAD_BYTES]) or f"it is no ONNX graph, or is not complete. {_ADVICE}"
        raise ExportError(f"Cannot read the graph '{path}': {reason}")
    return model


def _refuse_broken_text(model: onnx.ModelProto, where: str) -> None:
    """Refuse names that are no UTF-8 text, which protobuf gives as bytes."""
    graph = model.graph
    texts: list[object] = [entry.domain for entry in model.opset_import]
    texts += [each.name for each in [*graph.input, *graph.output, *graph.initializer]]
    for node in itertools.chain(graph.node, *(function.node for function in model.functions)):
        texts += [node.name, node.op_type, node.domain, *node.input, *node.output]
        texts += [attribute.name for attribute in node.attribute]
    for tensor in _tensors(model):
        texts += [text for entry in tensor.external_data for text in (entry.key, entry.value)]
    broken = next((text for text in texts if not isinstance(text, str)), None)
    if broken is not None:
        raise ExportError(f"{where} is damaged: the name {broken!r} is no UTF-8 text. {_ADVICE}")


def _refuse_content(model: onnx.ModelProto, where: str) -> None:
    if model.training_info:
        raise ExportError(f"{where} is a training graph. Export the model for inference.")
    if model.graph.sparse_initializer:
        raise ExportError(f"{where} has sparse weights, which are not supported. Export it with dense ones.")


def _inlined(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    from onnx.inliner import inline_local_functions

    if _count_nodes(model) > _MOST_NODES:
        raise ExportError(
            f"{where} has functions that stand for more than {_MOST_NODES:,} nodes. Do not use this file."
        )
    try:
        return inline_local_functions(model)
    except Exception as error:  # the library's native code raises several types
        raise ExportError(
            f"The functions of {where[0].lower()}{where[1:]} cannot be inlined: {reason_of(error)}."
        ) from error


def _count_nodes(model: onnx.ModelProto) -> int:
    """Return the number of nodes after inlining, or more than ``_MOST_NODES``; functions that call each other may multiply it."""
    functions = {(each.domain, each.name): each for each in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    begun: set[tuple[str, str]] = set()
    waiting = list(functions)
    while waiting:
        name = waiting[-1]
        called = [(node.domain, node.op_type) for node in functions[name].node]
        unknown = {each for each in called if each in functions and each not in sizes}
        if unknown and name in begun:  # it calls itself
            return _MOST_NODES + 1
        if unknown:
            begun.add(name)
            waiting.extend(unknown)
        else:
            sizes[name] = min(sum(sizes.get(each, 1) for each in called), _MOST_NODES + 1)
            waiting.pop()
    return sum(sizes.get((node.domain, node.op_type), 1) for node in model.graph.node)


def _refuse_nodes(model: onnx.ModelProto, where: str) -> None:
    for node in model.graph.node:
        if node.domain not in _NATIVE:
            raise ExportError(
                f"{where} has the {describe(node)} of the domain '{node.domain}', which only some runtimes have. "
                "Export the model with ONNX's own operators, without optimisations for a runtime."
            )
        if any(each.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for each in node.attribute):
            raise ExportError(f"{where} has the {describe(node)}, which is control flow. Export the model without it.")
        if any(each.type in (AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS) for each in node.attribute):
            raise ExportError(f"{where} has the {describe(node)} with sparse values. Export it with dense ones.")
        if node.op_type.startswith(_QUANTISED):
            raise ExportError(
                f"{where} is quantised: it has the {describe(node)}. Give the file with float weights; "
                "clipmlu compile quantises it for a target."
            )


def _use_short_domain(model: onnx.ModelProto) -> None:
    """Replace the long name of ONNX's own domain by the usual empty one, in place."""
    for each in [*model.graph.node, *model.opset_import]:
        each.domain = "" if each.domain in _NATIVE else each.domain
    others = [entry for entry in model.opset_import if entry.domain]
    version = opset_of(model)
    del model.opset_import[:]
    model.opset_import.extend([onnx.OperatorSetIdProto(domain="", version=version), *others])


def _external(model: onnx.ModelProto) -> Iterator[tuple[TensorProto, str]]:
    """Yield each external weight with its location."""
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            yield tensor, next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors


def _refuse_weights_of_others(model: onnx.ModelProto, where: str, path: Path) -> None:
    """Refuse external weights outside the file's directory, and too many of them.

    A link is followed if it leads to the directory itself, or to that of the graph's own target: huggingface_hub's cache
    consists of links to files side by side.
    """
    homes = [path.parent.resolve(), path.resolve().parent]
    for tensor, location in _external(model):
        if not _is_inside(location) or not any(
            (path.parent / location).resolve().is_relative_to(home) for home in homes
        ):
            raise ExportError(
                f"{where} takes the weight '{tensor.name}' from '{location}', which is not in its directory. Do not use this file."
            )
    values = sum(math.prod(max(size, 0) for size in tensor.dims) for tensor in _tensors(model))
    if values > MAX_VALUES:
        raise ExportError(f"{where} has {values:,} values of weights; expected {MAX_VALUES:,} at most.")


def _is_inside(location: str) -> bool:
    relative = PurePosixPath(location)
    lexically = bool(relative.parts) and not relative.is_absolute() and ".." not in relative.parts
    return lexically and "\\" not in location and "\0" not in location


def _load_weights(model: onnx.ModelProto, path: Path) -> None:
    """Read the external weights into the model; their offsets and sizes were checked."""
    for tensor, location in list(_external(model)):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        try:
            with open_regular(path.parent / location) as stream:
                stream.seek(int(entries.get("offset", 0)))
                tensor.raw_data = stream.read(weight_bytes(tensor))  # a file may go on, and need not state the length
        except OSError as error:
            raise ExportError(
                f"Cannot read '{path.parent / location}', the weights of '{path}': {reason_of(error)}."
            ) from error
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
