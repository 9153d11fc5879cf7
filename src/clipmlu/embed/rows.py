"""Rows that go into the graphs of a compiled bundle and come out of them: their types, checks and padding."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from clipmlu.arguments import shown
from clipmlu.backends import PendingBatch
from clipmlu.bundle.runnable import RunnableModel
from clipmlu.data.feeds import Array
from clipmlu.errors import InputError, ResultError, SessionError, ShapeError
from clipmlu.specs import TowerName

FloatArray = npt.NDArray[np.float32]
# Squared norms: rounding in any precision keeps a unit vector far inside these limits.
_SMALLEST_NORM, _LARGEST_NORM = 0.25, 4.0
PixelArray = FloatArray | npt.NDArray[np.uint8]


class PendingRows(Protocol):
    """Rows that are being computed: embeddings, or logits."""

    def result(self) -> FloatArray:
        """Wait and return the rows, float32, shape (N, D), owned by the caller; embeddings have unit L2 norm per row."""


class TrimmedRows:
    """A pending batch; its result is trimmed and checked."""

    def __init__(
        self,
        pending: PendingBatch,
        trim: Callable[[dict[str, Array]], Array],
        check: Callable[[FloatArray], None],
    ) -> None:
        self._pending = pending
        self._trim = trim
        self._check = check
        self._checked = False

    def result(self) -> FloatArray:
        """Wait and return the rows of the batch without its padding."""
        trimmed: FloatArray = np.asarray(self._trim(self._pending.result()), dtype=np.float32)
        if not self._checked:  # the caller may change the array afterwards
            self._check(trimmed)
            self._checked = True
        return trimmed


def check_array(value: object, what: str) -> Array:
    """Return a value if it is an array with rows.

    Raises:
        ShapeError: it is none.
    """
    if not isinstance(value, np.ndarray) or not value.ndim:
        raise ShapeError(f"{what} is {shown(value)}; expected a NumPy array with one row for each input.")
    return value


def check_finite(pixel_values: PixelArray) -> None:
    """Check that pixels are finite.

    Raises:
        InputError: one is NaN or infinite.
    """
    if pixel_values.dtype.kind != "f" or np.isfinite(pixel_values).all():
        return
    row = int(np.flatnonzero(~np.isfinite(pixel_values).reshape(len(pixel_values), -1).all(axis=1))[0])
    raise InputError(f"pixel_values[{row}] holds NaN or infinity; expected pixels, normalised as the manifest says.")


def check_rows(model: RunnableModel, rows: int, *, exact: bool) -> None:
    """Check that a model was compiled for batches of ``rows``; if not ``exact``, a static batch may be padded.

    Raises:
        ShapeError: it was compiled for others.
    """
    facts = model.compilation
    if facts.dynamic_shape:
        if not 1 <= rows <= facts.max_batch:
            raise ShapeError(
                f"Batch of {rows} is outside 1..{facts.max_batch}, for which bundle '{model.path}' was compiled. "
                "Compile with a larger --max-batch, or use smaller batches."
            )
    elif rows > facts.batch_size or rows < 1 or (exact and rows != facts.batch_size):
        raise ShapeError(
            f"Batch of {rows} does not fit bundle '{model.path}', which was compiled with the static batch size "
            f"{facts.batch_size}. Leave the batch size out, or compile with --dynamic-shape."
        )


def check_embedding_shape(model: RunnableModel, tower: TowerName, embeddings: FloatArray) -> None:
    """Check that a tower's results have the shape of embeddings.

    Raises:
        SessionError: they have another one.
    """
    size = model.facts.embedding_dim
    if embeddings.shape[1:] != (size,):
        raise SessionError(
            f"Bundle '{model.path}' ({tower} tower) gives an array of shape {embeddings.shape}; expected embeddings of {size}."
        )


def check_unit_norms(model: RunnableModel, tower: TowerName, embeddings: FloatArray) -> None:
    """Check that embeddings are unit vectors; a damaged model, or one that overflows in its precision, gives others.

    Raises:
        ResultError: one is not, or has NaN.
    """
    norms = np.einsum("ij,ij->i", embeddings, embeddings)
    wrong = np.flatnonzero(~((norms > _SMALLEST_NORM) & (norms < _LARGEST_NORM)))  # also true for NaN
    if wrong.size:
        row = int(wrong[0])
        raise ResultError(
            f"Bundle '{model.path}' ({tower} tower) gives no unit vector for {wrong.size} of {len(embeddings)} inputs of a batch, "
            f"the first one at {row} (norm {math.sqrt(norms[row]):g}). {_why_wrong(model, tower)}"
        )


def check_logits(model: RunnableModel, logits: FloatArray) -> None:
    """Check that the fused graph's results are finite.

    Raises:
        ResultError: one is not.
    """
    wrong = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if wrong.size:
        raise ResultError(
            f"Bundle '{model.path}' (fused graph) gives NaN or infinite logits for {wrong.size} of {len(logits)} images "
            f"of a batch, the first one at {wrong[0]}. {_why_wrong(model, 'joint')}"
        )


def _why_wrong(model: RunnableModel, tower: TowerName) -> str:
    return (
        "A weight is damaged, or a value is too large for the precision "
        f"{model.compilation.placement(tower).precision.value}: compile in another one, or export the model again."
    )


def pad_rows(rows: Array, count: int) -> Array:
    """Repeat the last row up to ``count`` rows, so that padding is valid input."""
    if len(rows) == count:
        return rows
    return np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), axis=0)])
