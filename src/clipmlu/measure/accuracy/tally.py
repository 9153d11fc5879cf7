"""Counts of correct and wrong predictions."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from clipmlu.measure.ranking import IntArray

CALIBRATION_BINS = 15
TOP_K = 5
EXAMPLES = 4
"""Wrong images that are kept of each pair of classes."""
CONFIDENCE_UNITS = 2**32
"""A confidence of 1 in the integers that are summed: 2 billion images fit, and a sum of integers depends on no order."""


@dataclasses.dataclass(frozen=True)
class ImageResult:
    """The prediction for one image: position in the dataset, label, and the best five classes, best first."""

    index: int
    label: int
    ranked: tuple[int, ...]


class Tally:
    """Additive counts of one run, or of many parts of one.

    Args:
        classes: number of classes, C.
        reject_below: an image whose best class has a smaller probability is not kept; 0 keeps all.

    Attributes:
        classes: number of classes, C.
        pairs: maps ``label * C + prediction`` to the number of such images; most of the C x C pairs never occur.
        top5_correct: number of images whose label is among the best five.
        bin_images: int64, shape (15,): images by confidence.
        bin_correct: int64, shape (15,): correct ones among them.
        bin_confidence: int64, shape (15,): sum of their confidences in units of 2^-32.
        kept: number of images that are not rejected.
        kept_correct: number of correct ones among them.
        examples: maps ``label * C + prediction`` of wrong predictions to the first ``EXAMPLES`` images, by position in the
            dataset.
    """

    def __init__(self, classes: int, reject_below: float = 0.0) -> None:
        self.classes = classes
        self.kept = 0
        self.kept_correct = 0
        self._reject_below = reject_below
        self.pairs: Counter[int] = Counter()
        self.top5_correct = 0
        self.bin_images: IntArray = np.zeros(CALIBRATION_BINS, np.int64)
        self.bin_correct: IntArray = np.zeros(CALIBRATION_BINS, np.int64)
        self.bin_confidence: IntArray = np.zeros(CALIBRATION_BINS, np.int64)
        self.examples: dict[int, list[int]] = {}

    def add(
        self,
        labels: IntArray,
        ranked: IntArray,
        confidence: npt.NDArray[np.float32],
        indices: Sequence[int] | None = None,
    ) -> None:
        """Count images.

        Args:
            labels: shape (N,), the correct classes.
            ranked: shape (N, K), the best classes, best first.
            confidence: shape (N,), probability of the best class, 0..1.
            indices: their positions in the dataset; None keeps no examples.
        """
        predicted = ranked[:, 0]
        pairs = labels * self.classes + predicted
        self.pairs.update(pairs.tolist())
        if indices is not None:
            for place in np.flatnonzero(predicted != labels).tolist():
                self._keep_examples(int(pairs[place]), [int(indices[place])])
        self.top5_correct += int((ranked[:, :TOP_K] == labels[:, None]).any(axis=1).sum())
        bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
        np.add.at(self.bin_images, bins, 1)
        np.add.at(self.bin_correct, bins, (predicted == labels).astype(np.int64))
        units = np.rint(confidence.astype(np.float64) * CONFIDENCE_UNITS).astype(np.int64)
        np.add.at(self.bin_confidence, bins, units)
        kept = confidence >= self._reject_below
        self.kept += int(kept.sum())
        self.kept_correct += int((kept & (predicted == labels)).sum())

    def merge(self, other: Tally) -> None:
        """Add the counts of another part; the order of the parts does not change the sums."""
        self.pairs.update(other.pairs)
        self.top5_correct += other.top5_correct
        self.bin_images += other.bin_images
        self.bin_correct += other.bin_correct
        self.bin_confidence += other.bin_confidence
        self.kept += other.kept
        self.kept_correct += other.kept_correct
        for pair, indices in other.examples.items():
            self._keep_examples(pair, indices)

    def _keep_examples(self, pair: int, indices: list[int]) -> None:
        self.examples[pair] = sorted([*self.examples.get(pair, ()), *indices])[:EXAMPLES]

    @property
    def confusion(self) -> IntArray:
        """The images by label (row) and prediction (column): int64, shape (C, C)."""
        counts = np.zeros(self.classes**2, np.int64)
        counts[list(self.pairs.keys())] = list(self.pairs.values())
        return counts.reshape(self.classes, self.classes)

    @property
    def images(self) -> int:
        """Number of counted images."""
        return int(self.bin_images.sum())

    @property
    def correct(self) -> int:
        """Number of images with the correct best class."""
        return int(self.bin_correct.sum())

    @property
    def expected_calibration_error(self) -> float:
        """Mean over the bins of |accuracy - confidence|, weighted by images; all images count, also rejected ones.

        The bins are 15 of equal width over 0..1, open at the lower end: bin b holds the images whose best class has a
        probability in (b/15, (b+1)/15], and the first one 0 too. Accuracy and confidence are means over a bin's images. Source: C. Guo et al., "On Calibration of Modern Neural Networks", 2017, equation 3.
        """
        gaps = np.abs(self.bin_correct * CONFIDENCE_UNITS - self.bin_confidence)
        return int(gaps.sum()) / (max(self.images, 1) * CONFIDENCE_UNITS)
