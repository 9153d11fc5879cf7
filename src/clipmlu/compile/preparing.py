"""Changes to a lowered graph before a target quantises it, so that every target, including a card, benefits.

Smoothing moves outliers of activations into weights; clipping adds the ranges of better algorithms for quantisers that
use the smallest and largest values; and operators that stay in float are selected by role.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from clipmlu.backends.base import GraphOptions, SourceGraph
from clipmlu.bundle.directory import ExportedBundle
from clipmlu.data.feeds import CalibrationData, calibration_batches, count_calibration_batches
from clipmlu.errors import CompileError
from clipmlu.graph.index import save_model
from clipmlu.graph.operator_graph import macs_by_input
from clipmlu.graph.parity import FLOAT32_TOLERANCE, allowed_logit_difference, measure_difference
from clipmlu.graph.quantisation.calibrate import RangeOptions, collect_ranges
from clipmlu.graph.quantisation.clipping import clip_graph
from clipmlu.graph.quantisation.outliers import OUTLIER_STRENGTH, has_outliers
from clipmlu.graph.quantisation.parameters import Array
from clipmlu.graph.quantisation.pixel_scaling import choose_scaling, scale_pixels
from clipmlu.graph.quantisation.rewrite import quantised_tensors
from clipmlu.graph.quantisation.sites import Site, find_sites
from clipmlu.graph.quantisation.smoothing import choose_factors, smooth_graph
from clipmlu.graph.quantisation.weight_rounding import round_weights, with_weights
from clipmlu.graph.roles import Operator, find_operators
from clipmlu.graph.selection import parse_selection, select_operators
from clipmlu.graph.watch import WatchingSession, channel_maxima
from clipmlu.specs import AUTO_SMOOTHING, GraphQuantisation, NodeType, PreprocessSpec, QuantisationOptions, TowerName
from clipmlu.steps import counted

_PIXEL_BITS = 8
"""Bits of a colour: a quantiser with as many, and a zero point, can represent all values."""
_OWN_ALGORITHMS = ("percentile", "entropy")
"""Algorithms that the SDK does not have; clipping implements them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedGraph:
    """A graph that is ready for a target's quantiser.

    Attributes:
        graph: the graph and its file.
        options: options of its compilation.
        operators: its operators, with their roles; empty in a mode that quantises nothing.
        record: the changes, without those of the target; None in a mode that quantises nothing.
    """

    graph: SourceGraph
    options: GraphOptions
    operators: tuple[Operator, ...] = ()
    record: GraphQuantisation | None = None


def prepare_graph(
    graph: SourceGraph, options: GraphOptions, logit_scale: float, preprocess: PreprocessSpec
) -> PreparedGraph:
    """Smooth, clip and select what stays in float; the graph's file is written again if it changed.

    Args:
        graph: a lowered graph in a temporary folder.
        options: options of its compilation: a mode that quantises, with calibration data.
        logit_scale: the model's logit scale, for the joint layout.
        preprocess: mean and standard deviation of the pixels.

    Raises:
        CalibrationError: the data do not fit.
        CompileError: smoothing changed the float result, which is a bug or an overflow.
    """
    bits = options.precision.bits
    assert bits is not None, "a mode that quantises nothing needs no preparation"
    how = options.quantisation
    model = onnx.load(str(graph.path))
    operators = find_operators(model)
    kept = select_operators(operators, [parse_selection(text) for text in how.keep_float])
    sites: list[Site] = []
    factors: Mapping[str, Sequence[float]] = {}
    if how.is_smoothed:
        sites = [site for site in find_sites(model, operators) if not site.only_slows(kept)]
        factors = _smoothing_factors(model, sites, graph, options)
    scaling = None
    if bits == _PIXEL_BITS and how.activation == "asymmetric":
        scaling = choose_scaling(model, operators, preprocess, in_float=kept)
    if factors or scaling:
        with options.on_step("smoothing"):
            smoothed = scale_pixels(smooth_graph(model, sites, factors), scaling)
            _check_neutral(model, smoothed, graph, options.calibration, logit_scale)
        model = smoothed
    clipped: dict[str, tuple[float, float]] = {}
    if how.algorithm in _OWN_ALGORITHMS:
        wanted = RangeOptions(
            bits=bits, algorithm=how.algorithm, percentile=how.percentile, centred=how.activation == "symmetric"
        )
        names = quantised_tensors(model, without=frozenset(kept))
        total = wanted.passes * count_calibration_batches(graph.tower, options.calibration)
        with options.on_step("finding ranges", total=total, unit="batches") as step:
            ranges, _ = collect_ranges(
                model, names, lambda: counted(calibration_batches(graph.tower, options.calibration), step), wanted
            )
        model, clipped = clip_graph(model, ranges, without=frozenset(kept))
    rounded: dict[str, Array] = {}
    if how.weight_rounding == "gptq":
        rounded = round_weights(
            model,
            lambda: calibration_batches(graph.tower, options.calibration),
            bits=bits,
            granularity=how.granularity,
            without={*kept, *options.node_types},
            on_step=options.on_step,
        )
    if factors or scaling or clipped or rounded:
        with options.on_step("writing the prepared graph"):
            save_model(with_weights(model, rounded), graph.path)
    float_type: NodeType = options.precision.float_type
    prepared = dataclasses.replace(
        options,
        node_types={**dict.fromkeys(kept, float_type), **options.node_types},
        quantisation=_for_the_target(how),
    )
    total = sum(operator.macs for operator in operators)
    record = GraphQuantisation(
        smoothing={name: tuple(float(each) for each in values) for name, values in factors.items()},
        pixel_scaling=scaling,
        clipped=clipped,
        rounded=tuple(rounded),
        float_nodes=tuple(kept),
        macs=total,
        quantised_macs=total - sum(operator.macs for operator in operators if operator.node in set(kept)),
    )
    return PreparedGraph(graph=graph, options=prepared, operators=tuple(operators), record=record)


