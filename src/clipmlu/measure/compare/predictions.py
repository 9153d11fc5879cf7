"""Comparison of two bundles' results for the same images: embeddings, best classes, and changed classes."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from clipmlu.classify.probabilities import rank_classes
from clipmlu.data.class_names import distinct_names
from clipmlu.data.datasets import Dataset
from clipmlu.embed.rows import FloatArray
from clipmlu.measure.ranking import EmbeddedImages, IntArray
from clipmlu.measure.statistics import count_changes, mcnemar_p_value
from clipmlu.specs import Spec

FLIPS_SHOWN = 20
_NO_CLASS = -1  # for an image whose embedding is not finite


class EmbeddingComparison(Spec, frozen=True, kw_only=True):
    """The difference of two sides' embeddings, from their own runtimes.

    Attributes:
        rows: number of compared embeddings of images or classes, or of images with logits.
        mean_cosine: mean cosine similarity of two embeddings of the same input; None if one is not finite.
        min_cosine: the smallest one, or None.
        snr_db: energy of the reference over energy of the difference in dB; None without a difference, or if an
            embedding is not finite.
        max_abs_diff: largest difference of an element, of unit-norm embeddings or of logits; None if one is not finite.
        non_finite: number of measured embeddings with NaN or infinity.
    """

    rows: int
    mean_cosine: float | None
    min_cosine: float | None
    snr_db: float | None
    max_abs_diff: float | None
    non_finite: int


class FlippedImage(Spec, frozen=True, kw_only=True):
    """An image that the two sides classify differently; a class is None if the embedding is not finite."""

    id: str
    class_name: str
    predicted: str | None
    reference: str | None


class PredictionComparison(Spec, frozen=True, kw_only=True):
    """The comparison of two sides' predictions.

    Attributes:
        images: number of images that both classified.
        classes: number of classes.
        agreement: share of images with the same best class, 0..1.
        top1: share of images that the measured side classifies correctly.
        reference_top1: share of images that the reference classifies correctly.
        right_to_wrong: number of images that only the reference classifies correctly.
        wrong_to_right: number of images that only the measured side classifies correctly.
        wrong_to_wrong: number of images that both classify wrongly, as different classes.
        mcnemar_p: exact two-sided p-value of McNemar's test that both are equally good.
        flips: the first images that they classify differently.
    """

    images: int
    classes: int
    agreement: float
    top1: float
    reference_top1: float
    right_to_wrong: int
    wrong_to_right: int
    wrong_to_wrong: int
    mcnemar_p: float
    flips: tuple[FlippedImage, ...]


def predict_classes(embeddings: FloatArray, class_embeddings: FloatArray) -> IntArray:
    """Return the best class of each image, int64, shape (N,); -1 if its similarities are not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        similarities = embeddings @ class_embeddings.T
    return best_classes(similarities)


def best_classes(similarities: FloatArray) -> IntArray:
    """Return the best classes like ``predict_classes``, for similarities or logits, shape (N, C)."""
    best = rank_classes(similarities, 1)[:, 0].astype(np.int64)
    return np.where(np.isfinite(similarities).all(axis=1), best, _NO_CLASS)


def compare_embeddings(measured: FloatArray, reference: FloatArray) -> EmbeddingComparison:
    """Compare embeddings row by row, shape (N, D), N at least 1."""
    found, expected = measured.astype(np.float64), reference.astype(np.float64)
    bad = ~np.isfinite(found).all(axis=1)
    if bad.any() or not np.isfinite(expected).all():
        return EmbeddingComparison(
            rows=len(found),
            mean_cosine=None,
            min_cosine=None,
            snr_db=None,
            max_abs_diff=None,
            non_finite=int(bad.sum()),
        )
    cosines = row_cosines(found, expected)
    error, energy = float(((found - expected) ** 2).sum()), float((expected**2).sum())
    return EmbeddingComparison(
        rows=len(found),
        mean_cosine=float(cosines.mean()),
        min_cosine=float(cosines.min()),
        snr_db=10 * math.log10(energy / error) if error and energy else None,
        max_abs_diff=float(np.abs(found - expected).max()),
        non_finite=0,
    )


def row_cosines(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the cosine similarity of equal rows, at most 1; 0 for a row of zeros."""
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = (first * second).sum(axis=1)
    cosines: npt.NDArray[np.float64] = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
    return np.minimum(cosines, 1.0)


def compare_predictions(
    dataset: Dataset, images: EmbeddedImages, predicted: IntArray, reference: IntArray
) -> PredictionComparison:
    """Compare the best classes of the same images.

    Args:
        dataset: dataset of the images.
        images: the images.
        predicted: classes of the measured side, shape (N,), from ``predict_classes``.
        reference: classes of the reference.
    """
    labels = images.labels
    right, reference_right = predicted == labels, reference == labels
    differ = np.flatnonzero(predicted != reference)
    lost, won = count_changes(reference_right, right)
    names = distinct_names(dataset.class_names)

    def name(number: int) -> str | None:
        return None if number == _NO_CLASS else names[number]

    flips = [
        FlippedImage(
            id=dataset.key(images.indices[row]),
            class_name=names[labels[row]],
            predicted=name(int(predicted[row])),
            reference=name(int(reference[row])),
        )
        for row in differ[:FLIPS_SHOWN]
    ]
    return PredictionComparison(
        images=len(labels),
        classes=len(names),
        agreement=float(np.mean(predicted == reference)),
        top1=float(right.mean()),
        reference_top1=float(reference_right.mean()),
        right_to_wrong=lost,
        wrong_to_right=won,
        wrong_to_wrong=len(differ) - lost - won,
        mcnemar_p=mcnemar_p_value(lost, won),
        flips=tuple(flips),
    )
