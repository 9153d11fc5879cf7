"""Embedding images of a labelled dataset, and ranking their classes.

The accuracy counts the ranks, a comparison compares them, and a search evaluates with them. ``embed_groups``
processes a dataset batch by batch; ``embed_dataset`` keeps all rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipmlu.classify.classifier import ZeroShotClassifier
from clipmlu.classify.probabilities import rank_classes
from clipmlu.clock import StageClock
from clipmlu.data.datasets import Dataset
from clipmlu.embed.image_graph import ImageGraph
from clipmlu.embed.images import run_batches, run_groups
from clipmlu.embed.items import ImageItem, RowBatch, item_from_dataset
from clipmlu.embed.rows import FloatArray
from clipmlu.errors import InputError
from clipmlu.measure.samples import SkippedImage

IntArray = npt.NDArray[np.int64]


class IndexGroup(NamedTuple):
    """The images of one batch.

    Attributes:
        indices: positions in the dataset.
        check: called with key and image of each image, from several threads; its exceptions end the run.
    """

    indices: Sequence[int]
    check: Callable[[str, Image.Image], object] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddedImages:
    """Embedded images, in the order of the requested indices.

    Attributes:
        indices: positions in the dataset of the N readable images.
        labels: their classes, int64, shape (N,).
        rows: the graph's results, float32, shape (N, D): embeddings, or logits of the joint layout.
        skipped: images that could not be read.
    """

    indices: tuple[int, ...]
    labels: IntArray
    rows: FloatArray
    skipped: tuple[SkippedImage, ...]

    @property
    def taken(self) -> int:
        """Number of images, including skipped ones."""
        return len(self.indices) + len(self.skipped)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankedImages:
    """A classifier's results for N images.

    Attributes:
        logits: float32, shape (N, C).
        ranked: the best K classes of each image, best first, int64, shape (N, K).
    """

    logits: FloatArray
    ranked: IntArray

    @property
    def predicted(self) -> IntArray:
        """The best class of each image, shape (N,)."""
        return self.ranked[:, 0]


def embed_groups(
    graph: ImageGraph,
    dataset: Dataset,
    groups: Iterable[IndexGroup],
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    clock: StageClock | None = None,
) -> Generator[EmbeddedImages, None, None]:
    """Run images of a dataset through a graph, lazily: one value for each group, in order.

    Args:
        graph: the image tower, or the scorer of a classifier.
        dataset: the images.
        groups: the images of each batch.
        batch_size: largest number of images per batch; None for the bundle's own.
        workers: threads that read, decode and preprocess; None for all CPUs.
        clock: records the time of the stages before the device.

    Raises:
        ShapeError: the bundle does not support the batch size.
    """
    under_way: deque[IndexGroup] = deque()

    def items() -> Iterator[list[ImageItem]]:
        for group in groups:
            under_way.append(group)
            yield [item_from_dataset(dataset, index, group.check) for index in group.indices]

    running = run_groups(graph, items(), batch_size=batch_size, workers=workers, clock=clock)
    with contextlib.closing(running) as batches:
        for batch in batches:
            yield _embedded([batch], dataset, under_way.popleft().indices)


def embed_dataset(
    graph: ImageGraph,
    dataset: Dataset,
    indices: Sequence[int],
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    check: Callable[[str, Image.Image], object] | None = None,
    skip_unreadable: bool = True,
    on_images: Callable[[int], object] = lambda _count: None,
) -> EmbeddedImages:
    """Run images of a dataset through a graph and return the rows of all of them.

    Args:
        graph: see ``embed_groups``.
        dataset: the images.
        indices: positions of the images.
        batch_size: images per batch; None for the bundle's own.
        workers: see ``embed_groups``.
        check: see ``IndexGroup``.
        skip_unreadable: list images that cannot be read in ``skipped``; False raises the first error.
        on_images: called with the number of images of each batch when it is done.

    Raises:
        InputError: no image can be read, or one cannot and ``skip_unreadable`` is False.
        ShapeError: the bundle does not support the batch size.
    """
    items = (item_from_dataset(dataset, index, check) for index in indices)
    batches = []
    for batch in run_batches(graph, items, batch_size=batch_size, workers=workers):
        if batch.errors and not skip_unreadable:
            raise next(iter(batch.errors.values()))
        batches.append(batch)
        on_images(len(batch.items))
    found = _embedded(batches, dataset, indices)
    check_any_read(dataset, len(found.indices), found.skipped)
    return found


def rank_images(classifier: ZeroShotClassifier, rows: FloatArray, top_k: int) -> RankedImages:
    """Rank the classes for embedded images.

    Args:
        classifier: the classifier of the rows.
        rows: float32, shape (N, D), of ``EmbeddedImages``.
        top_k: classes per image; at most all classes are returned.

    Raises:
        InputError: a row holds NaN or infinity.
    """
    logits = classifier.logits(rows)
    return RankedImages(logits=logits, ranked=rank_classes(logits, top_k).astype(np.int64))


def check_any_read(dataset: Dataset, read: int, skipped: Sequence[SkippedImage]) -> None:
    """Check that at least one image of a dataset was read.

    Args:
        dataset: the images.
        read: number of readable images.
        skipped: the unreadable ones.

    Raises:
        InputError: ``read`` is 0; the message gives the first error.
    """
    if read == 0:
        raise InputError(
            f"Not one of the {len(skipped)} images of '{dataset.name}' could be read. First: {skipped[0].reason}"
        )


def _embedded(batches: Iterable[RowBatch], dataset: Dataset, indices: Sequence[int]) -> EmbeddedImages:
    batches = list(batches)
    items = [item for batch in batches for item in batch.items]
    errors = [batch.errors.get(position) for batch in batches for position in range(len(batch.items))]
    good = tuple(index for index, error in zip(indices, errors, strict=True) if error is None)
    return EmbeddedImages(
        indices=good,
        labels=np.array([dataset.label(index) for index in good], np.int64),
        rows=np.concatenate([batch.rows for batch in batches]),
        skipped=tuple(
            SkippedImage(id=item.id, reason=str(error))
            for item, error in zip(items, errors, strict=True)
            if error is not None
        ),
    )
