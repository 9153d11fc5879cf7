"""Graphs with readable inner tensors, and the selection of tensors to compare.

Tensors keep the names of the lowered graph in every mode, so two graphs of one model are compared name by name. They
run on the CPU without any fusing, in float32 kernels: in a mode that quantises the values are those of the integers,
but sums that a kernel computes in integers are computed in float32 here, and may differ in the last digits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.bundle.manifest import Tower
from clipmlu.data.feeds import Array
from clipmlu.data.preprocess import Preprocessor
from clipmlu.errors import BundleCorruptError, CalibrationError, SessionError
from clipmlu.files.publish import scratch_directory
from clipmlu.graph.index import GraphIndex, save_model
from clipmlu.graph.operators import QUANTISED
from clipmlu.graph.pixels import remove_normalisation, takes_uint8, with_float_pixels
from clipmlu.graph.quantisation.derived import clipped, unclipped
from clipmlu.graph.quantisation.pixel_scaling import scale_pixels
from clipmlu.graph.quantisation.sites import find_sites
from clipmlu.graph.quantisation.smoothing import smooth_graph
from clipmlu.graph.quantisation.undo import quantised_values, restore_structure
from clipmlu.graph.roles import Operator, find_operators
from clipmlu.graph.shapes import infer_shapes
from clipmlu.graph.watch import WatchingSession
from clipmlu.magicmind.emulator.container import read_container
from clipmlu.magicmind.emulator.status import StatusError
from clipmlu.measure.compare.sides import EMULATED
from clipmlu.measure.compare.watched import Kind, Watched
from clipmlu.specs import GraphQuantisation, Precision, PreprocessSpec, TensorQuantisation, TowerName


class TensorGraph:
    """One tower of a bundle, as a graph with readable tensors.

    Attributes:
        model: the graph that runs.
        lowered: the float graph if it is ``model``; None if that was rewritten for a mode.
        record: the quantisation.
        pixels: normalisation of uint8 pixels for a graph that takes floats; None for token ids.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        *,
        lowered: onnx.ModelProto | None,
        tower: Tower,
        record: GraphQuantisation,
        pixels: PreprocessSpec | None = None,
    ) -> None:
        self.model = model
        self.lowered = lowered
        self.record = record
        self.pixels = pixels
        self._tower = tower

    @functools.cached_property
    def structure(self) -> onnx.ModelProto:
        """The lowered graph's nodes and names; weights may be missing."""
        return self.lowered if self.lowered is not None else restore_structure(self.model, self._tower)

    @functools.cached_property
    def tensors(self) -> Mapping[str, str]:
        """Maps a lowered tensor to the tensor of ``model`` that holds its values, rounded as the mode does."""
        return quantised_values(self.model)

    def quantisation(self, tensor: str) -> TensorQuantisation | None:
        """Return the quantisation of a tensor as an operator's input, with or without a Clip, or None."""
        return self.record.tensors.get(tensor) or self.record.tensors.get(clipped(tensor))

    def smoothed_like(self, other: TensorGraph) -> TensorGraph:
        """Return the float graph smoothed like another one, so that all tensors correspond; itself if it is rewritten."""
        factors, scaling = other.record.smoothing, other.record.pixel_scaling
        if self.lowered is None or not (factors or scaling):
            return self
        sites = find_sites(self.lowered, find_operators(self.lowered))
        model = scale_pixels(smooth_graph(self.lowered, sites, factors), scaling)
        record = GraphQuantisation(smoothing=factors, pixel_scaling=scaling, macs=0, quantised_macs=0)
        return TensorGraph(model, lowered=model, tower=self._tower, record=record, pixels=self.pixels)

    def watch(self, names: Sequence[str], threads: int = 0) -> TensorWatcher:
        """Open the graph with the named tensors as its outputs.

        Raises:
            SessionError: the runtime cannot load it.
        """
        return TensorWatcher(self, names, threads)


