"""Zero-shot accuracy of a compiled bundle on a labelled dataset: every image counted, none twice."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from clipmlu.arguments import as_path, check_argument, check_fields
from clipmlu.backends import get_backend
from clipmlu.bundle.manifest import current_tool_versions
from clipmlu.classify.classifier import ZeroShotClassifier, build_classifier, rank_classes
from clipmlu.data.class_names import distinct_names
from clipmlu.data.datasets import Dataset, check_dataset
from clipmlu.data.prompts import fill_template
from clipmlu.embed.encoder import Encoder
from clipmlu.embed.images import item_from_dataset, run_batches
from clipmlu.errors import GateError, InputError, OptionError, OverlapError
from clipmlu.files.publish import encode_json, write_files
from clipmlu.files.read import read_json
from clipmlu.measure.samples import Overlap, SkippedImage, choose_images
from clipmlu.measure.statistics import Interval, wilson_interval
from clipmlu.specs import ModelId, NaturalInt, PositiveInt, Precision, Spec

CALIBRATION_BINS = 15
CONFUSIONS_SHOWN = 20
_TOP_K = 5
_SAMPLE_FILES = ("infer_result.txt", "eval_labels.txt", "eval_result_1.txt", "eval_result_5.txt", "eval_result.txt")

IntArray = npt.NDArray[np.int64]


class ClassAccuracy(Spec, frozen=True, kw_only=True):
    """One row of the per-class table.

    Attributes:
        class_name: the class; one of several of that name has its position behind it, ``crane (134)``.
        images: images of that class among those evaluated.
        correct: of these, how many were classified rightly.
        top1: ``correct / images``, or None without images.
    """

    class_name: str
    images: int
    correct: int
    top1: float | None


class Confusion(Spec, frozen=True, kw_only=True):
    """How often images of one class were taken for another."""

    class_name: str
    predicted: str
    images: int


class BaselineComparison(Spec, frozen=True, kw_only=True):
    """How a report compares with an earlier one of the same images.

    Attributes:
        bundle_digest: the bundle of the earlier report.
        top1: its top-1.
        drop: ``top1`` less that of the new report.
        max_drop: what is allowed.
    """

    bundle_digest: str
    top1: float
    drop: float
    max_drop: float


class AccuracyReport(Spec, frozen=True, kw_only=True):
    """What ``clipmlu eval`` measured.

    Attributes:
        model: the model.
        target: the compiled bundle's target.
        precision: its arithmetic.
        emulated: True when the emulated vendor SDK had a part in it.
        bundle_digest: digest of the compiled bundle's manifest.
        dataset: the dataset's name.
        split: the split.
        templates: what the prompts were made from.
        batch_size: images per batch.
        classes: number of classes.
        images: images evaluated, the last partial batch included.
        skipped: images that could not be read; they are not in ``images``.
        top1: fraction of images whose best class is right, 0..1.
        top1_interval: its 95 % confidence interval (Wilson).
        top5: fraction of images with the right class among the best five, or None with fewer than six classes.
        top5_interval: its 95 % confidence interval, or None.
        mean_per_class: mean of the per-class accuracies over the classes that have images.
        expected_calibration_error: mean gap of confidence and accuracy over 15 bins, weighted by images, 0..1.
        per_class: one row per class, in the dataset's order.
        confusions: the most frequent wrong pairs, most frequent first.
        elapsed_s: wall time of the evaluation in seconds, class embeddings and opening not counted.
        images_per_second: ``images / elapsed_s``.
        tool_versions: versions of clipmlu and of the runtime.
        calibration_overlap: images that the bundle was calibrated with, when that was allowed; else None.
        calibration_prompts: prompts of this evaluation that the text tower was calibrated with.
        baseline: comparison with an earlier report, or None.
        fast_preprocess: the images were decoded and shrunk by shortcuts.
    """

    model: ModelId
    target: str
    precision: Precision
    emulated: bool
    bundle_digest: str
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
    tool_versions: dict[str, str]
    calibration_overlap: int | None = None
    calibration_prompts: int = 0
    baseline: BaselineComparison | None = None
    fast_preprocess: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """How to evaluate; validated on construction.

    Attributes:
        samples: images to evaluate; None for all.
        shuffle: draw them at random; otherwise the first ones are taken.
        seed: seed of the drawing.
        batch_size: images per batch; None for the bundle's own.
        templates: see ``prompts.resolve_templates``.
        cache: keep class embeddings in the cache directory.
        allow_overlap: evaluate images that the bundle was calibrated with; the report counts them.
        workers: threads that decode and preprocess; None for all CPUs.
    """

    samples: PositiveInt | None = None
    shuffle: bool = False
    seed: NaturalInt = 0
    batch_size: PositiveInt | None = None
    templates: str | os.PathLike[str] | Sequence[str] = "simple"
    cache: bool = True
    allow_overlap: bool = False
    workers: PositiveInt | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class ImageResult:
    """What one image was taken for: position in the dataset, its label, and the best five classes, best first."""

    index: int
    label: int
    ranked: tuple[int, ...]


class Tally:
    """Counts that add up: of one run, or of many parts of one.

    Attributes:
        confusion: int64, shape (C, C): images by label (row) and prediction (column).
        top5_correct: images whose label is among the best five.
        bin_images: int64, shape (15,): images by confidence.
        bin_correct: int64, shape (15,): right ones among them.
        bin_confidence: float64, shape (15,): sum of their confidences.
    """

    def __init__(self, classes: int) -> None:
        self.confusion: IntArray = np.zeros((classes, classes), np.int64)
        self.top5_correct = 0
        self.bin_images: IntArray = np.zeros(CALIBRATION_BINS, np.int64)
        self.bin_correct: IntArray = np.zeros(CALIBRATION_BINS, np.int64)
        self.bin_confidence: npt.NDArray[np.float64] = np.zeros(CALIBRATION_BINS, np.float64)

    def add(self, labels: IntArray, ranked: npt.NDArray[np.intp], confidence: npt.NDArray[np.float32]) -> None:
        """Count images.

        Args:
            labels: shape (N,), the right classes.
            ranked: shape (N, K), the best classes, best first.
            confidence: shape (N,), probability of the best class, 0..1.
        """
        predicted = ranked[:, 0]
        np.add.at(self.confusion, (labels, predicted), 1)
        self.top5_correct += int((ranked[:, :_TOP_K] == labels[:, None]).any(axis=1).sum())
        bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
        np.add.at(self.bin_images, bins, 1)
        np.add.at(self.bin_correct, bins, (predicted == labels).astype(np.int64))
        np.add.at(self.bin_confidence, bins, confidence.astype(np.float64))

    def merge(self, other: Tally) -> None:
        """Add the counts of another part."""
        self.confusion += other.confusion
        self.top5_correct += other.top5_correct
        self.bin_images += other.bin_images
        self.bin_correct += other.bin_correct
        self.bin_confidence += other.bin_confidence

    @property
    def images(self) -> int:
        """Images counted."""
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        """Images whose best class is right."""
        return int(self.confusion.trace())

    @property
    def expected_calibration_error(self) -> float:
        """Mean over the bins of |accuracy - confidence|, weighted by images.

        Source: C. Guo et al., "On Calibration of Modern Neural Networks", 2017, equation 3.
        """
        gaps = np.abs(self.bin_correct - self.bin_confidence)
        return float(gaps.sum() / max(self.images, 1))


def evaluate(
    encoder: Encoder,
    dataset: Dataset,
    options: EvalOptions | None = None,
    *,
    on_result: Callable[[ImageResult], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
    on_interrupt: Callable[[Tally, int], None] | None = None,
    on_note: Callable[[str], None] = lambda _message: None,
) -> AccuracyReport:
    """Measure zero-shot accuracy.

    Args:
        encoder: the model.
        dataset: labelled images.
        options: how; the defaults of ``EvalOptions`` if None.
        on_result: called for every image evaluated, in the order of evaluation.
        on_progress: called with the number of images done since the last call.
        on_interrupt: called with what was counted and the number of images wanted, before what ends
            the run early, a Ctrl-C or an error, goes on its way.
        on_note: called with a line for people, such as what a bundle of the joint layout computes in vain.

    Raises:
        OptionError: more samples than the dataset has, or an argument of another type.
        ShapeError: the bundle does not take such batches.
        InputError: not one image could be read.
        OverlapError: an image is one that the bundle was calibrated with, and ``allow_overlap`` is off.
    """
    options = check_argument(options, EvalOptions | None, "options") or EvalOptions()
    check_argument(encoder, Encoder, "encoder")
    check_dataset(dataset)
    batch_size = encoder.check_batch_size(options.batch_size)
    indices = choose_images(dataset, options.samples, shuffle=options.shuffle, seed=options.seed)
    classifier = build_classifier(encoder, dataset.class_names, options.templates, cache=options.cache)
    if cost := classifier.scorer.describe_cost(batch_size):
        on_note(cost)
    tally = Tally(len(dataset.class_names))
    skipped: list[SkippedImage] = []
    start = time.perf_counter()
    overlap = Overlap(encoder, allowed=options.allow_overlap)
    items = (item_from_dataset(dataset, index, overlap.check) for index in indices)
    batches = run_batches(classifier.scorer, items, batch_size=batch_size, workers=options.workers)
    remaining = iter(indices)
    try:
        for batch in batches:
            numbers = list(islice(remaining, len(batch.items)))
            skipped += [SkippedImage(id=batch.items[at].id, reason=str(error)) for at, error in batch.errors.items()]
            good = [number for at, number in enumerate(numbers) if at not in batch.errors]
            results = _count(tally, classifier, dataset, good, batch.rows) if good else []
            if on_result:
                for result in results:
                    on_result(result)
            if on_progress:
                on_progress(len(numbers))
    except OverlapError:  # what was counted is no accuracy
        raise
    except BaseException:
        if on_interrupt and tally.images:
            on_interrupt(tally, len(indices))
        raise
    elapsed = time.perf_counter() - start
    if tally.images == 0:
        raise InputError(
            f"Not one of the {len(indices)} images of '{dataset.name}' could be read. First: {skipped[0].reason}"
        )
    report = _report(encoder, classifier, dataset, tally, tuple(skipped), batch_size, elapsed)
    prompts = {fill_template(template, name) for template in classifier.templates for name in classifier.class_names}
    return msgspec.structs.replace(
        report,
        calibration_overlap=len(overlap.found) if options.allow_overlap else None,
        calibration_prompts=len(prompts.intersection(encoder.bundle.calibration_data().prompts)),
    )


def read_report(path: str | os.PathLike[str]) -> AccuracyReport:
    """Read a report as ``encode_report`` wrote it.

    Raises:
        InputError: there is none, or it is something else.
    """
    try:
        return read_json(as_path(path, "the report"), AccuracyReport)
    except OSError as error:
        raise InputError(f"Cannot read the report '{path}': {error.strerror}.") from error
    except msgspec.DecodeError as error:
        raise InputError(f"'{path}' is not a report as 'clipmlu eval --output' writes it: {error}.") from error


def compare_with_baseline(report: AccuracyReport, baseline: AccuracyReport, max_drop: float) -> AccuracyReport:
    """The report with its comparison; whether it passes is for ``check_baseline`` to say.

    Raises:
        OptionError: the two are not about the same images, classes and prompts, or ``max_drop`` is not in 0..1.
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
    comparison = BaselineComparison(
        bundle_digest=baseline.bundle_digest,
        top1=baseline.top1,
        drop=baseline.top1 - report.top1,
        max_drop=max_drop,
    )
    return msgspec.structs.replace(report, baseline=comparison)


