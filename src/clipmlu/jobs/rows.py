"""The results of one shard: one row for every image, also for those that could not be read."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import numpy.typing as npt

from clipmlu.specs import PositiveInt, Spec

EmbeddingDtype = Literal["float32", "float16"]


class RowSchema(Spec, frozen=True, kw_only=True):
    """The columns of a job's rows, besides id, width, height and error.

    Attributes:
        embedding_dim: elements of an embedding; None if the job stores none.
        embedding_dtype: dtype of the stored embeddings.
        class_names: one per class; None if the job does not classify.
        top_k: classes per image; None if the job does not classify.
    """

    embedding_dim: PositiveInt | None = None
    embedding_dtype: EmbeddingDtype = "float32"
    class_names: tuple[str, ...] | None = None
    top_k: PositiveInt | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardRows:
    """Columns of N rows, in the order of the input.

    Attributes:
        ids: names of the images.
        widths: widths in pixels; None for images that could not be read.
        heights: heights in pixels; None for images that could not be read.
        errors: why an image could not be read, or None.
        embeddings: float32 or float16, shape (N, D), unit L2 norm, NaN in rows with an error; None if the job stores none.
        classes: int32, shape (N, K): the best classes, best first, -1 in rows with an error; None if the job does not classify.
        scores: float32, shape (N, K): their probabilities, NaN in rows with an error; None if the job does not classify.

    Texts that no file can hold, since they are not valid Unicode, are stored with escapes, as ``backslashreplace`` gives them.
    """

    ids: list[str]
    widths: list[int | None]
    heights: list[int | None]
    errors: list[str | None]
    embeddings: npt.NDArray[np.floating] | None
    classes: npt.NDArray[np.int32] | None
    scores: npt.NDArray[np.float32] | None

    def __post_init__(self) -> None:
        """Make all texts valid Unicode."""
        object.__setattr__(self, "ids", list(map(_valid_text, self.ids)))
        object.__setattr__(self, "errors", [error and _valid_text(error) for error in self.errors])


def _valid_text(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
