"""Zero-shot accuracy of a compiled bundle on a labelled dataset; every image is counted once."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from clipmlu.arguments import check_argument, check_fields
from clipmlu.backends.provenance import provenance_of
from clipmlu.classify.classifier import ZeroShotClassifier, build_classifier
from clipmlu.data.class_names import distinct_names
from clipmlu.data.datasets import Dataset, check_dataset
from clipmlu.data.prompts import fill_template
from clipmlu.embed.encoder import Encoder
from clipmlu.errors import OverlapError
from clipmlu.measure.accuracy.report import AccuracyReport, ClassAccuracy, Confusion
from clipmlu.measure.accuracy.tally import TOP_K, ImageResult, Tally
from clipmlu.measure.ranking import EmbeddedImages, check_any_read, embed_in_batches, rank_images
from clipmlu.measure.samples import Overlap, SkippedImage, choose_images
from clipmlu.measure.statistics import wilson_interval
from clipmlu.specs import NaturalInt, PositiveInt

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
        options: options of the evaluation; defaults if None.
        on_result: called for every evaluated image, in the order of evaluation.
        on_progress: called with the number of images since the last call.
        on_interrupt: called with the counts so far and the number of requested images if Ctrl-C or an error ends the
            run early; the exception is then raised again.
        on_note: called with a line for the user, such as the repeated computations of a bundle of the joint layout.

    Raises:
        OptionError: more samples than the dataset has, or an argument of another type.
        ShapeError: the bundle does not support the batch size.
        InputError: no image can be read.
        OverlapError: the bundle was calibrated with an image, and ``allow_overlap`` is False.
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
    calibrated = encoder.bundle.calibration_data()
    overlap = Overlap(
        calibrated.images, f"bundle '{encoder.bundle.path}'", "Evaluate others", allowed=options.allow_overlap
    )
    batches = embed_in_batches(
        classifier.scorer, dataset, indices, batch_size=batch_size, workers=options.workers, check=overlap.check
    )
    try:
        for batch in batches:
            skipped += batch.skipped
            results = _count(tally, classifier, batch)
            if on_result:
                for result in results:
                    on_result(result)
            if on_progress:
                on_progress(batch.taken)
    except OverlapError:  # the counts are not an accuracy
        raise
    except BaseException:
        if on_interrupt and tally.images:
            on_interrupt(tally, len(indices))
        raise
    elapsed = time.perf_counter() - start
    check_any_read(dataset, tally.images, skipped)
    report = _report(encoder, classifier, dataset, tally, tuple(skipped), batch_size, elapsed)
    prompts = {fill_template(template, name) for template in classifier.templates for name in classifier.class_names}
    return msgspec.structs.replace(
        report,
        calibration_overlap=len(overlap.found) if options.allow_overlap else None,
        calibration_prompts=len(prompts.intersection(calibrated.prompts)),
    )


def _count(tally: Tally, classifier: ZeroShotClassifier, batch: EmbeddedImages) -> list[ImageResult]:
    found = rank_images(classifier, batch.rows, TOP_K)
    tally.add(batch.labels, found.ranked, classifier.scores(found.logits).max(axis=1))
    results = zip(batch.indices, batch.labels.tolist(), found.ranked.tolist(), strict=True)
    return [ImageResult(index, label, tuple(best)) for index, label, best in results]


def _report(
    encoder: Encoder,
    classifier: ZeroShotClassifier,
    dataset: Dataset,
    tally: Tally,
    skipped: tuple[SkippedImage, ...],
    batch_size: int,
    elapsed_s: float,
) -> AccuracyReport:
    images, names = tally.images, distinct_names(dataset.class_names)
    per_class = _per_class(tally, names)
    has_top5 = len(names) > TOP_K
    return AccuracyReport(
        provenance=provenance_of(encoder.bundle, encoder.devices),
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
