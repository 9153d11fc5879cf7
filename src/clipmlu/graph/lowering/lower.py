"""``lower_graph`` and ``lower_tower``: rewrite the canonical graph for a target's parser."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

from clipmlu.arguments import check_argument
from clipmlu.errors import CompileError, OptionError
from clipmlu.graph.index import EXTERNAL_DATA_BYTES
from clipmlu.graph.lowering.analysis import analyse_graph, annotate_shapes, dynamic_axes
from clipmlu.graph.lowering.check import check_operators, check_profile
from clipmlu.graph.lowering.convert import convert_node, forget_defaults
from clipmlu.graph.lowering.decompose import decompose_node
from clipmlu.graph.lowering.fold import drop_unused_weights, fold_graph
from clipmlu.graph.lowering.loading import load_graph, name_graph
from clipmlu.graph.lowering.nodes import GraphEditor
from clipmlu.graph.lowering.profile import MAGICMIND, TargetProfile
from clipmlu.specs import PositiveInt

_INLINE_BYTES = 1024  # smaller tensors stay in the graph file, where shape inference needs them
_IR_VERSION = 6  # of onnx 1.6 and 1.7, the first releases with opsets 11 and 12


def lower_graph(
    source: str | os.PathLike[str] | ir.Model | onnx.ModelProto,
    profile: TargetProfile = MAGICMIND,
    *,
    batch: Mapping[str, int] | None = None,
) -> ir.Model:
    """Lower a canonical graph to a target's profile.

    Args:
        source: the graph, or the path of its file; it is not changed.
        profile: the profile of the target.
        batch: maps a dynamic axis to a fixed size; other axes stay dynamic. None: all stay dynamic.

    Returns:
        A graph of the profile's opset. Nodes of a decomposition are named ``<node>/<operator>``, tensors keep their
            names,
        and all shapes are written; sizes that depend on the batch are expressions of it (``2*batch``).

    Raises:
        OptionError: ``batch`` names an axis that the graph does not have, or a size below 1.
        CompileError: a node cannot be expressed in the profile; the message gives the node, its block and its operator.
            Or the graph cannot be read or is invalid; the message gives the file.
    """
    model = load_graph(source)
    batch = dict(batch or {})
    _check_batch(model.graph, batch)
    try:
        _lower(model, batch, profile)
    except CompileError as error:
        raise type(error)(f"{name_graph(source)} cannot be lowered: {error}") from error
    return model


def lower_proto(source: str | os.PathLike[str]) -> onnx.ModelProto:
    """Return a graph that ``lower_graph`` lowered for the vendor's parser, as a protobuf message."""
    return ir.to_proto(lower_graph(source))


def _lower(model: ir.Model, batch: Mapping[str, int], profile: TargetProfile) -> None:
    _fold(model, batch)
    _convert(model.graph, model.opset_imports[""], profile.opset)
    model.opset_imports.clear()
    model.opset_imports[""] = profile.opset
    model.ir_version = _IR_VERSION
    check_operators(model.graph, profile)  # first, since this opset's shape inference may lack such operators
    analysis = analyse_graph(model)
    annotate_shapes(model.graph, analysis)
    check_profile(model, profile)


def lower_tower(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    profile: TargetProfile = MAGICMIND,
    *,
    batch: Mapping[str, int] | None = None,
    external_data_bytes: int = EXTERNAL_DATA_BYTES,
) -> ir.Model:
    """Lower a graph file and write the result; equal input gives equal bytes.

    Args:
        source: the canonical graph's file.
        destination: the file to write; weights that do not fit go to ``<destination>.data``.
        profile: the profile of the target.
        batch: as in ``lower_graph``.
        external_data_bytes: largest size in bytes of weights that stay in the file itself.

    Returns:
        The graph, with the shapes of all tensors; the file has those of inputs and outputs only, as in files of torch
            1.7.

    Raises:
        OptionError, CompileError: as for ``lower_graph``.
    """
    model = lower_graph(source, profile, batch=batch)
    path = Path(destination)
    written = _without_inner_shapes(model)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if size <= external_data_bytes:
        ir.save(written, path)
    else:
        ir.save(written, path, external_data=f"{path.name}.data", size_threshold_bytes=_INLINE_BYTES)
    return model


def _without_inner_shapes(model: ir.Model) -> ir.Model:
    """Return a copy without shapes of inner tensors; how the vendor's parser handles expressions there is unknown."""
    copy = model.clone()
    for node in copy.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = value.type = None
    return copy


def _check_batch(graph: ir.Graph, batch: Mapping[str, int]) -> None:
    known = dynamic_axes(graph)
    for axis, size in batch.items():
        if axis not in known:
            names = ", ".join(f"'{each}'" for each in known) or "none"
            raise OptionError(f"the graph has no dynamic axis '{axis}'; it has: {names}")
        check_argument(size, PositiveInt, f"the size of '{axis}'")


def _fold(model: ir.Model, batch: Mapping[str, int]) -> None:
    """Set the static sizes, then fold until nothing changes; two rounds are enough for torch's graphs."""
    for value in model.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape([_static(size, batch) for size in value.shape])
    for _ in range(2):
        analysis = analyse_graph(model)
        annotate_shapes(model.graph, analysis)
        fold_graph(model.graph, analysis, GraphEditor(model.graph))


def _static(size: int | ir.SymbolicDim, batch: Mapping[str, int]) -> int | ir.SymbolicDim:
    return size if isinstance(size, int) else batch.get(str(size.value), size)


def _convert(graph: ir.Graph, source_opset: int, opset: int) -> None:
    editor = GraphEditor(graph)
    for node in list(graph):
        if not decompose_node(node, editor):
            convert_node(node, editor)
            forget_defaults(node, source_opset, opset)
    drop_unused_weights(graph)
