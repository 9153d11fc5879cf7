"""From logits to probabilities and to ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from clipmlu.embed.rows import FloatArray

_CLASSES_SORTED_WHOLE = 512


def sigmoid(logits: FloatArray) -> FloatArray:
    """Return the probability of each class by itself, shape of ``logits``."""
    small = np.exp(-np.abs(logits))  # this form never computes the exponential of a large positive number
    return np.where(logits >= 0, 1 / (1 + small), small / (1 + small))


def softmax(logits: FloatArray) -> FloatArray:
    """Return probabilities over the classes, shape (N, C); each row has the sum 1."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores: FloatArray = exponentials / exponentials.sum(axis=1, keepdims=True)
    return scores


def rank_classes(logits: FloatArray, k: int) -> npt.NDArray[np.intp]:
    """Return the indices of the ``k`` largest logits per row, best first; among equal ones the lower index is first."""
    classes = logits.shape[1]
    if k >= classes or classes <= _CLASSES_SORTED_WHOLE:
        return np.argsort(-logits, axis=1, kind="stable")[:, :k]
    # Sort only the logits that are at least as large as the k-th best.
    ranked = np.empty((len(logits), k), np.intp)
    floors = np.partition(logits, classes - k, axis=1)[:, classes - k]
    for row, (values, floor) in enumerate(zip(logits, floors, strict=True)):
        candidates = np.flatnonzero(values >= floor)
        ranked[row] = candidates[np.argsort(-values[candidates], kind="stable")[:k]]
    return ranked
