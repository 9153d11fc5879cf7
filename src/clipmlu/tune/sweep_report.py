"""Report of a sweep: one row for each precision and batch size, the Pareto front, and the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from clipmlu.backends.provenance import Command, Provenance
from clipmlu.display import Displayed, Summary, as_plain, counted
from clipmlu.measure.machine import Machine
from clipmlu.measure.samples import SkippedImage
from clipmlu.measure.statistics import Interval
from clipmlu.specs import Precision, Spec


class SweepRow(Spec, frozen=True, kw_only=True):
    """One precision at one batch size; or a failed precision, with the reason and without measurements.

    Attributes:
        precision: the precision.
        batch_size: images per batch; None in a failed row.
        images_per_second: offline throughput of the image tower, median over the repetitions.
        slowest_images_per_second: throughput of the slowest repetition.
        fastest_images_per_second: throughput of the fastest repetition.
        latency_ms: median latency of one batch with no other in flight; median over the repetitions.
        top1: accuracy, 0..1; None if not measured.
        top1_interval: its 95 % confidence interval.
        image_tower_bytes: size of the image tower's files.
        bundle_bytes: size of all files.
        on_front: no other row is at least as good in accuracy, throughput and size, and better in one of them.
        emulated: the emulated vendor SDK ran it; its speed is not the speed of a card.
        failure: reason of the failure, or None.
        gate_failed: the failure is a failed gate: agreement, or evaluation on calibration images.
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


class SweepReport(Displayed, Spec, frozen=True, kw_only=True):
    """Report of ``clipmlu sweep``.

    Attributes:
        provenance: the exported bundle of all rows, and the software and hardware.
        dataset: dataset of the accuracy, or None.
        split: split of the dataset, or None.
        images: number of evaluated images; None if accuracy was not measured.
        threads: CPU threads per batch; 0: chosen by the runtime.
        repetitions: number of speed measurements of each row.
        duration_ms: duration of one repetition.
        rows: in the order of the precisions and batch sizes as given.
        machine: the machine of the measurements.
        skipped: images that could not be read.
        command: the command that measured it; None from Python, or in reports of an older clipmlu.
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
    command: Command | None = None

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 3 after a failed gate, 1 after another failure or with skipped images, else 0."""
        if any(row.gate_failed for row in self.rows):
            return 3
        return 1 if self.skipped or any(row.failure is not None for row in self.rows) else 0

    def summary(self) -> Summary:
        """Return the facts that people see."""
        front = [f"{row.precision.value} batch {row.batch_size}" for row in self.rows if row.on_front]
        facts = {
            **self.provenance.facts(),
            **(
                {}
                if self.dataset is None
                else {"dataset": f"{self.dataset}, {self.split}, {counted(self.images or 0, 'image')}"}
            ),
            "rows": str(len(self.rows)),
            "best": ", ".join(front) or "none",
        }
        return Summary(facts, self.provenance.emulated)

    def records(self) -> list[dict[str, Any]]:
        """Return one row for each precision and batch size."""
        return [as_plain(row) for row in self.rows]

    def html_records(self) -> list[dict[str, Any]]:
        """Return the main figures of each row."""
        names = (
            "precision",
            "batch_size",
            "images_per_second",
            "latency_ms",
            "top1",
            "bundle_bytes",
            "on_front",
            "failure",
        )
        return [{name: row[name] for name in names} for row in self.records()]


def pareto_front(points: Sequence[Sequence[float]]) -> list[bool]:
    """Mark the points on the Pareto front.

    Args:
        points: points of equal length; larger is better in each coordinate.

    Returns:
        For each point, True if no other one is at least as good in every coordinate and better in one. Equal points
            have
        equal marks.
    """

    def beats(one: Sequence[float], other: Sequence[float]) -> bool:
        pairs = list(zip(one, other, strict=True))
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    return [not any(beats(other, point) for other in points) for point in points]


def mark_front(rows: Sequence[SweepRow]) -> tuple[SweepRow, ...]:
    """Mark the rows on the Pareto front of accuracy (where measured), throughput and size of the image tower."""
    whole = [row for row in rows if row.failure is None]
    points = [(row.top1 or 0.0, row.images_per_second or 0.0, -(row.image_tower_bytes or 0)) for row in whole]
    marked = iter(pareto_front(points))
    return tuple(
        row if row.failure is not None else msgspec.structs.replace(row, on_front=next(marked)) for row in rows
    )
