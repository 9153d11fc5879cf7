"""Quantisation parameters: from ranges to scales, and the search for the range of least noise.

The vendor's algorithms are not public beyond their names and one line each (docs/magicmind-api.md 2.4, 2.10, 7.10): LINEAR takes
the range of the data, EQNM the one that minimises quantisation noise. What is here is the textbook reading of those words.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
BINS = 2048
"""Bins of the histogram of magnitudes that the search reads."""

_CANDIDATES = 96


@dataclasses.dataclass(frozen=True)
class Quantisation:
    """How real numbers become integers: ``round(x / scale) + zero_point``, cut to ``bits`` bits.

    Attributes:
        bits: 8 or 16.
        scale: one number, or one per channel along ``axis``.
        zero_point: 0 when symmetric.
        axis: of the scales, or None.
    """

    bits: int
    scale: Floats
    zero_point: int = 0
    axis: int | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the integers."""
        return np.dtype(f"int{self.bits}")

    def facts(self) -> dict[str, Any]:
        """JSON for the model's header."""
        scale = self.scale.tolist() if self.axis is not None else float(self.scale)
        return {"bits": self.bits, "scale": scale, "zero_point": self.zero_point, "axis": self.axis}

    def levels(self, array: Array) -> Array:
        """The integers, of type ``dtype``."""
        limits = np.iinfo(self.dtype)
        scaled = np.rint(np.asarray(array, np.float32) / self._scale_for(array))
        return np.asarray(np.clip(scaled + self.zero_point, limits.min, limits.max), self.dtype)

    def apply(self, array: Array) -> Floats:
        """Quantise and come back: what the integer arithmetic sees of ``array``."""
        levels = self.levels(array).astype(np.float32) - np.float32(self.zero_point)
        return np.asarray(levels * self._scale_for(array), np.float32)

    def _scale_for(self, array: Array) -> Array:
        if self.axis is None:
            return self.scale
        shape = [1] * array.ndim
        shape[self.axis] = -1
        return self.scale.reshape(shape)


def symmetric(bits: int, bound: Any, axis: int | None = None) -> Quantisation:
    """Levels -(2**(bits-1)-1) .. 2**(bits-1)-1 over -bound..bound; a bound of 0 leaves zeros as they are."""
    bound = np.asarray(bound, np.float32)
    scale = np.where(bound > 0, bound, 1) / np.float32(2 ** (bits - 1) - 1)
    return Quantisation(bits, np.asarray(scale, np.float32), 0, axis)


def asymmetric(bits: int, low: float, high: float) -> Quantisation:
    """All levels over low..high, widened to hold zero, which is met exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / (2**bits - 1)) if high > low else np.float32(1)
    smallest = -(2 ** (bits - 1))
    zero_point = int(np.clip(np.rint(smallest - low / float(scale)), smallest, -smallest - 1))
    return Quantisation(bits, np.asarray(scale, np.float32), zero_point)


def from_range(bits: int, low: float, high: float, *, centred: bool) -> Quantisation:
    """Parameters for a range of activations."""
    return symmetric(bits, max(abs(low), abs(high))) if centred else asymmetric(bits, low, high)


def for_weights(array: Array, bits: int, axis: int | None, *, least_noise: bool) -> Quantisation:
    """Parameters for weights: always symmetric, by the largest magnitude or by the search, per tensor or per channel."""
    if axis is None:
        rows = np.abs(array).reshape(1, -1)
    else:
        rows = np.abs(np.moveaxis(array, axis, 0)).reshape(array.shape[axis], -1)
    bounds = rows.max(axis=1) if rows.size else np.ones(len(rows), np.float32)
    if least_noise:
        bounds = np.array([_search_row(row, bound, bits) for row, bound in zip(rows, bounds, strict=True)], np.float32)
    return symmetric(bits, bounds if axis is not None else bounds[0], axis)


def _search_row(row: Array, bound: float, bits: int) -> float:
    counts, _ = np.histogram(row, bins=BINS, range=(0.0, float(bound) or 1.0))
    return least_noise_bound(counts, float(bound), bits)


def least_noise_bound(counts: npt.NDArray[np.int64], bound: float, bits: int) -> float:
    """The clipping bound whose quantisation noise over a histogram of magnitudes is least.

    Args:
        counts: occurrences of magnitudes in ``BINS`` equal bins over 0..bound.
        bound: the largest magnitude.
        bits: of the integers.
    """
    if bound <= 0:
        return bound
    centres = (np.arange(BINS) + 0.5) * (bound / BINS)
    candidates = bound * np.linspace(1.0, 0.05, _CANDIDATES)
    # Within a bin the magnitudes are spread evenly, so that a bin wider than a step adds the step's own noise.
    scales = candidates / (2 ** (bits - 1) - 1)
    clipped = np.maximum(centres[None, :] - candidates[:, None], 0.0)
    noise = np.where(clipped > 0, clipped**2, (scales**2 / 12)[:, None])
    return float(candidates[int(np.argmin(noise @ counts))])
