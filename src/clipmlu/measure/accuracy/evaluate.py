"""Zero-shot accuracy of a compiled bundle on a labelled dataset; every image is counted once."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from clipmlu.arguments import check_argument, check_fields
from clipmlu.backends.provenance import provenance_of
from clipmlu.classify.building import build_classifier
from clipmlu.classify.classifier import ZeroShotClassifier
from clipmlu.data.class_names import distinct_names
from clipmlu.data.datasets import Dataset, check_dataset
from clipmlu.data.prompts import Templates, fill_template, without_functions
from clipmlu.embed.encoder import Encoder
from clipmlu.errors import OverlapError
from clipmlu.keys import value_digest
from clipmlu.measure.accuracy.counting import CountOptions, ImageRange, RangeCounter, RangeCounts, cut_ranges
from clipmlu.measure.accuracy.report import AccuracyReport, ClassAccuracy, ConfidenceBin, Confusion, Rejection
from clipmlu.measure.accuracy.tally import CALIBRATION_BINS, CONFIDENCE_UNITS, TOP_K, ImageResult, Tally
from clipmlu.measure.ranking import check_any_read
from clipmlu.measure.samples import SkippedImage, choose_images
from clipmlu.measure.speed.load import PipelineLoad
from clipmlu.measure.statistics import wilson_interval
from clipmlu.specs import NaturalInt, PositiveInt, Probability
from clipmlu.steps import StartStep, no_steps

CONFUSIONS_SHOWN = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Options of an evaluation; validated on construction.

    Attributes:
        samples: number of images; None for all.
        shuffle: select images randomly; otherwise the first ones.
        seed: random seed of the selection.
        batch_size: images per batch; None for the bundle's own.
        templates: see ``prompts.resolve_templates``.
        cache: store class embeddings in the cache directory.
        allow_overlap: also evaluate images that the bundle was calibrated with; the report counts them.
        workers: threads that decode and preprocess; None for all CPUs.
        reject_below: also report the accuracy without the images whose best class has a smaller probability; None reports
            none.
    """

    samples: PositiveInt | None = None
    shuffle: bool = False
    seed: NaturalInt = 0
    batch_size: PositiveInt | None = None
    templates: Templates = "simple"
    cache: bool = True
    allow_overlap: bool = False
    workers: PositiveInt | None = None
    reject_below: Probability | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "templates", without_functions(self.templates))


