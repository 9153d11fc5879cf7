"""What a sweep found: one row for each precision and batch size, which of them are worth having, and the table."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from clipmlu.backends.provenance import Provenance
from clipmlu.measure.machine import Machine
from clipmlu.measure.samples import SkippedImage
from clipmlu.measure.statistics import Interval
from clipmlu.specs import Precision, Spec


class SweepRow(Spec, frozen=True, kw_only=True):
    """One precision at one batch size; or a precision that failed, with the reason and no figures.

    Attributes:
        precision: arithmetic.
        batch_size: images of a batch; None in a row that failed.
        images_per_second: offline throughput of the image tower, median of the repetitions.
        slowest_images_per_second: the slowest repetition.
        fastest_images_per_second: the fastest.
        latency_ms: of one batch with no other in flight: its median, median of the repetitions.
        top1: accuracy, 0..1; None where it was not measured.
        top1_interval: its 95 % confidence interval.
        image_tower_bytes: size of the image tower's files.
        bundle_bytes: size of all files.
        on_front: no other row is at least as good in accuracy, throughput and size, and better in one of them.
        emulated: the emulated vendor SDK ran it: its speed says nothing about any card.
        failure: why there are no figures, or None.
        gate_failed: that was a gate: agreement, or images that were calibrated with.
    """

    precision: Precision
    batch_size: int | None = None
    images_per_second: float | None = None
    slowest_images_per_second: float | None = None
    fastest_images_per_second: float | None = None
    latency_ms: float | None = None
    top1: float | None = None
    top1_interval: Interval | None = None
    image_tower_bytes: int | None = None
    bundle_bytes: int | None = None
    on_front: bool = False
    emulated: bool = False
    failure: str | None = None
    gate_failed: bool = False


class SweepReport(Spec, frozen=True, kw_only=True):
    """What ``clipmlu sweep`` measured.

    Attributes:
        provenance: the exported bundle that all were compiled from, and what ran them.
        dataset: what accuracy was measured on, or None.
        split: which part of it.
        images: how many images of it; None without any.
        threads: CPU threads of one batch; 0: as many as the runtime likes.
        repetitions: how often each cell was measured, in turns with all others.
        duration_ms: of one repetition.
        rows: in the order of precisions and batch sizes as given.
        machine: where this was.
        skipped: images that could not be read.
    """

    provenance: Provenance
    dataset: str | None
    split: str | None
    images: int | None
    threads: int
    repetitions: int
    duration_ms: int
    rows: tuple[SweepRow, ...]
    machine: Machine
    skipped: tuple[SkippedImage, ...] = ()

    @property
    def exit_code(self) -> int:
        """What the command line returns: 3 after a failed gate, 1 after any other failure or with skipped images, else 0."""
        if any(row.gate_failed for row in self.rows):
            return 3
        return 1 if self.skipped or any(row.failure is not None for row in self.rows) else 0


def pareto_front(points: Sequence[Sequence[float]]) -> list[bool]:
    """Which points no other one beats.

    Args:
        points: of equal length, more is better in each coordinate.

    Returns:
        For each point, whether no other one is at least as good in every coordinate and better in one. Equal points are
        all on the front, or none of them is.
    """

    def beats(one: Sequence[float], other: Sequence[float]) -> bool:
        pairs = list(zip(one, other, strict=True))
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    return [not any(beats(other, point) for other in points) for point in points]


def mark_front(rows: Sequence[SweepRow]) -> tuple[SweepRow, ...]:
    """The rows, with those on the front of accuracy (where measured), throughput and size of the image tower marked."""
    whole = [row for row in rows if row.failure is None]
    points = [(row.top1 or 0.0, row.images_per_second or 0.0, -(row.image_tower_bytes or 0)) for row in whole]
    marked = iter(pareto_front(points))
    return tuple(
        row if row.failure is not None else msgspec.structs.replace(row, on_front=next(marked)) for row in rows
    )
