"""Counting predictions range by range; the counts of all ranges add up to those of the whole evaluation."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

from clipmlu.classify.classifier import ZeroShotClassifier
from clipmlu.data.datasets import Dataset
from clipmlu.measure.accuracy.tally import TOP_K, ImageResult, Tally
from clipmlu.measure.ranking import EmbeddedImages, IndexGroup, embed_groups, rank_images
from clipmlu.measure.samples import Overlap, SkippedImage
from clipmlu.measure.speed.load import LoadMeter, PipelineLoad


class ImageRange(NamedTuple):
    """Consecutive images of an evaluation.

    Attributes:
        start: position of the first one among the selected images.
        indices: their positions in the dataset.
    """

    start: int
    indices: tuple[int, ...]


class RangeCounts:
    """What was counted for the images of a range.

    Attributes:
        start: see ``ImageRange``.
        taken: number of images so far, including skipped ones.
        tally: counts of the predictions.
        skipped: the images that could not be read, in order.
        overlap: number of images that the bundle was calibrated with.
        results: prediction of each image, in order; empty if they are not wanted.
        load: what the pipeline did since the range before; None before the end of the range.
    """

    def __init__(self, start: int, classes: int, reject_below: float = 0.0) -> None:
        self.start = start
        self.taken = 0
        self.tally = Tally(classes, reject_below)
        self.skipped: list[SkippedImage] = []
        self.overlap = 0
        self.results: list[ImageResult] = []
        self.load: PipelineLoad | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountOptions:
    """Options of a ``RangeCounter``.

    Attributes:
        batch_size: images per batch; a range has a multiple of it, except the last one.
        workers: threads that read, decode and preprocess; None for all CPUs.
        allow_overlap: also count images that the bundle was calibrated with.
        keep_results: return the prediction of each image.
        reject_below: see ``Tally``.
    """

    batch_size: int
    workers: int | None
    allow_overlap: bool
    keep_results: bool
    reject_below: float = 0.0


@dataclasses.dataclass(frozen=True)
class RangeCounter:
    """Evaluates ranges of a dataset's images.

    Attributes:
        classifier: classifier of the dataset's classes.
        dataset: the images.
        options: batches, threads and results.
    """

    classifier: ZeroShotClassifier
    dataset: Dataset
    options: CountOptions

    def __call__(self, ranges: Iterable[ImageRange]) -> Generator[RangeCounts, None, None]:
        """Yield the counts of each range, in order; the next range begins before the one before it has ended.

        Raises:
            OverlapError: the bundle was calibrated with an image, and ``allow_overlap`` is False.
        """
        under_way: deque[tuple[ImageRange, Overlap]] = deque()
        groups = self._groups(ranges, under_way)
        size, workers = self.options.batch_size, self.options.workers
        meter = LoadMeter(self.classifier.encoder, workers)
        embedded = embed_groups(
            self.classifier.scorer, self.dataset, groups, batch_size=size, workers=workers, clock=meter.clock
        )
        counts: RangeCounts | None = None
        with contextlib.closing(embedded):
            for batch in embedded:
                images, overlap = under_way[0]
                classes, threshold = len(self.classifier.class_names), self.options.reject_below
                counts = counts or RangeCounts(images.start, classes, threshold)
                self._count(counts, batch)
                meter.count(batch.taken)
                if counts.taken == len(images.indices):
                    counts.overlap = len(overlap.found)
                    counts.load = meter.take()
                    under_way.popleft()
                    yield counts
                    counts = None

    def _groups(
        self, ranges: Iterable[ImageRange], under_way: deque[tuple[ImageRange, Overlap]]
    ) -> Iterator[IndexGroup]:
        bundle = self.classifier.encoder.bundle
        calibrated = frozenset(bundle.calibration_data().images)
        for images in ranges:
            overlap = Overlap(
                calibrated, f"bundle '{bundle.path}'", "Evaluate others", allowed=self.options.allow_overlap
            )
            under_way.append((images, overlap))
            for part in cut_ranges(images.indices, self.options.batch_size):
                yield IndexGroup(part.indices, overlap.check)

    def _count(self, counts: RangeCounts, batch: EmbeddedImages) -> None:
        found = rank_images(self.classifier, batch.rows, TOP_K)
        confidence = self.classifier.scores(found.logits).max(axis=1)
        counts.tally.add(batch.labels, found.ranked, confidence, batch.indices)
        counts.taken += batch.taken
        counts.skipped += batch.skipped
        if self.options.keep_results:
            results = zip(batch.indices, batch.labels.tolist(), found.ranked.tolist(), strict=True)
            counts.results += [ImageResult(index, label, tuple(best)) for index, label, best in results]


def cut_ranges(indices: Sequence[int], size: int) -> Iterator[ImageRange]:
    """Cut a selection of images into ranges of ``size`` images; the last one may be shorter."""
    for start in range(0, len(indices), size):
        yield ImageRange(start, tuple(indices[start : start + size]))