class TensorWatcher:
    """Runs a graph and returns the values of some of its tensors."""

    def __init__(self, graph: TensorGraph, names: Sequence[str], threads: int) -> None:
        kinds = [value.type.tensor_type.elem_type for value in graph.model.graph.input]
        self._preprocess = None if graph.pixels is None else Preprocessor(graph.pixels)
        self._dtypes = [helper.tensor_dtype_to_np_dtype(kind) for kind in kinds]
        added = [
            (helper.make_node("Identity", [graph.tensors[name]], [f"watched_{number}"]), TensorProto.FLOAT)
            for number, name in enumerate(names)
        ]
        try:
            self._session = WatchingSession(graph.model, added, {}, threads=threads)
        except CalibrationError as error:
            raise SessionError(f"The intermediate tensors cannot be read: {error}") from error

    def run(self, rows: Array) -> list[Array]:
        """Return the values of the tensors for one batch.

        Args:
            rows: token ids, or pixels: uint8, shape (N, 3, H, W), which are normalised for a graph that takes floats.

        Raises:
            SessionError: running the graph fails.
        """
        (dtype,) = self._dtypes
        if self._preprocess is not None and rows.dtype == np.uint8 and dtype != np.uint8:
            rows = self._preprocess.normalise_batch(rows.astype(np.uint8, copy=False))
        try:
            return self._session.run([rows.astype(dtype)])
        except CalibrationError as error:
            raise SessionError(f"The intermediate tensors cannot be read: {error}") from error


def tensor_graph(bundle: ExportedBundle | CompiledBundle, tower: TowerName, rows: int | None = None) -> TensorGraph:
    """Return a tower with readable inner tensors; see ``sides.hidden_reason``.

    Args:
        bundle: the bundle.
        tower: name of the tower.
        rows: fixed batch size for a dynamic float graph, equal to that of the other side; None leaves it dynamic.

    Raises:
        BundleCorruptError: its file cannot be read.
        CompileError: its graph cannot be lowered.
    """
    record = GraphQuantisation(macs=0, quantised_macs=0)
    given = bundle.tower(tower)
    spec = with_float_pixels(given)
    pixels = bundle.manifest.preprocess if tower == "image" else None
    path = bundle.tower_path(tower)
    if isinstance(bundle, CompiledBundle):
        placement = bundle.compilation.placement(tower)
        record = bundle.compilation.quantised.get(tower, record)
        if placement.backend == EMULATED:
            return TensorGraph(_read_emulated(path), lowered=None, tower=spec, record=record, pixels=pixels)
        if placement.precision is not Precision.FORCE_FLOAT32:
            model = onnx.load(str(path))
            if takes_uint8(given):
                remove_normalisation(model)
            return TensorGraph(model, lowered=None, tower=spec, record=record, pixels=pixels)
    lowered = lowered_model(path, given, rows)
    return TensorGraph(lowered, lowered=lowered, tower=spec, record=record, pixels=pixels)


def lowered_model(path: Path, tower: Tower, rows: int | None = None) -> onnx.ModelProto:
    """Lower a canonical graph as in a compilation, without the nodes that normalise uint8 pixels.

    Args:
        path: its file.
        tower: its inputs and outputs.
        rows: size of its dynamic axes; None leaves them dynamic.

    Raises:
        CompileError: it cannot be lowered.
    """
    from clipmlu.graph.lowering import MAGICMIND, lower_tower

    axes = {size for tensor in tower.inputs for size in tensor.shape if isinstance(size, str)}
    with scratch_directory() as folder:
        target = folder / "lowered.onnx"
        if takes_uint8(tower):
            model = onnx.load(str(path))
            remove_normalisation(model)
            path = folder / "float.onnx"
            save_model(model, path)
        lower_tower(path, target, MAGICMIND, batch=None if rows is None else dict.fromkeys(axes, rows))
        return onnx.load(str(target))


