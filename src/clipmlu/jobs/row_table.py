"""Makes the rows of a shard from the batches of its images; each batch is reduced to what is stored when it is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from clipmlu.classify.classifier import ZeroShotClassifier
from clipmlu.data.picture import Size
from clipmlu.embed.items import RowBatch
from clipmlu.jobs.rows import RowSchema, ShardRows


class RowPart(NamedTuple):
    """The rows of one batch; see ``ShardRows``."""

    ids: list[str]
    sizes: list[Size | None]
    errors: list[str | None]
    embeddings: npt.NDArray[np.floating] | None
    classes: npt.NDArray[np.int32] | None
    scores: npt.NDArray[np.float32] | None


class RowTable:
    """Makes rows.

    Args:
        schema: columns of the rows.
        classifier: ranks the classes; None if the job does not classify.
    """

    def __init__(self, schema: RowSchema, classifier: ZeroShotClassifier | None) -> None:
        self._schema = schema
        self._classifier = classifier
        self._top_k = schema.top_k or 0

    def part(self, batch: RowBatch) -> RowPart:
        """Return the rows of a batch."""
        count = len(batch.items)
        good = [place for place in range(count) if place not in batch.errors]
        embeddings = classes = scores = None
        if self._schema.embedding_dim is not None:
            embeddings = np.full((count, self._schema.embedding_dim), np.nan, self._schema.embedding_dtype)
            embeddings[good] = batch.rows
        if self._classifier is not None:
            classes = np.full((count, self._top_k), -1, np.int32)
            scores = np.full((count, self._top_k), np.nan, np.float32)
            if good:
                classes[good], scores[good] = self._classifier.rank_rows(batch.rows, self._top_k)
        errors = [None if (error := batch.errors.get(place)) is None else str(error) for place in range(count)]
        sizes = [None if place in batch.errors else size for place, size in enumerate(batch.sizes)]
        return RowPart([item.id for item in batch.items], sizes, errors, embeddings, classes, scores)

    def join(self, parts: Sequence[RowPart]) -> ShardRows:
        """Return the rows of a shard."""
        ids = [name for part in parts for name in part.ids]
        sizes = [size or (None, None) for part in parts for size in part.sizes]
        schema = self._schema
        return ShardRows(
            ids=ids,
            widths=[width for width, _ in sizes],
            heights=[height for _, height in sizes],
            errors=[error for part in parts for error in part.errors],
            embeddings=_joined([part.embeddings for part in parts], schema.embedding_dim, schema.embedding_dtype),
            classes=_joined([part.classes for part in parts], schema.top_k, "int32"),
            scores=_joined([part.scores for part in parts], schema.top_k, "float32"),
        )


def _joined(arrays: Sequence[npt.NDArray[Any] | None], width: int | None, dtype: str) -> npt.NDArray[Any] | None:
    if width is None:
        return None
    return np.concatenate([np.zeros((0, width), dtype), *(array for array in arrays if array is not None)])
