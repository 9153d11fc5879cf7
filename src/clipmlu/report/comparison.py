"""Comparison reports on the terminal."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from clipmlu.arguments import as_path
from clipmlu.display import counted
from clipmlu.measure.compare.compare import ComparisonReport
from clipmlu.measure.statistics import fraction_text
from clipmlu.report.heatmap import check_drawable, draw_heatmap
from clipmlu.report.tables import Column, figures, optional, print_facts, print_table, words
from clipmlu.report.wrapping import Joined, Whole

if TYPE_CHECKING:
    from clipmlu.measure.compare.ablation import Ablation, RoleCost
    from clipmlu.measure.compare.nodes import NodeComparison, TowerComparison
    from clipmlu.measure.compare.predictions import EmbeddingComparison, FlippedImage, PredictionComparison
    from clipmlu.specs import TowerName


_NODES_SHOWN = 10
_TENSOR_WIDTH = 20
COST_COLUMNS = (
    *words("tower", "role in float"),
    *figures("operators", "of MACs", "mean cosine", "recovered", "agreement", "top-1", "gain", "McNemar p"),
)
FLIP_COLUMNS = words("image", "class", "A", "B")


def show_comparison(report: ComparisonReport, *, show_all: bool) -> None:
    """Print a comparison on stdout."""
    print_facts(comparison_facts(report))
    for name, tower in report.towers.items():
        _show_nodes(name, tower, show_all=show_all)
    if report.ablation is not None:
        _show_ablation(report.ablation)
    _show_flips(report.predictions)


def comparison_facts(report: ComparisonReport) -> Iterator[tuple[str, str]]:
    """Yield the facts of a comparison, as (name, value) pairs for people."""
    yield "model", f"{report.model}"
    for label, side in (("A, measured", report.measured), ("B, reference", report.reference)):
        yield label, Joined(Whole(f"{side.path}:"), side.describe())
    if report.emulated:
        yield "emulated", "figures of the emulated SDK, not of a card"
    skipped = f" ({len(report.skipped)} skipped)" if report.skipped else ""
    yield "images", f"{report.images} of {report.dataset}, {report.split}{skipped}"
    if report.calibration_overlap:
        yield (
            "overlap",
            f"{report.calibration_overlap} of these images also served for calibration: the figures are too high",
        )
    if report.calibration_prompts:
        yield (
            "prompts",
            f"{report.calibration_prompts} of them also served as prompts for the calibration of a text tower",
        )
    for name, tower in report.towers.items():
        yield f"{name} nodes", _describe_nodes(tower)
        if tower.nodes:
            yield "largest value", _describe_largest(tower)
            yield "first to diverge", _describe_divergence(tower, report.threshold)
    for name, embeddings in report.embeddings.items():
        yield ("image embeddings" if name == "image" else "class embeddings"), _describe_embeddings(embeddings)
    if report.logits is not None:
        yield "logits", f"{_describe_embeddings(report.logits)}{_largest_difference(report.logits)}"
    predictions = report.predictions
    yield "agreement", f"{fraction_text(predictions.agreement)} of the best classes"
    yield "top-1", f"A {fraction_text(predictions.top1)}, B {fraction_text(predictions.reference_top1)}"
    yield (
        "flips",
        f"{predictions.right_to_wrong} right to wrong, {predictions.wrong_to_right} wrong to right, "
        f"{predictions.wrong_to_wrong} to another wrong one; McNemar p = {predictions.mcnemar_p:.3g}",
    )


def _describe_nodes(tower: TowerComparison) -> str:
    if tower.hidden is not None:
        return tower.hidden
    parts = [f"{counted(len(tower.nodes), 'tensor')} over {counted(tower.rows, 'row')}"]
    if tower.smoothed_apart:
        parts.append(f"{tower.smoothed_apart} left out that were smoothed differently")
    if tower.absent:
        parts.append(f"{tower.absent} left out that one side does not have")
    return ", ".join(parts)


def _describe_largest(tower: TowerComparison) -> str:
    """Describe the largest absolute value of either side, as a share of binary16's largest value."""
    node = max(tower.nodes, key=lambda node: node.float16_share or 0.0)
    share = node.float16_share or 0.0
    return f"{share:.3%} of 65504, in {node.place}"


def _describe_divergence(tower: TowerComparison, threshold: float) -> str:
    node = tower.first_divergence
    if node is None:
        return f"none: every cosine is at least {threshold:g}"
    what = f"{node.non_finite} NaN or infinite" if node.non_finite else f"cosine {node.cosine:.6f}"
    return f"{node.place}, '{node.tensor}': {what}"


def _describe_embeddings(embeddings: EmbeddingComparison) -> str:
    if embeddings.mean_cosine is None:
        return f"{embeddings.non_finite} of {embeddings.rows} hold NaN or infinity"
    ratio = "" if embeddings.snr_db is None else f", {embeddings.snr_db:.1f} dB"
    return f"cosine {embeddings.mean_cosine:.6f} in the mean, {embeddings.min_cosine:.6f} at least{ratio}"


def _largest_difference(logits: EmbeddingComparison) -> str:
    return "" if logits.max_abs_diff is None else f", {logits.max_abs_diff:.3g} apart at most"


