"""Comparison of results with expected values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .findings import Array


def compare(got: Any, expected: Array, tolerance: float = 1e-3) -> str:
    """Compare a result with the expected values: ``right``, or how it differs.

    Args:
        got: the result.
        expected: values of the same shape.
        tolerance: allowed difference, relative to the largest expected value or to 1.
    """
    values = np.asarray(got)
    if values.shape != expected.shape:
        return f"wrong: shape {list(values.shape)} instead of {list(expected.shape)}"
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return "wrong: NaN or infinity"
    difference = largest_difference(values, expected)
    limit = tolerance * max(1.0, float(np.abs(expected.astype(np.float64)).max() if expected.size else 0.0))
    return "right" if difference <= limit else f"wrong by up to {difference:.3g}"


def largest_difference(got: Array, expected: Array) -> float:
    """The largest absolute difference; infinity where a value is not finite."""
    with np.errstate(all="ignore"):
        differences = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    if not differences.size:
        return 0.0
    return float(differences.max()) if np.isfinite(differences).all() else float("inf")


def close(got: Array, expected: Array) -> bool:
    """Whether ``compare`` finds a result right."""
    return compare(got, expected) == "right"


def which_values(result: Array, known: Sequence[Array]) -> str:
    """Say whether a result is that of the old or of the new values of an input; ``known`` holds both results."""
    if close(result, known[0]):
        return "the result is that of the old values"
    if close(result, known[1]):
        return "the result is that of the new values"
    return "the result is that of neither the old values nor the new ones"