def evaluate(
    encoder: Encoder,
    dataset: Dataset,
    options: EvalOptions | None = None,
    *,
    on_result: Callable[[ImageResult], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
    on_load: Callable[[PipelineLoad], None] | None = None,
    on_interrupt: Callable[[Tally, int], None] | None = None,
    on_note: Callable[[str], None] = lambda _message: None,
    on_step: StartStep = no_steps,
) -> AccuracyReport:
    """Measure zero-shot accuracy.

    Args:
        encoder: the model.
        dataset: labelled images.
        options: options of the evaluation; defaults if None.
        on_result: called for every evaluated image, in the order of evaluation.
        on_progress: called with the number of images since the last call.
        on_load: called with what the pipeline did since the last call; ``LoadSum`` says what limits it.
        on_interrupt: called with the counts so far and the number of requested images if Ctrl-C or an error ends the
            run early; the exception is then raised again.
        on_note: called with a line for the user, such as the repeated computations of a bundle of the joint layout.
        on_step: shows the prompts, and the images if there is no ``on_progress``; see ``clipmlu.steps``.

    Raises:
        OptionError: more samples than the dataset has, or an argument of another type.
        ShapeError: the bundle does not support the batch size.
        InputError: no image can be read.
        OverlapError: the bundle was calibrated with an image, and ``allow_overlap`` is False.
    """
    evaluation = prepare_evaluation(encoder, dataset, options, on_note, on_step)
    counter = RangeCounter(evaluation.classifier, dataset, evaluation.count_options(keep_results=on_result is not None))
    start = no_steps if on_progress is not None else on_step
    with (
        start("evaluating", total=len(evaluation.indices), unit="images") as step,
        contextlib.closing(counter(evaluation.ranges(1))) as batches,
    ):
        return evaluation.collect(
            batches,
            on_result=on_result,
            on_progress=on_progress or step.advance,
            on_load=on_load,
            on_interrupt=on_interrupt,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An evaluation that is ready to run, in this process or in parts elsewhere; see ``prepare_evaluation``.

    Attributes:
        encoder: the model.
        dataset: the images.
        options: options of the evaluation.
        batch_size: images per batch.
        indices: positions of the selected images.
        classifier: classifier of the dataset's classes.
    """

    encoder: Encoder
    dataset: Dataset
    options: EvalOptions
    batch_size: int
    indices: Sequence[int]
    classifier: ZeroShotClassifier

    def ranges(self, batches: int) -> Iterator[ImageRange]:
        """Yield ranges of ``batches`` batches each, the last one shorter: whatever their length, the batches are the same."""
        yield from cut_ranges(self.indices, batches * self.batch_size)

    def count_options(self, *, keep_results: bool) -> CountOptions:
        """Return the options of the counters; see ``CountOptions``."""
        return CountOptions(
            batch_size=self.batch_size,
            workers=self.options.workers,
            allow_overlap=self.options.allow_overlap,
            keep_results=keep_results,
            reject_below=self.options.reject_below or 0.0,
        )

    def collect(
        self,
        parts: Iterator[RangeCounts],
        *,
        on_result: Callable[[ImageResult], None] | None = None,
        on_progress: Callable[[int], None] | None = None,
        on_load: Callable[[PipelineLoad], None] | None = None,
        on_interrupt: Callable[[Tally, int], None] | None = None,
    ) -> AccuracyReport:
        """Add up the counts of all ranges, which may come in any order; see ``evaluate``."""
        total = _Total(len(self.dataset.class_names))
        start = time.perf_counter()
        try:
            for part in parts:
                for result in total.add(part):
                    if on_result:
                        on_result(result)
                if on_progress:
                    on_progress(part.taken)
                if on_load and part.load is not None:
                    on_load(part.load)
        except OverlapError:  # the counts are not an accuracy
            raise
        except BaseException:
            if on_interrupt and total.tally.images:
                on_interrupt(total.tally, len(self.indices))
            raise
        elapsed = time.perf_counter() - start
        assert total.taken == len(self.indices), "an image was lost, or counted twice"
        check_any_read(self.dataset, total.tally.images, total.skipped())
        return _report(self, total, elapsed)


def prepare_evaluation(
    encoder: Encoder,
    dataset: Dataset,
    options: EvalOptions | None,
    on_note: Callable[[str], None],
    on_step: StartStep = no_steps,
) -> Evaluation:
    """Check the arguments, select the images and compute the class embeddings; see ``evaluate``."""
    options = check_argument(options, EvalOptions | None, "options") or EvalOptions()
    check_argument(encoder, Encoder, "encoder")
    check_dataset(dataset)
    batch_size = encoder.check_batch_size(options.batch_size)
    indices = choose_images(dataset, options.samples, shuffle=options.shuffle, seed=options.seed)
    classifier = build_classifier(encoder, dataset.class_names, options.templates, cache=options.cache, on_step=on_step)
    if cost := classifier.scorer.describe_cost(batch_size):
        on_note(cost)
    return Evaluation(
        encoder=encoder,
        dataset=dataset,
        options=options,
        batch_size=batch_size,
        indices=indices,
        classifier=classifier,
    )


class _Total:
    """Sum of the counts of ranges, which may come in any order.

    Attributes:
        taken: number of images, including skipped ones.
        tally: counts of the predictions.
        overlap: number of images that the bundle was calibrated with.
    """

    def __init__(self, classes: int) -> None:
        self.taken = 0
        self.tally = Tally(classes)
        self.overlap = 0
        self._skipped: dict[int, list[SkippedImage]] = {}
        self._early: dict[int, RangeCounts] = {}
        self._next = 0

    def add(self, part: RangeCounts) -> Iterator[ImageResult]:
        """Add a range; return the results that are next in the order of the images."""
        self.taken += part.taken
        self.tally.merge(part.tally)
        self.overlap += part.overlap
        if part.skipped:
            self._skipped[part.start] = part.skipped
        self._early[part.start] = part
        return self._results()

    def skipped(self) -> tuple[SkippedImage, ...]:
        """Return the images that could not be read, in order."""
        return tuple(image for start in sorted(self._skipped) for image in self._skipped[start])

    def _results(self) -> Iterator[ImageResult]:
        while (part := self._early.pop(self._next, None)) is not None:
            self._next += part.taken
            yield from part.results


def _report(evaluation: Evaluation, total: _Total, elapsed_s: float) -> AccuracyReport:
    encoder, dataset, classifier = evaluation.encoder, evaluation.dataset, evaluation.classifier
    tally, names = total.tally, distinct_names(dataset.class_names)
    images, per_class = tally.images, _per_class(tally, names)
    has_top5 = len(names) > TOP_K
    prompts = {fill_template(template, name) for template in classifier.templates for name in classifier.class_names}
    return AccuracyReport(
        provenance=provenance_of(encoder.bundle, encoder.devices),
        dataset=dataset.name,
        split=dataset.split,
        templates=classifier.templates,
        batch_size=evaluation.batch_size,
        classes=len(names),
        images=images,
        skipped=total.skipped(),
        top1=tally.correct / images,
        top1_interval=wilson_interval(tally.correct, images),
        top5=tally.top5_correct / images if has_top5 else None,
        top5_interval=wilson_interval(tally.top5_correct, images) if has_top5 else None,
        mean_per_class=float(np.mean([row.top1 for row in per_class if row.top1 is not None])),
        expected_calibration_error=tally.expected_calibration_error,
        per_class=per_class,
        confusions=_confusions(tally, names, dataset),
        elapsed_s=elapsed_s,
        images_per_second=images / elapsed_s,
        calibration_overlap=total.overlap if evaluation.options.allow_overlap else None,
        calibration_prompts=len(prompts.intersection(encoder.bundle.calibration_data().prompts)),
        fast_preprocess=encoder.preprocessor.fast,
        rejection=_rejection(tally, evaluation.options.reject_below),
        confidence_bins=_confidence_bins(tally),
        data_digest=_data_digest(dataset, evaluation.indices),
        weights_digest=encoder.bundle.manifest.export.weights_digest,
    )


def _data_digest(dataset: Dataset, indices: Sequence[int]) -> str:
    images = [(dataset.key(index), int(dataset.label(index))) for index in sorted(indices)]
    return value_digest([list(dataset.class_names), images])


def _confidence_bins(tally: Tally) -> tuple[ConfidenceBin, ...]:
    columns = zip(tally.bin_images.tolist(), tally.bin_correct.tolist(), tally.bin_confidence.tolist(), strict=True)
    return tuple(
        ConfidenceBin(
            low=place / CALIBRATION_BINS,
            high=(place + 1) / CALIBRATION_BINS,
            images=images,
            correct=correct,
            mean_confidence=confidence / (images * CONFIDENCE_UNITS) if images else None,
        )
        for place, (images, correct, confidence) in enumerate(columns)
    )


def _rejection(tally: Tally, threshold: float | None) -> Rejection | None:
    if threshold is None:
        return None
    kept, correct = tally.kept, tally.kept_correct
    return Rejection(
        reject_below=threshold,
        kept=kept,
        coverage=kept / tally.images,
        top1=correct / kept if kept else None,
        top1_interval=wilson_interval(correct, kept) if kept else None,
    )


def _per_class(tally: Tally, names: Sequence[str]) -> tuple[ClassAccuracy, ...]:
    confusion = tally.confusion
    rows = zip(names, confusion.sum(axis=1).tolist(), confusion.diagonal().tolist(), strict=True)
    return tuple(
        ClassAccuracy(class_name=name, images=images, correct=correct, top1=correct / images if images else None)
        for name, images, correct in rows
    )


def _confusions(tally: Tally, names: Sequence[str], dataset: Dataset) -> tuple[Confusion, ...]:
    wrong = tally.confusion
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS_SHOWN]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return tuple(
        Confusion(
            class_name=names[label],
            predicted=names[guess],
            images=int(wrong[label, guess]),
            examples=tuple(map(dataset.key, tally.examples.get(int(label * tally.classes + guess), ()))),
        )
        for label, guess in pairs
        if wrong[label, guess] > 0
    )