def _show_nodes(name: TowerName, tower: TowerComparison, *, show_all: bool) -> None:
    shown: Sequence[NodeComparison] = tower.nodes if show_all else worst_nodes(tower)
    title = f"{name} tower: " + ("all nodes" if show_all else "worst nodes")
    print_table(node_columns(whole=show_all), map(tuple, map(node_cells, shown)), title=title, keys=2)


def node_columns(*, whole: bool) -> tuple[Column, ...]:
    """Return the columns of nodes; some of them are optional unless ``whole``."""
    tensor, quantised = words("tensor"), figures("integers hold", "cut off")
    if not whole:
        tensor, quantised = optional(tensor), optional(quantised)
    return (*words("node"), *tensor, *figures("cosine", "dB", "max diff", "range"), *quantised, *figures("NaN/Inf"))


def worst_nodes(tower: TowerComparison) -> list[NodeComparison]:
    """Return the ten nodes that differ most, the worst one first."""
    return sorted((node for node in tower.nodes if not node.is_exact), key=_goodness)[:_NODES_SHOWN]


def _goodness(node: NodeComparison) -> tuple[bool, float]:
    """Sort key: nodes with NaN or infinity first, then the smallest cosine."""
    return not node.non_finite, -1.0 if node.cosine is None else node.cosine


def node_cells(node: NodeComparison) -> Iterator[str]:
    """Yield the texts of a node, one for each of ``node_columns``."""
    yield node.place
    yield _tail(node.tensor)
    yield "-" if node.cosine is None else f"{node.cosine:.5f}"
    yield "same" if node.is_exact else ("-" if node.snr_db is None else f"{node.snr_db:.1f}")
    yield f"{node.max_abs_diff:.2g}"
    yield "-" if node.minimum is None or node.maximum is None else _span(node.minimum, node.maximum)
    yield "-" if node.quantised_range is None else _span(*node.quantised_range)
    yield "-" if node.outside is None else f"{100 * node.outside:.2g} %"
    yield str(node.non_finite)


def _span(low: float, high: float) -> str:
    """Format a range; an end that is tiny beside the other is shown as 0."""
    ends = [0.0 if abs(end) < (high - low) / 1e4 else end for end in (low, high)]
    return f"{ends[0]:.3g}..{ends[1]:.3g}"


def _tail(tensor: str) -> str:
    """Return the last parts of a tensor's name, as many as fit; the node's place already shows the block."""
    parts = re.findall(r"[./]?[^./]+", tensor)
    while len(parts) > 1 and len("".join(parts)) > _TENSOR_WIDTH:
        parts.pop(0)
    return "".join(parts).lstrip("./")


def _show_ablation(ablation: Ablation) -> None:
    print_table(COST_COLUMNS, map(tuple, map(cost_cells, ablation.roles)), title=ablation_title(ablation), keys=2)


def ablation_title(ablation: Ablation) -> str:
    """Return the title of the table of roles."""
    return (
        f"one role in float at a time; A itself has top-1 {fraction_text(ablation.top1)} and agreement {fraction_text(ablation.agreement)} "
        f"with float, which has top-1 {fraction_text(ablation.float_top1)}, on {counted(ablation.images, 'image')}"
    )


def cost_cells(cost: RoleCost) -> Iterator[str]:
    """Yield the texts of a role, one for each of ``COST_COLUMNS``."""
    yield cost.tower
    yield cost.role
    yield str(cost.operators)
    yield f"{100 * cost.macs_share:.1f} %"
    yield "-" if cost.mean_cosine is None else f"{cost.mean_cosine:.6f}"
    yield "-" if cost.recovered is None else f"{cost.recovered:+.6f}"
    yield fraction_text(cost.agreement)
    yield fraction_text(cost.top1)
    yield f"{cost.top1_gain:+.4f}"
    yield f"{cost.mcnemar_p:.2g}"


def _show_flips(predictions: PredictionComparison) -> None:
    print_table(FLIP_COLUMNS, map(flip_cells, predictions.flips), title=flips_title(predictions))


def flips_title(predictions: PredictionComparison) -> str:
    """Return the title of the table of images that changed class."""
    changed = predictions.right_to_wrong + predictions.wrong_to_right + predictions.wrong_to_wrong
    return f"images that changed class: {len(predictions.flips)} of {changed}"


def flip_cells(flip: FlippedImage) -> tuple[str, ...]:
    """Return the texts of an image, one for each of ``FLIP_COLUMNS``."""
    return Whole(flip.id), flip.class_name, flip.predicted or "none", flip.reference or "none"


def draw_comparison(report: ComparisonReport, path: str | os.PathLike[str]) -> bytes:
    """Draw the report's heat map as the content of a file; see ``heatmap``.

    Raises:
        OptionError: the file name does not end in .png or .svg.
        MissingDependencyError: matplotlib is not installed.
    """
    path = as_path(path, "the picture")
    check_drawable(path)
    title = f"{report.model}\n{report.measured.describe()} against {report.reference.describe()}"
    return draw_heatmap(report.towers, title, path.suffix.lower().removeprefix("."))
