"""GPTQ: chooses the integers of a weight so that the result of its layer changes little, not each weight by itself.

The inputs of a weight are rounded one after the other, and the error of each is compensated by those that are not rounded
yet. Source: E. Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022,
algorithm 1, with the order of "act-order": the input with the largest second moment first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from clipmlu.graph.quantisation.parameters import Array

DAMPING = 0.01
"""Share of the mean diagonal of the moments that is added to the diagonal; the paper's value."""

_BLOCK = 64  # inputs that are rounded before their errors are spread beyond the block

Doubles = npt.NDArray[np.float64]


def choose_levels(rows: Array, moments: Array, scale: Array, most: int) -> npt.NDArray[np.int32]:
    """Choose the integers of a layer's weights.

    The largest weight of each scale gets the largest integer, so that the scale can be derived from the result.

    Args:
        rows: float weights, shape (outputs, inputs); finite.
        moments: second moments of the inputs ``x.T @ x``, shape (inputs, inputs); scaled by any positive number. Weights of
            an input whose moment is 0 or not finite are rounded to the nearest integer.
        scale: size of a step, shape (outputs,), or (1,) if all outputs share it.
        most: largest magnitude of the integers.

    Returns:
        int32, shape (outputs, inputs).
    """
    order, spread = _error_spread(np.asarray(moments, np.float64))
    steps = np.broadcast_to(np.asarray(scale, np.float64), len(rows))
    # Inputs are the first axis here, so that those of one step lie side by side in memory.
    fixed = _largest(rows, len(scale) == 1).T[order]
    left = np.asarray(rows.T, np.float64)[order]
    ends = np.where(left < 0, -most, most)
    levels = np.empty(left.shape, np.int32)
    for start in range(0, len(left), _BLOCK):
        stop = min(start + _BLOCK, len(left))
        errors = np.empty((stop - start, len(rows)))
        for number in range(start, stop):
            nearest = np.clip(np.rint(left[number] / steps), -most, most)
            levels[number] = np.where(fixed[number], ends[number], nearest)
            error = (left[number] - levels[number] * steps) / spread[number, number]
            left[number + 1 : stop] -= np.outer(spread[number, number + 1 : stop], error)
            errors[number - start] = error
        left[stop:] -= spread[start:stop, stop:].T @ errors
    result = np.empty_like(levels)
    result[order] = levels
    return result.T


def _largest(rows: Array, shared: bool) -> npt.NDArray[np.bool_]:
    """Mark the first of the largest weights of each scale."""
    sizes = np.abs(rows)
    marked = np.zeros(rows.shape, bool)
    if shared:
        marked.flat[int(np.argmax(sizes))] = True
    else:
        marked[np.arange(len(rows)), np.argmax(sizes, axis=1)] = True
    return marked & (sizes > 0)


def _error_spread(moments: Doubles) -> tuple[npt.NDArray[np.int64], Doubles]:
    """Return the order of the inputs, and the upper factor U of the damped moments' inverse ``U.T @ U`` in that order."""
    diagonal = np.diagonal(moments)
    alive = np.isfinite(moments).all(axis=1) & (diagonal > 0)
    damped = np.where(alive[:, None] & alive[None, :], moments, 0.0)
    mean = diagonal[alive].mean() if alive.any() else 1.0
    damped[np.diag_indices_from(damped)] += np.where(alive, DAMPING * mean, mean)
    order = np.argsort(-np.diagonal(damped), kind="stable")
    damped = damped[np.ix_(order, order)]
    # With the inputs reversed, the lower Cholesky factor of the moments is the upper one R with R @ R.T, and U is its inverse.
    upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    return order, _invert_upper(upper)


def _invert_upper(upper: Doubles) -> Doubles:
    """Return the inverse of an upper triangular matrix, by halves: an eighth of the work of a general inverse."""
    count = len(upper)
    if count <= _BLOCK:
        return np.asarray(np.linalg.inv(upper))
    half = count // 2
    first, last = _invert_upper(upper[:half, :half]), _invert_upper(upper[half:, half:])
    result = np.zeros_like(upper)
    result[:half, :half], result[half:, half:] = first, last
    result[:half, half:] = -first @ (upper[:half, half:] @ last)
    return result