def role_shares(exported: ExportedBundle) -> dict[str, float]:
    """Map each role to its share of the multiply-accumulate operations of all towers, for one image and one text."""
    macs: dict[str, int] = {}
    for name in exported.manifest.towers:
        model = _lowered(exported, name)
        for operator in find_operators(model):
            macs[operator.role] = macs.get(operator.role, 0) + operator.macs
    total = sum(macs.values())
    return {role: count / total for role, count in macs.items()}


def joint_row_macs(exported: ExportedBundle) -> dict[str, int]:
    """Map each input of the fused graph to the multiply-accumulate operations of one row; empty for two towers."""
    if exported.manifest.layout != "joint":
        return {}
    return macs_by_input(_lowered(exported, "joint"))


def _lowered(exported: ExportedBundle, name: TowerName) -> onnx.ModelProto:
    """Return a lowered graph; the import is here, because two towers in float32 are compiled without what it needs."""
    from clipmlu.graph.lowering import lower_proto

    return lower_proto(exported.tower_path(name))


def _for_the_target(how: QuantisationOptions) -> QuantisationOptions:
    """Return the options that remain for the target."""
    return QuantisationOptions(
        granularity=how.granularity,
        activation=how.activation,
        algorithm="linear" if how.algorithm in _OWN_ALGORITHMS else how.algorithm,
    )


def _smoothing_factors(
    model: onnx.ModelProto, sites: Sequence[Site], graph: SourceGraph, options: GraphOptions
) -> dict[str, tuple[float, ...]]:
    alpha = options.quantisation.smooth_alpha
    used = [site for site in sites if alpha.get(site.role)]
    if not used:
        return {}
    channels = {site.source: site.channels for site in used}
    total = count_calibration_batches(graph.tower, options.calibration)
    with options.on_step("looking for outliers", total=total, unit="batches") as step:
        maxima = channel_maxima(model, channels, counted(calibration_batches(graph.tower, options.calibration), step))
    used = [site for site in used if alpha[site.role] != AUTO_SMOOTHING or has_outliers(maxima[site.source])]
    strengths = {role: OUTLIER_STRENGTH if value == AUTO_SMOOTHING else value for role, value in alpha.items()}
    found = choose_factors(model, used, maxima, strengths)
    return {name: tuple(float(each) for each in values) for name, values in found.items()}


def _check_neutral(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    graph: SourceGraph,
    calibration: Mapping[str, CalibrationData],
    logit_scale: float,
) -> None:
    """Check that the float results of both graphs on the first calibration batch are equal within float32's tolerance."""
    feeds = next(calibration_batches(graph.tower, calibration))
    scale = logit_scale if graph.name == "joint" else 1.0
    allowed = allowed_logit_difference(FLOAT32_TOLERANCE, scale)
    expected, found = _outputs(before, feeds), _outputs(after, feeds)
    for name, reference, measured in zip((tensor.name for tensor in graph.tower.outputs), expected, found, strict=True):
        difference = measure_difference(reference, measured).max_abs_diff
        if difference > allowed:
            raise CompileError(
                f"Smoothing changed '{name}' of the {graph.name} tower by {difference:.3g} in float32; allowed: {allowed:.3g}. "
                "Compile without --smooth-alpha, or with a smaller one."
            )


def _outputs(model: onnx.ModelProto, feeds: Sequence[np.ndarray]) -> list[np.ndarray]:
    added = [
        (helper.make_node("Identity", [value.name], [f"neutral_{number}"]), TensorProto.FLOAT)
        for number, value in enumerate(model.graph.output)
    ]
    return WatchingSession(model, added, {}).run(feeds)
