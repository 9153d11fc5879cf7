"""Quantisation parameters: scales from ranges, and the algorithms that find a range.

The vendor's algorithms are not public beyond their names and one line each (docs/magicmind-api.md 2.4, 2.10, 7.10):
LINEAR uses the range of the data, EQNM the range that minimises quantisation noise. This module has textbook versions
of them. ``percentile`` and ``entropy`` are clipmlu's additions: the range that holds a share of the values, and the
range whose quantised distribution loses the least information (S. Migacz, "8-bit Inference with TensorRT", GTC 2017).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from clipmlu.specs import TensorQuantisation

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
BINS = 2048
"""Bins of a histogram of magnitudes; a histogram of values has as many on either side of zero."""

_CANDIDATES = 96
_ENTROPY_STEP = 8  # bins between candidate bounds
_ABSENT = 1e-9  # probability used instead of zero before the logarithm


@dataclasses.dataclass(frozen=True)
class Quantisation:
    """The conversion of real numbers to integers: ``round(x / scale) + zero_point``, limited to ``bits`` bits.

    Attributes:
        bits: 8 or 16.
        scale: one number, or one per channel along ``axis``.
        zero_point: 0 if symmetric.
        axis: axis of the scales, or None.
    """

    bits: int
    scale: Floats
    zero_point: int = 0
    axis: int | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the integers."""
        return np.dtype(f"int{self.bits}")

    def record(self, minimum: float, maximum: float) -> TensorQuantisation:
        """Return the stored form, with the range of the parameters."""
        scale = tuple(float(each) for each in self.scale.reshape(-1))
        return TensorQuantisation(
            bits=self.bits,
            scale=scale,
            zero_point=self.zero_point,
            axis=self.axis,
            minimum=float(minimum),
            maximum=float(maximum),
        )

    def levels(self, array: Array) -> Array:
        """Return the integers, of type ``dtype``."""
        limits = np.iinfo(self.dtype)
        scaled = np.rint(np.asarray(array, np.float32) / self._scale_for(array))
        return np.asarray(np.clip(scaled + self.zero_point, limits.min, limits.max), self.dtype)

    def apply(self, array: Array) -> Floats:
        """Quantise and dequantise: the values of ``array`` in integer arithmetic, float32."""
        levels = self.levels(array).astype(np.float32) - np.float32(self.zero_point)
        return np.asarray(levels * self._scale_for(array), np.float32)

    def stored_values(self, levels: Array) -> Floats:
        """Return float weights for which ``for_weights`` finds these parameters, and the same integers again.

        Args:
            levels: symmetric integers; for each scale at least one has the largest magnitude, or all are 0.
        """
        most = 2 ** (self.bits - 1) - 1
        bounds = self._scale_for(levels) * np.float32(most)
        # The product may be rounded to a neighbour of the number that was divided.
        for step in (np.inf, -np.inf):
            neighbour = np.nextafter(bounds, np.float32(step))
            exact = bounds / np.float32(most) == self._scale_for(levels)
            found = neighbour / np.float32(most) == self._scale_for(levels)
            bounds = np.where(found & ~exact, neighbour, bounds)
        values = levels.astype(np.float32) * self._scale_for(levels)
        return np.asarray(np.where(np.abs(levels) == most, np.sign(levels) * bounds, values), np.float32)

    def _scale_for(self, array: Array) -> Array:
        if self.axis is None:
            return self.scale
        shape = [1] * array.ndim
        shape[self.axis] = -1
        return self.scale.reshape(shape)


def symmetric(bits: int, bound: Any, axis: int | None = None) -> Quantisation:
    """Return levels -(2**(bits-1)-1) .. 2**(bits-1)-1 over -bound..bound; with a bound of 0 zeros stay zero."""
    bound = np.asarray(bound, np.float32)
    scale = np.where(bound > 0, bound, 1) / np.float32(2 ** (bits - 1) - 1)
    return Quantisation(bits, np.asarray(scale, np.float32), 0, axis)


