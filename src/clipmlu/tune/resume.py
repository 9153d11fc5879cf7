"""What a sweep keeps on disk between two runs, and what it depends on."""

from __future__ import annotations

from clipmlu.measure.accuracy.report import AccuracyReport
from clipmlu.measure.machine import Machine
from clipmlu.specs import Spec


class AccuracyKey(Spec, frozen=True, kw_only=True):
    """What an accuracy depends on.

    Attributes:
        bundle_digest: of the compiled bundle.
        dataset: the dataset's name.
        split: which part of it.
        images: digest of the images that are evaluated, and of their labels.
        class_names: what the labels index.
        templates: of the prompts, one by one.
        max_pixels: largest width x height of an image that is decoded.
        evaluate: digest of the other options of the evaluation.
        session: digest of the options of the session.
        tool_versions: of the runtimes of all towers.
    """

    bundle_digest: str
    dataset: str
    split: str
    images: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    max_pixels: int
    evaluate: str
    session: str
    tool_versions: dict[str, str]


class KeptAccuracy(Spec, frozen=True, kw_only=True):
    """The accuracy of one bundle."""

    key: AccuracyKey
    report: AccuracyReport


class CellKey(Spec, frozen=True, kw_only=True):
    """What the speed of a cell depends on; of the session, a digest of its options."""

    bundle_digest: str
    batch_size: int
    session: str
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