def check_baseline(report: AccuracyReport) -> None:
    """Refuse a report that lost too much.

    Raises:
        GateError: by how much.
    """
    found = report.baseline
    # Counted in images: fractions that are equal on paper may differ in their last digit.
    if found is not None and round(found.drop * report.images) > found.max_drop * report.images + 1e-9:
        raise GateError(
            f"Top-1 {report.top1:.4f} is {found.drop:.4f} below the baseline's {found.top1:.4f}; allowed are "
            f"{found.max_drop:g} (--max-drop)."
        )


def _shown(value: object) -> str:
    return f"{len(value)} templates" if isinstance(value, tuple) and len(value) > 3 else f"'{value}'"


def sample_paths(directory: str | os.PathLike[str]) -> list[Path]:
    """The files that ``write_sample_files`` writes."""
    folder = as_path(directory, "the output")
    return [folder / name for name in _SAMPLE_FILES]


def write_sample_files(
    directory: str | os.PathLike[str],
    results: Sequence[ImageResult],
    class_names: Sequence[str],
    report: AccuracyReport,
    *,
    overwrite: bool = False,
) -> None:
    """Write results as the vendor's CLIP sample writes them: four text files, and the two accuracy lines in a fifth.

    Format (Cambricon magicmind_cloud, clip_pytorch/infer_python/infer.py and cv/utils/compute_top1_and_top5.py):
    ``[i]: class`` lines for labels, best class and best five classes; ``top5 result:`` and five ``rank [name]`` lines.

    Args:
        directory: where to; made if absent.
        results: one per image, in order.
        class_names: names as the dataset spells them.
        report: where the accuracies come from.
        overwrite: replace files of these names.

    Raises:
        OutputExistsError: one is there, and ``overwrite`` is off.
        OutputError: a file cannot be written.
    """
    labels = [f"[{number}]: {result.label}" for number, result in enumerate(results)]
    best = [f"[{number}]: {result.ranked[0]}" for number, result in enumerate(results)]
    five = [f"[{number}]: {index}" for number, result in enumerate(results) for index in result.ranked]
    named = [
        line
        for result in results
        for line in ("top5 result:", *(f"{rank} [{class_names[index]}]" for rank, index in enumerate(result.ranked)))
    ]
    contents = (named, labels, best, five, accuracy_lines(report))
    files = {
        path: ("\n".join(lines) + "\n").encode() for path, lines in zip(sample_paths(directory), contents, strict=True)
    }
    write_files(files, overwrite=overwrite)


