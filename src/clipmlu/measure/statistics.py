"""Statistics of accuracy: McNemar's test and confidence intervals."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from clipmlu.specs import Spec

BoolArray = npt.NDArray[np.bool_]


def count_changes(before: BoolArray, after: BoolArray) -> tuple[int, int]:
    """Count the images whose correctness differs between two classifiers.

    Args:
        before: whether the first classifier is correct for each image, shape (N,).
        after: whether the second one is correct for the same image.

    Returns:
        Number of images that only the first one, and that only the second one classifies correctly.
    """
    return int((before & ~after).sum()), int((after & ~before).sum())


def mcnemar_p_value(first_only: int, second_only: int) -> float:
    """Return the exact two-sided p-value of McNemar's test.

    If both classifiers are equally good, each image that exactly one of them classifies correctly is a fair coin toss.
    The value is the probability of a split at least as uneven as the observed one, on either side. Source: Q. McNemar,
    "Note on the sampling error of the difference between correlated proportions or percentages", 1947, in its exact
    form, the sign test.

    Args:
        first_only: number of images that only the first one classifies correctly, 0 or more.
        second_only: number of images that only the second one classifies correctly, 0 or more.

    Returns:
        0..1, correctly rounded; 1 if no image distinguishes them. Sums are of integers, so they are exact for thousands
            of
        images; values below the smallest float are 0.
    """
    trials, least = first_only + second_only, min(first_only, second_only)
    ways = total = 1  # binomial coefficients, beginning with 0 successes
    for successes in range(1, least + 1):
        ways = ways * (trials - successes + 1) // successes
        total += ways
    return min(1.0, 2 * total / (1 << trials))


_EXACT = 1e-12  # the error of sums and quotients: no share of images is nearer to 0 or 1
_Z_95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution


class Interval(Spec, frozen=True, kw_only=True):
    """A confidence interval of a fraction."""

    low: float
    high: float


def fraction_text(fraction: float, digits: int = 4, *, percent: bool = False) -> str:
    """Return a fraction for people; a part of a whole is never shown as all or nothing of it: 0.99998 is ``0.9999``.

    Args:
        fraction: 0..1; a number outside is written as it is.
        digits: decimals.
        percent: write per cent, such as ``"99.99 %"``.
    """
    whole, step = (100.0 if percent else 1.0), 10.0**-digits
    value = whole * fraction
    if _EXACT < fraction < 1 - _EXACT:
        value = min(max(value, step), whole - step)
    return f"{value:.{digits}f}{' %' if percent else ''}"


def with_interval(value: float, interval: Interval) -> str:
    """Return a fraction with its 95 % confidence interval for people."""
    return f"{fraction_text(value)} (95 %: {fraction_text(interval.low)} to {fraction_text(interval.high)})"


def wilson_interval(successes: float, trials: float) -> Interval:
    """Return the 95 % score interval of a binomial fraction; the numbers need not be whole.

    Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927.
    """
    fraction = successes / trials
    spread = _Z_95**2 / trials
    centre = (fraction + spread / 2) / (1 + spread)
    half = _Z_95 * math.sqrt(fraction * (1 - fraction) / trials + spread / (4 * trials)) / (1 + spread)
    return Interval(low=max(0.0, centre - half), high=min(1.0, centre + half))


Z_ONE_SIDED = 1.6448536269514722  # 95 % quantile of the standard normal distribution


def drop_interval(lost: float, won: float, images: float, z: float = Z_ONE_SIDED) -> tuple[float, float]:
    """Return confidence limits of the loss of accuracy between two classifiers on the same images.

    Args:
        lost: number of images that only the first one classifies correctly.
        won: number of images that only the second one classifies correctly.
        images: number of all images.
        z: quantile of the normal distribution; the default gives one-sided 95 % limits.

    Returns:
        Lower and upper limit. Source: A. Agresti and Y. Min, "Simple improved confidence intervals for comparing
            matched
        proportions", 2005: half an image is added to each of the four cells.
    """
    total = images + 2
    difference = (lost - won) / total
    spread = math.sqrt(max((lost + won + 1) - (lost - won) ** 2 / total, 0.0)) / total
    return difference - z * spread, difference + z * spread