def choose_watched(structure: onnx.ModelProto, operators: Sequence[Operator]) -> list[Watched]:
    """Return the tensors to compare: around every operator, after residual additions, and the outputs, in graph order.

    Args:
        structure: a lowered graph.
        operators: its operators, from ``find_operators``.
    """
    index = GraphIndex(structure)
    shapes = infer_shapes(structure)
    producers = {operator.output: operator for operator in operators}
    consumers: dict[str, Operator] = {}
    for operator in operators:
        for name in operator.inputs:
            consumers.setdefault(unclipped(name), operator)
    found: list[Watched] = []
    last: Operator | None = None  # the previous operator
    given = [value.name for value in structure.graph.input]
    for name in [*given, *(name for node in structure.graph.node for name in node.output)]:
        kind: Kind | None = None
        about = producers.get(name) or consumers.get(name)
        tensor = shapes.get(name)
        if name in producers:
            kind, last = "operator", producers[name]
        elif name in consumers:
            kind = "input"
        elif name in index.outputs:
            kind = "output"
        elif _is_residual_sum(index, name):
            kind, about = "sum", last
        if kind is None or tensor is None or tensor.element_type != TensorProto.FLOAT:
            continue
        is_operator = kind in ("operator", "input")
        found.append(
            Watched(
                tensor=name,
                node=about.node if about is not None and is_operator else index.producers[name].name,
                kind=kind,
                role=about.role if about is not None and is_operator else None,
                block=about.block if about is not None else None,
                bytes=4 * math.prod(max(size, 1) for size in tensor.shape or ()),
            )
        )
    return found


def smoothed_tensors(
    structure: onnx.ModelProto, operators: Sequence[Operator], first: TensorGraph, second: TensorGraph
) -> frozenset[str]:
    """Return the tensors that differ by design, because smoothing divided their channels by other factors.

    They are between the divided weights (the gain of a LayerNorm, or an attention's value projection) and the operators
    with multiplied weights.
    """
    ours, theirs = first.record.smoothing, second.record.smoothing
    index = GraphIndex(structure)
    products = {operator.node for operator in operators if operator.role == "attention_values"}
    found: set[str] = set()
    for start in ours.keys() | theirs.keys():
        if ours.get(start) != theirs.get(start):
            found |= _tensors_before(index, products, start) | _tensors_behind(index, start)
    return frozenset(found)


def _tensors_before(index: GraphIndex, products: set[str], tensor: str) -> set[str]:
    """Return the tensors back to the node whose weights are divided."""
    found = {tensor}
    while (node := index.producers.get(tensor)) is not None:
        data = [name for name in node.input if name and name not in index.weights]
        if node.name in products:
            tensor = node.input[1]
        elif node.op_type in QUANTISED or node.op_type == "Mul" or len(data) != 1:
            break
        else:
            (tensor,) = data
        found.add(tensor)
    return found


def _tensors_behind(index: GraphIndex, tensor: str) -> set[str]:
    """Return the tensors up to the operators, through nodes that only move channels."""
    found, waiting = {tensor}, [tensor]
    while waiting:
        for node, _position in index.consumers[waiting.pop()]:
            made = set() if node.op_type in QUANTISED else set(node.output) - found
            found |= made
            waiting += made
    return found


def _is_residual_sum(index: GraphIndex, name: str) -> bool:
    """Return whether it is a sum of two activations with two users: the next layer, and the next addition."""
    node = index.producers.get(name)
    if node is None or node.op_type != "Add" or any(each in index.weights for each in node.input):
        return False
    return len({taker.name for taker, _position in index.consumers[name]}) > 1


def _read_emulated(path: Path) -> onnx.ModelProto:
    try:
        _header, content = read_container(path)
    except StatusError as error:
        raise BundleCorruptError(f"Model '{path}' cannot be read: {error}. Compile the bundle again.") from error
    model = onnx.ModelProto()
    model.ParseFromString(content)
    return model