def asymmetric(bits: int, low: float, high: float) -> Quantisation:
    """Return all levels over low..high, widened to include zero, which is represented exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / (2**bits - 1)) if high > low else np.float32(1)
    smallest = -(2 ** (bits - 1))
    zero_point = int(np.clip(np.rint(smallest - low / float(scale)), smallest, -smallest - 1))
    return Quantisation(bits, np.asarray(scale, np.float32), zero_point)


def quantisation_of(record: TensorQuantisation) -> Quantisation:
    """Return the parameters of a stored quantisation."""
    scale = np.asarray(record.scale if record.axis is not None else record.scale[0], np.float32)
    return Quantisation(record.bits, scale, record.zero_point, record.axis)


def from_range(bits: int, low: float, high: float, *, centred: bool) -> Quantisation:
    """Return the parameters for a range of activations."""
    return symmetric(bits, max(abs(low), abs(high))) if centred else asymmetric(bits, low, high)


def for_weights(array: Array, bits: int, axis: int | None, *, least_noise: bool) -> Quantisation:
    """Return symmetric parameters for weights, by largest magnitude or by search, per tensor or per channel."""
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
    """Return the clipping bound with the least quantisation noise over a histogram of magnitudes.

    Args:
        counts: occurrences of magnitudes in ``BINS`` equal bins over 0..bound.
        bound: the largest magnitude.
        bits: bits of the integers.
    """
    if bound <= 0:
        return bound
    centres = (np.arange(BINS) + 0.5) * (bound / BINS)
    candidates = bound * np.linspace(1.0, 0.05, _CANDIDATES)
    # Within a bin the magnitudes are assumed to be uniform, so a bin wider than a step adds the step's own noise.
    scales = candidates / (2 ** (bits - 1) - 1)
    clipped = np.maximum(centres[None, :] - candidates[:, None], 0.0)
    noise = np.where(clipped > 0, clipped**2, (scales**2 / 12)[:, None])
    return float(candidates[int(np.argmin(noise @ counts))])


def percentile_range(counts: npt.NDArray[np.int64], bound: float, percentile: float) -> tuple[float, float]:
    """Return the range with equal shares of values outside on the left and on the right.

    Args:
        counts: occurrences of values in ``2 * BINS`` equal bins over -bound..bound.
        bound: the largest magnitude.
        percentile: percentage of the values inside, 0..100.

    Returns:
        Smallest and largest value of the range: edges of bins.
    """
    total = counts.sum()
    outside = total * (100.0 - percentile) / 200.0
    edges = np.linspace(-bound, bound, 2 * BINS + 1)
    below = np.concatenate([[0], np.cumsum(counts)])
    low = int(np.searchsorted(below, outside, side="right")) - 1
    high = int(np.searchsorted(below, total - outside, side="left"))
    return float(edges[max(low, 0)]), float(edges[min(high, 2 * BINS)])


def percentile_bound(counts: npt.NDArray[np.int64], bound: float, percentile: float) -> float:
    """Return the magnitude below which that percentage of a histogram of magnitudes lies, as the edge of a bin."""
    inside = np.searchsorted(np.cumsum(counts), counts.sum() * percentile / 100.0, side="left")
    return float(bound * min(int(inside) + 1, BINS) / BINS)


def entropy_bound(counts: npt.NDArray[np.int64], bound: float, bits: int) -> float:
    """Return the clipping bound whose quantised distribution diverges least from the true one (Kullback-Leibler).

    Args:
        counts: occurrences of magnitudes in ``BINS`` equal bins over 0..bound.
        bound: the largest magnitude.
        bits: bits of the integers; if there are more levels than bins, nothing is clipped.
    """
    levels = 2 ** (bits - 1)
    if bound <= 0 or levels >= BINS:
        return bound
    stops = range(levels, BINS + 1, _ENTROPY_STEP)
    divergences = [_divergence(counts, stop, levels) for stop in stops]
    return float(bound * stops[int(np.argmin(divergences))] / BINS)


def _divergence(counts: npt.NDArray[np.int64], stop: int, levels: int) -> float:
    """Return the divergence of the histogram clipped after ``stop`` bins from the same in ``levels`` levels."""
    kept = counts[:stop].astype(np.float64)
    clipped = kept.copy()
    clipped[-1] += counts[stop:].sum()
    edges = np.arange(levels) * stop // levels
    sums = np.add.reduceat(kept, edges)
    filled = np.add.reduceat((kept > 0).astype(np.float64), edges)
    means = np.divide(sums, filled, out=np.zeros_like(sums), where=filled > 0)
    coarse = np.where(kept > 0, np.repeat(means, np.diff([*edges, stop])), 0.0)
    true, seen = clipped / max(clipped.sum(), 1.0), coarse / max(coarse.sum(), 1.0)
    held = true > 0
    return float((true[held] * np.log(true[held] / np.maximum(seen[held], _ABSENT))).sum())