def accuracy_lines(report: AccuracyReport) -> list[str]:
    """The lines that the vendor's sample prints its accuracies in."""
    lines = [f"top1 accuracy: {report.top1:f}"]
    return lines if report.top5 is None else [*lines, f"top5 accuracy: {report.top5:f}"]


def encode_report(report: AccuracyReport) -> bytes:
    """The report as indented JSON."""
    return encode_json(report)


def _count(
    tally: Tally,
    classifier: ZeroShotClassifier,
    dataset: Dataset,
    indices: Sequence[int],
    rows: npt.NDArray[np.float32],
) -> list[ImageResult]:
    labels = np.array([dataset.label(index) for index in indices], np.int64)
    logits = classifier.logits(rows)
    ranked = rank_classes(logits, _TOP_K)
    confidence = classifier.scores(logits).max(axis=1)
    tally.add(labels, ranked, confidence)
    results = zip(indices, labels, ranked, strict=True)
    return [ImageResult(index, int(label), tuple(int(each) for each in best)) for index, label, best in results]


def _report(
    encoder: Encoder,
    classifier: ZeroShotClassifier,
    dataset: Dataset,
    tally: Tally,
    skipped: tuple[SkippedImage, ...],
    batch_size: int,
    elapsed_s: float,
) -> AccuracyReport:
    facts = encoder.bundle.compilation
    images, names = tally.images, distinct_names(dataset.class_names)
    per_class = _per_class(tally, names)
    has_top5 = len(names) > _TOP_K
    return AccuracyReport(
        model=encoder.bundle.manifest.model,
        target=facts.target,
        precision=facts.precision,
        emulated=facts.emulated,
        bundle_digest=encoder.bundle.digest,
        dataset=dataset.name,
        split=dataset.split,
        templates=classifier.templates,
        batch_size=batch_size,
        classes=len(names),
        images=images,
        skipped=skipped,
        top1=tally.correct / images,
        top1_interval=wilson_interval(tally.correct, images),
        top5=tally.top5_correct / images if has_top5 else None,
        top5_interval=wilson_interval(tally.top5_correct, images) if has_top5 else None,
        mean_per_class=float(np.mean([row.top1 for row in per_class if row.top1 is not None])),
        expected_calibration_error=tally.expected_calibration_error,
        per_class=per_class,
        confusions=_confusions(tally, names),
        elapsed_s=elapsed_s,
        images_per_second=images / elapsed_s,
        tool_versions=current_tool_versions(*get_backend(facts.backend).packages),
        fast_preprocess=encoder.preprocessor.fast,
    )


def _per_class(tally: Tally, names: Sequence[str]) -> tuple[ClassAccuracy, ...]:
    counts = tally.confusion.sum(axis=1)
    rows = zip(names, counts.tolist(), tally.confusion.diagonal().tolist(), strict=True)
    return tuple(
        ClassAccuracy(class_name=name, images=images, correct=correct, top1=correct / images if images else None)
        for name, images, correct in rows
    )


def _confusions(tally: Tally, names: Sequence[str]) -> tuple[Confusion, ...]:
    wrong = tally.confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS_SHOWN]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return tuple(
        Confusion(class_name=names[label], predicted=names[guess], images=int(wrong[label, guess]))
        for label, guess in pairs
        if wrong[label, guess] > 0
    )
