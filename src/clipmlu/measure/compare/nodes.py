"""Comparison of two graphs of one model, tensor by tensor on the same batches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clipmlu.data.feeds import Array
from clipmlu.graph.roles import Role, find_operators
from clipmlu.measure.compare.watched import Kind, Watched
from clipmlu.specs import Spec, TensorQuantisation
from clipmlu.steps import StartStep, counted, no_steps

if TYPE_CHECKING:  # a report is read without onnx
    import onnx

    from clipmlu.measure.compare.tensors import TensorGraph

FLOAT16_LARGEST = 65504.0
"""The largest finite number of binary16."""

_WATCHED_BYTES = 1 << 29  # limit for the values of one batch in memory, for each side
_CHUNK = 1 << 15  # elements converted to float64 at once

Values = npt.NDArray[np.floating[Any]]
Batches = Callable[[int], Iterable[Array]]
"""Returns batches of at most the given number of rows, from the first one on, at each call."""


class NodeComparison(Spec, frozen=True, kw_only=True):
    """The difference of one tensor between the measured side and the reference, over all batches.

    Attributes:
        tensor: its name in the lowered graph.
        node: the operator that produces or uses it, else the node that produces it.
        kind: ``operator`` for the result of a convolution or matrix product, ``input`` for an input of one, ``sum`` for
            the result of a residual addition, ``output`` for an output of the graph.
        role: role of the operator, or None.
        block: block of the operator; of a residual addition, the block before it; None outside the blocks.
        elements: number of compared elements.
        cosine: cosine similarity of all values together; None if measured values are not finite but should be.
        snr_db: energy of the reference over energy of the difference in dB; None without a difference or energy, or if
            ``cosine`` is None.
        max_abs_diff: largest difference of values that are finite on both sides.
        minimum: smallest finite value of the measured side.
        maximum: largest finite value of the measured side.
        reference_minimum: smallest finite value of the reference.
        reference_maximum: largest finite value of the reference.
        float16_share: largest magnitude of both sides, as a share of binary16's largest number, 65504; binary16
            overflows above 1.
        non_finite: number of measured values that are NaN or infinite although the reference is finite.
        reference_non_finite: number of values of the reference that are NaN or infinite.
        quantised_range: smallest and largest number that the integers of the measured side represent, or None if no
            operator takes the tensor in integers.
        outside: share of the measured values that are clipped at that range, 0..1, or None.
        diverges: True if values are not finite but should be, or the cosine is below the threshold.
    """

    tensor: str
    node: str
    kind: Kind
    role: Role | None
    block: int | None
    elements: int
    cosine: float | None
    snr_db: float | None
    max_abs_diff: float
    minimum: float | None
    maximum: float | None
    reference_minimum: float | None
    reference_maximum: float | None
    float16_share: float | None
    non_finite: int
    reference_non_finite: int
    quantised_range: tuple[float, float] | None
    outside: float | None
    diverges: bool

    @property
    def place(self) -> str:
        """Block and role as text."""
        block = "" if self.block is None else f"block {self.block} "
        if self.kind == "operator":
            return f"{block}{self.role}"
        if self.kind == "input":
            return f"{block}{self.role} input"
        return f"{block}residual sum" if self.kind == "sum" else "output"

    @property
    def is_exact(self) -> bool:
        """Whether both sides have the same numbers."""
        return self.max_abs_diff == 0 and not self.non_finite


class TowerComparison(Spec, frozen=True, kw_only=True):
    """The nodes of one tower.

    Attributes:
        rows: number of images or prompts; with a fixed batch size some of the first ones count twice.
        nodes: one entry for each tensor, in the order of the graph; empty if ``hidden`` has a reason.
        first_divergence: the first node that diverges, or None.
        smoothed_apart: number of skipped tensors that the sides smoothed differently.
        absent: number of skipped tensors that one side does not have.
        hidden: why there are no nodes, or None.
    """

    rows: int
    nodes: tuple[NodeComparison, ...]
    first_divergence: NodeComparison | None
    smoothed_apart: int
    absent: int
    hidden: str | None


def compare_tower(
    measured: TensorGraph,
    reference: TensorGraph,
    structure: onnx.ModelProto,
    batches: Batches,
    batch_size: int,
    *,
    threshold: float,
    fixed: bool = False,
    threads: int = 0,
    watched_bytes: int = _WATCHED_BYTES,
    row_count: int | None = None,
    on_step: StartStep = no_steps,
) -> TowerComparison:
    """Run both sides on the same batches and compare their common tensors.

    Only the selected values of one batch are in memory: large models run fewer rows at once, and the tensors in groups
    with separate runs.

    Args:
        measured: the measured side.
        reference: the reference.
        structure: the lowered graph, which determines the roles of tensors.
        batches: the data.
        batch_size: largest number of rows of a batch.
        threshold: smallest cosine of a node that does not diverge.
        fixed: True if both sides need batches of exactly that size.
        threads: CPU threads; 0 for the runtime's default.
        watched_bytes: limit for the values of one batch in memory, for each side.
        row_count: number of rows of the data, for ``on_step``; None if it is not known.
        on_step: shows the batches.

    Raises:
        SessionError: running a graph fails.
    """
    from clipmlu.measure.compare.tensors import choose_watched, smoothed_tensors

    operators = find_operators(structure)
    wanted = choose_watched(structure, operators)
    present = [each for each in wanted if each.tensor in measured.tensors and each.tensor in reference.tensors]
    apart = smoothed_tensors(structure, operators, measured, reference)
    chosen = [each for each in present if each.tensor not in apart]
    held = sum(each.bytes for each in chosen)
    rows = batch_size if fixed else max(1, min(batch_size, watched_bytes // max(held, 1)))
    nodes: list[NodeComparison] = []
    count = 0
    groups = list(_groups(chosen, 1 if fixed else rows, watched_bytes))
    total = None if row_count is None else len(groups) * math.ceil(row_count / rows)
    with on_step("comparing tensors", total=total, unit="batches") as step:
        for group in groups:
            sums = [_Sums(measured.quantisation(each.tensor)) for each in group]
            names = [each.tensor for each in group]
            ours, theirs = measured.watch(names, threads), reference.watch(names, threads)
            count = 0
            for batch in counted(batches(rows), step):
                count += len(batch)
                for each, found, expected in zip(sums, ours.run(batch), theirs.run(batch), strict=True):
                    each.add(found, expected)
            nodes += [each.summary(watched, threshold) for each, watched in zip(sums, group, strict=True)]
    return TowerComparison(
        rows=count,
        nodes=tuple(nodes),
        first_divergence=next((node for node in nodes if node.diverges), None),
        smoothed_apart=len(present) - len(chosen),
        absent=len(wanted) - len(present),
        hidden=None,
    )


def hidden_tower(reason: str) -> TowerComparison:
    """Return a tower whose nodes cannot be compared."""
    return TowerComparison(rows=0, nodes=(), first_divergence=None, smoothed_apart=0, absent=0, hidden=reason)


def _groups(watched: Sequence[Watched], rows: int, limit: int) -> Iterator[list[Watched]]:
    group: list[Watched] = []
    held = 0
    for each in watched:
        if group and held + each.bytes * rows > limit:
            yield group
            group, held = [], 0
        group.append(each)
        held += each.bytes * rows
    if group:
        yield group


@dataclasses.dataclass
class _Range:
    """The range of one side's finite values."""

    low: float = math.inf
    high: float = -math.inf

    def widen(self, values: Values) -> None:
        if values.size:
            self.low = min(self.low, float(values.min()))
            self.high = max(self.high, float(values.max()))

    @property
    def ends(self) -> tuple[float | None, float | None]:
        return (self.low, self.high) if self.low <= self.high else (None, None)


