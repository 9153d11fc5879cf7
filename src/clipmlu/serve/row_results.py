"""The answers of requests, made of the rows of their images and texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipmlu.classify.classifier import ZeroShotClassifier
from clipmlu.classify.results import Prediction, Predictions
from clipmlu.embed.items import ImageEmbeddings
from clipmlu.embed.rows import FloatArray
from clipmlu.errors import InputError
from clipmlu.serve.requests import ImageInput
from clipmlu.serve.tickets import RowResult, Ticket


def finish_classify(
    ticket: Ticket[Predictions],
    images: Sequence[ImageInput],
    top_k: int,
    rows: Sequence[RowResult],
    classifier: ZeroShotClassifier,
) -> None:
    """Answer a request for classes from the rows of its images; an image that cannot be read is a result with its reason."""
    read = [image.id for image, row in zip(images, rows, strict=True) if not isinstance(row, InputError)]
    ranked: Sequence[Prediction] = ()
    if read:
        stacked = np.stack([row for row in rows if not isinstance(row, InputError)])
        ranked = classifier.predictions_from_rows(stacked, read, top_k=top_k)
    found = iter(ranked)
    ticket.finish(
        Predictions(
            Prediction.failed(image.id, str(row)) if isinstance(row, InputError) else next(found)
            for image, row in zip(images, rows, strict=True)
        )
    )


def finish_embed(
    ticket: Ticket[ImageEmbeddings], width: int, image_rows: Sequence[RowResult], text_rows: Sequence[RowResult]
) -> None:
    """Answer a request for embeddings: rows of the images and then of the texts, NaN for an image that cannot be read."""
    errors = {place: str(row) for place, row in enumerate(image_rows) if isinstance(row, InputError)}
    none = np.full(width, np.nan, np.float32)
    rows = [none if isinstance(row, InputError) else row for row in (*image_rows, *text_rows)]
    ticket.finish(ImageEmbeddings(np.stack(rows) if rows else np.zeros((0, width), np.float32), errors))


def stack_rows(rows: Sequence[RowResult], given: object) -> FloatArray | None:
    """Return rows as float32, shape (N, D); None if nothing was given."""
    if given is None:
        return None
    return np.stack([row for row in rows if not isinstance(row, InputError)])
