"""Outlier channels: channels of an activation that are so large that one scale for all channels loses accuracy."""

from __future__ import annotations

import numpy as np

from clipmlu.graph.quantisation.parameters import Array

OUTLIER_STRENGTH = 0.5
"""Strength of smoothing for tensors with outlier channels if it is chosen automatically; SmoothQuant's own default."""

_OUTLIER_RATIO = 8.0


def has_outliers(maxima: Array) -> bool:
    """Return whether the largest channel maximum is many times the median of those above zero.

    Args:
        maxima: largest magnitude of each channel, shape (channels,).
    """
    alive = maxima[maxima > 0]
    return bool(alive.size) and bool(alive.max() >= _OUTLIER_RATIO * np.median(alive))