class _Sums:
    """Sums over the batches of one tensor, in float64."""

    def __init__(self, quantisation: TensorQuantisation | None) -> None:
        self._bounds = None if quantisation is None else _representable(quantisation)
        self._step = 0.0 if quantisation is None else quantisation.scale[0]
        self._elements = 0
        self._product = self._measured = self._reference = self._error = 0.0
        self._max_diff = 0.0
        self._range, self._reference_range = _Range(), _Range()
        self._bad = self._reference_bad = 0
        self._outside = 0

    def add(self, measured: Array, reference: Array) -> None:
        found, expected = np.asarray(measured, np.float32).reshape(-1), np.asarray(reference, np.float32).reshape(-1)
        assert found.shape == expected.shape, "the same tensor of the same rows"
        for start in range(0, len(found), _CHUNK):
            part = slice(start, start + _CHUNK)
            self._add(found[part], expected[part])

    def _add(self, found: Values, expected: Values) -> None:
        self._elements += len(found)
        if not (_is_finite(found) and _is_finite(expected)):
            found, expected = self._without_bad(found, expected)
        wide, wide_expected = found.astype(np.float64), expected.astype(np.float64)
        difference = wide - wide_expected
        # Not as dot products, which BLAS would spread over threads that compete with those of the graphs.
        self._product += float((wide * wide_expected).sum())
        self._measured += float((wide * wide).sum())
        self._reference += float((wide_expected * wide_expected).sum())
        self._error += float((difference * difference).sum())
        if len(found):
            self._max_diff = max(self._max_diff, float(difference.max()), -float(difference.min()))
            self._range.widen(found)
            self._reference_range.widen(expected)
        self._outside += self._count_outside(wide)

    def _without_bad(self, found: Values, expected: Values) -> tuple[Values, Values]:
        """Count values that are not finite, and exclude them from the sums; they also count as clipped."""
        finite, expected_finite = np.isfinite(found), np.isfinite(expected)
        self._reference_bad += int(np.count_nonzero(~expected_finite))
        self._bad += int(np.count_nonzero(expected_finite & ~finite))
        both = finite & expected_finite
        self._outside += int(np.count_nonzero(~finite)) + self._count_outside(found[finite & ~expected_finite])
        self._range.widen(found[finite])
        self._reference_range.widen(expected[expected_finite])
        return found[both], expected[both]

    def _count_outside(self, values: Values) -> int:
        """Return the number of values that are clipped by more than half a step."""
        if self._bounds is None or not values.size:
            return 0
        low, high = self._bounds[0] - self._step / 2, self._bounds[1] + self._step / 2
        if low <= values.min() and values.max() <= high:
            return 0
        return int(np.count_nonzero((values < low) | (values > high)))

    def summary(self, watched: Watched, threshold: float) -> NodeComparison:
        cosine = None if self._bad else self._cosine()
        ends, reference_ends = self._range.ends, self._reference_range.ends
        magnitudes = [abs(end) for end in (*ends, *reference_ends) if end is not None]
        return NodeComparison(
            tensor=watched.tensor,
            node=watched.node,
            kind=watched.kind,
            role=watched.role,
            block=watched.block,
            elements=self._elements,
            cosine=cosine,
            snr_db=None if self._bad else self._snr_db(),
            max_abs_diff=self._max_diff,
            minimum=ends[0],
            maximum=ends[1],
            reference_minimum=reference_ends[0],
            reference_maximum=reference_ends[1],
            float16_share=max(magnitudes) / FLOAT16_LARGEST if magnitudes else None,
            non_finite=self._bad,
            reference_non_finite=self._reference_bad,
            quantised_range=self._bounds,
            outside=None if self._bounds is None else self._outside / max(self._elements, 1),
            diverges=bool(self._bad) or (cosine is not None and cosine < threshold),
        )

    def _cosine(self) -> float:
        """Return the cosine as in ``parity.measure_difference``: 1 for two tensors of zeros, 0 for one of zeros."""
        if self._error == 0:
            return 1.0
        norms = math.sqrt(self._measured) * math.sqrt(self._reference)
        return min(self._product / norms, 1.0) if norms else 0.0

    def _snr_db(self) -> float | None:
        if self._error == 0 or self._reference == 0:
            return None
        return 10 * math.log10(self._reference / self._error)


def _is_finite(values: Values) -> bool:
    """Return whether all values are finite; a finite sum proves it, an infinite one does not disprove it."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum())) or bool(np.isfinite(values).all())


def _representable(quantisation: TensorQuantisation) -> tuple[float, float]:
    """Return the smallest and the largest number that the integers represent."""
    most = 2 ** (quantisation.bits - 1) - 1
    scale = quantisation.scale[0]
    return (-most - 1 - quantisation.zero_point) * scale, (most - quantisation.zero_point) * scale
