"""What two bundles make of the same images: embeddings, best classes, and which of them changed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipmlu.classify.classifier import rank_classes
from clipmlu.data.class_names import distinct_names
from clipmlu.data.datasets import Dataset
from clipmlu.data.images import content_digest
from clipmlu.embed.encoder import FloatArray
from clipmlu.embed.image_graph import ImageGraph
from clipmlu.embed.images import item_from_dataset, run_items
from clipmlu.errors import InputError, OverlapError
from clipmlu.measure.samples import SkippedImage
from clipmlu.measure.statistics import mcnemar_p_value
from clipmlu.specs import Spec

FLIPS_SHOWN = 20
_NO_CLASS = -1  # of an image whose embedding is not finite

IntArray = npt.NDArray[np.int64]


class EmbeddingComparison(Spec, frozen=True, kw_only=True):
    """How the embeddings of two sides differ, as their own runtimes compute them.

    Attributes:
        rows: embeddings compared: of images, or of classes; or the logits of so many images.
        mean_cosine: mean cosine similarity of two embeddings of the same; None where one is not finite.
        min_cosine: the smallest one, or None.
        snr_db: energy of the reference over energy of the difference in dB; None where there is no difference, or one
            embedding is not finite.
        max_abs_diff: the largest difference of an element, of unit-norm embeddings or of logits; None where one is not finite.
        non_finite: measured embeddings with NaN or infinity in them.
    """

    rows: int
    mean_cosine: float | None
    min_cosine: float | None
    snr_db: float | None
    max_abs_diff: float | None
    non_finite: int


class FlippedImage(Spec, frozen=True, kw_only=True):
    """An image that the two sides take for different classes; a class is None where the embedding is not finite."""

    id: str
    class_name: str
    predicted: str | None
    reference: str | None


class PredictionComparison(Spec, frozen=True, kw_only=True):
    """What two sides take the images for.

    Attributes:
        images: images that both classified.
        classes: classes to choose from.
        agreement: share of images of the same best class, 0..1.
        top1: share of images that the measured side classifies rightly.
        reference_top1: the same of the reference.
        right_to_wrong: images that only the reference classifies rightly.
        wrong_to_right: images that only the measured side classifies rightly.
        wrong_to_wrong: images that both classify wrongly, and differently.
        mcnemar_p: exact two-sided p-value of McNemar's test that both are equally good.
        flips: the first images that they take for different classes.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedded:
    """Images that were embedded, in the order of the dataset's indices.

    Attributes:
        indices: positions in the dataset, of those that could be read.
        rows: what the graph gives for them, float32, shape (N, D): embeddings, or logits of the joint layout.
        skipped: images that could not be read.
        overlap: images that the overlap check knew.
    """

    indices: tuple[int, ...]
    rows: FloatArray
    skipped: tuple[SkippedImage, ...]
    overlap: int


def embed_dataset(
    graph: ImageGraph,
    dataset: Dataset,
    indices: Sequence[int],
    *,
    batch_size: int | None = None,
    seen: frozenset[str] = frozenset(),
    allow_overlap: bool = False,
    on_progress: Callable[[int], None] = lambda _count: None,
) -> Embedded:
    """Run images of a dataset through a graph.

    Args:
        graph: the image tower, or what a classifier scores with.
        dataset: the images.
        indices: which of them.
        batch_size: images per batch; None for the bundle's own.
        seen: content digests of images that a bundle was calibrated with.
        allow_overlap: count such images instead of refusing them.
        on_progress: called with the number of images done since the last call.

    Raises:
        InputError: not one image could be read.
        OverlapError: an image is among ``seen``.
        ShapeError: the bundle does not take such batches.
    """
    found: list[str] = []

    def check(key: str, image: Image.Image) -> None:
        if seen and content_digest(image) in seen:
            if not allow_overlap:
                raise OverlapError(
                    f"Image '{key}' is one that a compared bundle was calibrated with. "
                    "Compare on others, or add --allow-overlap, which marks the report."
                )
            found.append(key)

    good: list[int] = []
    rows: list[FloatArray] = []
    skipped: list[SkippedImage] = []
    items = (item_from_dataset(dataset, index, check) for index in indices)
    outcomes = run_items(graph, items, batch_size=batch_size)
    for index, outcome in zip(indices, outcomes, strict=True):
        if outcome.row is None:
            skipped.append(SkippedImage(id=outcome.item.id, reason=str(outcome.error)))
        else:
            good.append(index)
            rows.append(outcome.row)
        on_progress(1)
    if not rows:
        raise InputError(
            f"Not one of the {len(indices)} images of '{dataset.name}' could be read. First: {skipped[0].reason}"
        )
    return Embedded(indices=tuple(good), rows=np.stack(rows), skipped=tuple(skipped), overlap=len(found))


def predict_classes(embeddings: FloatArray, class_embeddings: FloatArray) -> IntArray:
    """The best class of each image, int64, shape (N,); -1 where no class can be told, for want of finite numbers."""
    with np.errstate(invalid="ignore", over="ignore"):
        similarities = embeddings @ class_embeddings.T
    return best_classes(similarities)


def best_classes(similarities: FloatArray) -> IntArray:
    """As ``predict_classes``, for similarities or logits, shape (N, C)."""
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
    """Cosine similarity of each row with the same row of the other, at most 1; 0 for a row of zeros."""
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = (first * second).sum(axis=1)
    cosines: npt.NDArray[np.float64] = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
    return np.minimum(cosines, 1.0)


def compare_predictions(
    dataset: Dataset, indices: Sequence[int], predicted: IntArray, reference: IntArray
) -> PredictionComparison:
    """Compare the best classes of the same images.

    Args:
        dataset: where the images are from.
        indices: their positions in it.
        predicted: what the measured side takes them for, shape (N,), of ``predict_classes``.
        reference: what the reference takes them for.
    """
    labels = np.array([dataset.label(index) for index in indices], np.int64)
    right, reference_right = predicted == labels, reference == labels
    differ = np.flatnonzero(predicted != reference)
    lost, won = int((reference_right & ~right).sum()), int((right & ~reference_right).sum())
    names = distinct_names(dataset.class_names)

    def name(number: int) -> str | None:
        return None if number == _NO_CLASS else names[number]

    flips = [
        FlippedImage(
            id=dataset.key(indices[row]),
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
