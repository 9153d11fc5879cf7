"""Measures the difference between two computations of the same outputs, for the parity gates."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from clipmlu.bundle.manifest import ParityRecord
from clipmlu.specs import Precision, TowerName

FLOAT32_TOLERANCE = 1e-5
"""Allowed absolute difference of an element of a unit-norm embedding, both sides in float32."""

FLOAT32_MIN_COSINE = 0.99999
"""Smallest allowed cosine similarity of two embeddings of the same input, both sides in float32."""

MIN_COSINE = {
    Precision.FORCE_FLOAT32: FLOAT32_MIN_COSINE,
    Precision.FORCE_FLOAT16: 0.999,
    Precision.FORCE_BFLOAT16: 0.99,
    Precision.QINT16_MIXED_FLOAT32: 0.99,
    Precision.QINT16_MIXED_FLOAT16: 0.99,
    Precision.QINT8_MIXED_FLOAT32: 0.9,
    Precision.QINT8_MIXED_FLOAT16: 0.9,
}
"""Smallest allowed cosine similarity of a compiled embedding and its float32 reference. A working graph reaches it, a
broken one (overflow in binary16, a wrong scale) does not. It does not guarantee an accuracy; measure that.
"""

MIN_AGREEMENT = {
    Precision.FORCE_FLOAT32: 0.98,
    Precision.FORCE_FLOAT16: 0.9,
    Precision.FORCE_BFLOAT16: 0.9,
    Precision.QINT16_MIXED_FLOAT32: 0.9,
    Precision.QINT16_MIXED_FLOAT16: 0.85,
    Precision.QINT8_MIXED_FLOAT32: 0.6,
    Precision.QINT8_MIXED_FLOAT16: 0.6,
}
"""Smallest allowed share of images with the same best class as in float32. A broken graph is below it (a binary16 build
of an early SDK fell from 0.617 to 0.333 top-1), the normal loss of a mode is above it.
"""

_CHUNK_ROWS = 4096  # float64 copies of this many rows at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference between two arrays of rows.

    Attributes:
        max_abs_diff: largest absolute difference of any element; infinite if the shapes differ or an element of
            either side is not finite, so that no bound is met by accident. 0.0 for no rows.
        min_cosine: smallest cosine similarity of any two rows of the same index; -1.0 if ``max_abs_diff`` is
            infinite. 1.0 for no rows.
    """

    max_abs_diff: float
    min_cosine: float


def measure_difference(reference: npt.NDArray[Any], measured: npt.NDArray[Any]) -> Difference:
    """Compare two arrays row by row, in float64.

    Args:
        reference: shape (N, D), any real dtype.
        measured: the same shape; another shape gives an infinite difference.

    Returns:
        The largest difference and the smallest cosine. Two rows of zeros have the cosine 1, a row of zeros and any
        other row the cosine 0.
    """
    if reference.shape != measured.shape or reference.ndim != 2:
        return Difference(max_abs_diff=math.inf, min_cosine=-1.0)
    max_abs_diff, min_cosine = 0.0, 1.0
    for start in range(0, len(reference), _CHUNK_ROWS):
        expected = reference[start : start + _CHUNK_ROWS].astype(np.float64)
        found = measured[start : start + _CHUNK_ROWS].astype(np.float64)
        if not (np.isfinite(expected).all() and np.isfinite(found).all()):
            return Difference(max_abs_diff=math.inf, min_cosine=-1.0)
        max_abs_diff = max(max_abs_diff, float(np.abs(expected - found).max(initial=0.0)))
        min_cosine = min(min_cosine, float(_cosines(expected, found).min(initial=1.0)))
    return Difference(max_abs_diff=max_abs_diff, min_cosine=min_cosine)


def compare_outputs(
    tower: TowerName,
    output: str,
    reference: npt.NDArray[Any],
    measured: npt.NDArray[Any],
    *,
    batch_size: int,
    allowed: float,
) -> ParityRecord:
    """Measure the difference of one output and return its record.

    Args:
        tower: name of the graph; only outputs of ``image`` and ``text`` are embeddings, which have a cosine.
        output: name of the output.
        reference: shape (N, D), any real dtype.
        measured: the same shape.
        batch_size: rows of the compared batch.
        allowed: allowed absolute difference of an element.
    """
    difference = measure_difference(reference, measured)
    return ParityRecord(
        tower=tower,
        output=output,
        batch_size=batch_size,
        max_abs_diff=difference.max_abs_diff,
        min_cosine=None if tower == "joint" else difference.min_cosine,
        allowed_abs_diff=allowed,
    )


def is_within(record: ParityRecord, min_cosine: float) -> bool:
    """Return whether the measured values of a record are within its allowed difference and a smallest cosine.

    Outputs other than embeddings have no cosine; for them ``min_cosine`` is ignored.
    """
    cosine_is_within = record.min_cosine is None or record.min_cosine >= min_cosine
    return record.max_abs_diff <= record.allowed_abs_diff and cosine_is_within


def allowed_embedding_difference(precision: Precision, min_cosine: float) -> float:
    """Return the allowed absolute difference of an element of a unit-norm embedding.

    Args:
        precision: arithmetic of the measured side; the reference is float32.
        min_cosine: smallest allowed cosine similarity; the distance of two unit vectors with cosine c is sqrt(2 - 2c).
    """
    if precision is Precision.FORCE_FLOAT32 and min_cosine >= FLOAT32_MIN_COSINE:
        return FLOAT32_TOLERANCE
    return math.sqrt(max(0.0, 2.0 - 2.0 * min_cosine))


def allowed_logit_difference(tolerance: float, logit_scale: float) -> float:
    """Return the allowed absolute difference of a logit, given that of an embedding's element.

    A logit is a cosine similarity times the logit scale (plus a constant), so its error grows with the scale; a scale
    below 1 does not reduce the bound.

    Args:
        tolerance: allowed difference of an embedding's element.
        logit_scale: the multiplier itself, not its logarithm.
    """
    return tolerance * max(logit_scale, 1.0)


def _cosines(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = (first * second).sum(axis=1)
    both_zero = ~first.any(axis=1) & ~second.any(axis=1)
    cosines = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
    return np.where(both_zero, 1.0, np.minimum(cosines, 1.0))
