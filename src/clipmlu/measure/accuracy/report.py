"""The report of an evaluation, and its comparison with an earlier one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec

from clipmlu.arguments import as_path
from clipmlu.backends.provenance import Command, Provenance
from clipmlu.display import Displayed, Summary, as_plain
from clipmlu.errors import GateError, InputError, OptionError
from clipmlu.files.read import decode_json, read_small_file
from clipmlu.measure.samples import SkippedImage
from clipmlu.measure.statistics import Interval, fraction_text, with_interval
from clipmlu.specs import NaturalInt, Probability, Spec

SCHEMA_VERSION = 2  # 2: confidence bins, examples of confusions, the digest of the data, the command
_HARDEST_SHOWN = 5


class ClassAccuracy(Spec, frozen=True, kw_only=True):
    """One row of the per-class table.

    Attributes:
        class_name: the class; a repeated name has its position as a suffix, ``crane (134)``.
        images: evaluated images of that class.
        correct: number of correctly classified images among them.
        top1: ``correct / images``, or None without images.
    """

    class_name: str
    images: int
    correct: int
    top1: float | None


class Confusion(Spec, frozen=True, kw_only=True):
    """Number of images of one class that were classified as another.

    Attributes:
        class_name: the correct class.
        predicted: the best class of the model.
        images: number of such images.
        examples: ids of the first few of them, in the order of the dataset; empty in reports of an older clipmlu.
    """

    class_name: str
    predicted: str
    images: int
    examples: tuple[str, ...] = ()


class ConfidenceBin(Spec, frozen=True, kw_only=True):
    """The images whose best class has a probability in one interval, as in a reliability diagram.

    Attributes:
        low: lower end of the interval, which does not belong to it unless it is 0.
        high: upper end, which belongs to it.
        images: number of images.
        correct: number of correctly classified images among them.
        mean_confidence: mean probability of their best classes, 0..1; None without images.
    """

    low: Probability
    high: Probability
    images: NaturalInt
    correct: NaturalInt
    mean_confidence: Probability | None


class BaselineComparison(Spec, frozen=True, kw_only=True):
    """The comparison with an earlier report of the same images.

    Attributes:
        bundle_digest: the bundle of the earlier report.
        top1: its top-1.
        drop: ``top1`` minus that of the new report.
        max_drop: largest allowed drop.
    """

    bundle_digest: str
    top1: float
    drop: float
    max_drop: float


class Rejection(Spec, frozen=True, kw_only=True):
    """The accuracy if images of low confidence are rejected.

    Attributes:
        reject_below: an image whose best class has a smaller probability is rejected.
        kept: number of images that are not rejected.
        coverage: ``kept / images``, 0..1.
        top1: fraction of the kept images with the correct best class, 0..1; None if none is kept.
        top1_interval: its 95 % confidence interval (Wilson), or None.
    """

    reject_below: float
    kept: int
    coverage: float
    top1: float | None
    top1_interval: Interval | None

    def facts(self) -> dict[str, str]:
        """Return coverage and accuracy for people; see ``Summary``."""
        top1 = (
            "none is kept"
            if self.top1 is None or self.top1_interval is None
            else with_interval(self.top1, self.top1_interval)
        )
        return {
            f"kept from {self.reject_below:g}": f"{self.kept:,} images, {100 * self.coverage:.1f} % coverage",
            "top-1 of the kept": top1,
        }


class AccuracyReport(Displayed, Spec, frozen=True, kw_only=True):
    """The report of ``clipmlu eval``.

    Attributes:
        schema_version: version of the layout.
        provenance: the bundle, its target and versions.
        dataset: the dataset's name.
        split: the split.
        templates: templates of the prompts.
        batch_size: images per batch.
        classes: number of classes.
        images: number of evaluated images, including the last partial batch.
        skipped: images that could not be read; not included in ``images``.
        top1: fraction of images with the correct best class, 0..1.
        top1_interval: its 95 % confidence interval (Wilson).
        top5: fraction of images with the correct class among the best five, or None with fewer than six classes.
        top5_interval: its 95 % confidence interval, or None.
        mean_per_class: mean of the per-class accuracies over the classes with images.
        expected_calibration_error: mean difference of confidence and accuracy over 15 bins of equal width, weighted by
            images, 0..1; see ``Tally.expected_calibration_error``.
        per_class: one row per class, in the dataset's order.
        confusions: the most frequent wrong pairs, most frequent first.
        elapsed_s: wall time of the evaluation in seconds, without opening and class embeddings.
        images_per_second: ``images / elapsed_s``.
        calibration_overlap: number of images that the bundle was calibrated with, if these were allowed; else None.
        calibration_prompts: number of prompts of this evaluation that the text tower was calibrated with.
        baseline: comparison with an earlier report, or None.
        fast_preprocess: True if images were decoded and shrunk by the fast path.
        rejection: accuracy without images of low confidence, or None.
        confidence_bins: the bins of ``expected_calibration_error``, in order; empty in reports of an older clipmlu.
        data_digest: digest of the ids and labels of the evaluated images, skipped ones too, and of the class names; equal
            digests mean the same question. It does not cover the pixels: other images under the same ids are not noticed. None in
            reports of an older clipmlu.
        weights_digest: digest of the model's weights, equal for all bundles of one model; two files of weights may have one name.
            None in reports of an older clipmlu.
        command: the command that measured it; None from Python, or in reports of an older clipmlu.
    """

    schema_version: NaturalInt = SCHEMA_VERSION
    provenance: Provenance
    dataset: str
    split: str
    templates: tuple[str, ...]
    batch_size: int
    classes: int
    images: int
    skipped: tuple[SkippedImage, ...]
    top1: float
    top1_interval: Interval
    top5: float | None
    top5_interval: Interval | None
    mean_per_class: float
    expected_calibration_error: float
    per_class: tuple[ClassAccuracy, ...]
    confusions: tuple[Confusion, ...]
    elapsed_s: float
    images_per_second: float
    calibration_overlap: int | None = None
    calibration_prompts: int = 0
    baseline: BaselineComparison | None = None
    fast_preprocess: bool = False
    rejection: Rejection | None = None
    confidence_bins: tuple[ConfidenceBin, ...] = ()
    data_digest: str | None = None
    weights_digest: str | None = None
    command: Command | None = None

    def summary(self) -> Summary:
        """Return the facts that people see."""
        facts = {
            **self.provenance.facts(),
            "dataset": f"{self.dataset}, {self.split}",
            "images": f"{self.images:,}" + (f" ({len(self.skipped)} skipped)" if self.skipped else ""),
            "top-1": with_interval(self.top1, self.top1_interval),
            **({} if self.top5 is None else {"top-5": fraction_text(self.top5)}),
            "mean per class": fraction_text(self.mean_per_class),
            "calibration error": f"{self.expected_calibration_error:.4f}",
            **({} if self.rejection is None else self.rejection.facts()),
        }
        return Summary(facts, self.provenance.emulated)

    def records(self) -> list[dict[str, Any]]:
        """Return one row for each class: ``class_name``, ``images``, ``correct`` and ``top1``."""
        return [as_plain(row) for row in self.per_class]

    def html_records(self) -> list[dict[str, Any]]:
        """Return the hardest classes, of those that are not always right."""
        wrong = [row for row in self.per_class if row.correct < row.images]
        return [as_plain(row) for row in sorted(wrong, key=lambda row: row.correct / row.images)[:_HARDEST_SHOWN]]


def read_report(path: str | os.PathLike[str]) -> AccuracyReport:
    """Read a report of ``clipmlu eval --output``.

    Raises:
        InputError: it is missing, has the layout of an older or newer clipmlu, or is not a report.
    """
    try:
        return decode_report(path, read_small_file(as_path(path, "the report")))
    except OSError as error:
        raise InputError(f"Cannot read the report '{path}': {error.strerror}.") from error


def decode_report(path: str | os.PathLike[str], content: bytes) -> AccuracyReport:
    """Return the report in the content of a file; ``path`` is for messages.

    Raises:
        InputError: as for ``read_report``.
    """
    try:
        _check_schema(path, decode_json(content, dict[str, Any]))
        return decode_json(content, AccuracyReport)
    except msgspec.DecodeError as error:
        raise InputError(f"'{path}' is not a report as 'clipmlu eval --output' writes it: {error}.") from error


def _check_schema(path: str | os.PathLike[str], fields: Mapping[str, Any]) -> None:
    """Raise if a report has another layout."""
    if fields.get("task") == "retrieval":
        raise InputError(
            f"'{path}' is a report about retrieval; expected one about the accuracy of classification, or add --task retrieval."
        )
    version = fields.get("schema_version")
    if version is None and {"top1", "dataset", "per_class"} <= fields.keys():
        raise InputError(
            f"Report '{path}' was written by an older clipmlu, in a layout without 'schema_version'; expected "
            f"{SCHEMA_VERSION}. Measure that bundle again: clipmlu eval BUNDLE --output FILE."
        )
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise InputError(f"Report '{path}' has schema {version}; this clipmlu reads up to {SCHEMA_VERSION}.")


def compare_with_baseline(report: AccuracyReport, baseline: AccuracyReport, max_drop: float) -> AccuracyReport:
    """Return the report with a comparison; ``check_baseline`` decides whether it passes.

    Raises:
        OptionError: the reports have other images, classes or prompts, or ``max_drop`` is not in 0..1.
    """
    if not 0 <= max_drop <= 1:
        raise OptionError(f"max drop is {max_drop:g}; expected a fraction, 0 to 1")
    for field in ("dataset", "split", "images", "classes", "templates"):
        ours, theirs = getattr(report, field), getattr(baseline, field)
        if ours != theirs:
            raise OptionError(
                f"the baseline has {field} {_shown(theirs)}, this evaluation {_shown(ours)}; they cannot be compared"
            )
    if len(baseline.per_class) != len(report.per_class):
        raise OptionError(
            f"the baseline has figures of {len(baseline.per_class)} classes, this evaluation of {len(report.per_class)}; "
            "they cannot be compared"
        )
    for now, then in zip(report.per_class, baseline.per_class, strict=True):
        if now.class_name != then.class_name:
            raise OptionError(
                f"the baseline has the class name '{then.class_name}' where this evaluation has '{now.class_name}'; they cannot be "
                "compared"
            )
    if baseline.data_digest is None and report.data_digest is not None:
        raise OptionError(
            "the baseline was written by an older clipmlu and does not say which images it is about; they cannot be compared. "
            "Measure its bundle again: clipmlu eval BUNDLE --output FILE"
        )
    if report.data_digest != baseline.data_digest:
        raise OptionError(
            f"the baseline is about other images or labels (digest {baseline.data_digest:.12}) than this evaluation "
            f"({report.data_digest:.12}), though their number is equal; they cannot be compared"
        )
    unread = {each.id for each in report.skipped} ^ {each.id for each in baseline.skipped}
    if unread:
        raise OptionError(
            f"image '{min(unread)}' could be read in only one of the baseline and this evaluation; they cannot be compared. Make it "
            "readable, or take it away, and measure both again"
        )
    comparison = BaselineComparison(
        bundle_digest=baseline.provenance.bundle_digest,
        top1=baseline.top1,
        drop=baseline.top1 - report.top1,
        max_drop=max_drop,
    )
    return msgspec.structs.replace(report, baseline=comparison)


def check_baseline(report: AccuracyReport) -> None:
    """Check that the drop against the baseline is allowed.

    Raises:
        GateError: it is too large; the message gives it.
    """
    found = report.baseline
    # Counted in images, because equal fractions may differ in their last digit.
    if found is not None and round(found.drop * report.images) > found.max_drop * report.images + 1e-9:
        raise GateError(
            f"Top-1 {report.top1:.4f} is {found.drop:.4f} below the baseline's {found.top1:.4f}; allowed: "
            f"{found.max_drop:g} (--max-drop)."
        )


def _shown(value: object) -> str:
    return f"{len(value)} templates" if isinstance(value, tuple) and len(value) > 3 else f"'{value}'"
