"""What a sweep keeps on disk between two runs, and what it depends on."""

from __future__ import annotations

from clipmlu.measure.accuracy import AccuracyReport
from clipmlu.measure.machine import Machine
from clipmlu.specs import Spec


class AccuracyKey(Spec, frozen=True, kw_only=True):
    """What an accuracy depends on."""

    bundle_digest: str
    dataset: str
    split: str
    samples: int | None
    seed: int
    shuffle: bool
    templates: str
    tool_versions: dict[str, str]


class KeptAccuracy(Spec, frozen=True, kw_only=True):
    """The accuracy of one bundle."""

    key: AccuracyKey
    report: AccuracyReport


class CellKey(Spec, frozen=True, kw_only=True):
    """What the speed of a cell depends on."""

    bundle_digest: str
    batch_size: int
    threads: int
    device: int
    duration_ms: int
    machine: Machine
    tool_versions: dict[str, str]


class Repetition(Spec, frozen=True, kw_only=True):
    """One measurement of a cell: offline throughput, and the median latency of a batch alone."""

    images_per_second: float
    latency_ms: float


class Cell(Spec, frozen=True, kw_only=True):
    """One bundle at one batch size, with the repetitions that are done."""

    key: CellKey
    repetitions: tuple[Repetition, ...] = ()
