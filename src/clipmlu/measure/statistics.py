"""Whether two classifiers that saw the same images differ by more than chance."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from clipmlu.specs import Spec

BoolArray = npt.NDArray[np.bool_]


def count_changes(before: BoolArray, after: BoolArray) -> tuple[int, int]:
    """How many images a change of the classifier loses and wins.

    Args:
        before: which images the first classifier has right, shape (N,).
        after: which of the same images the second one has right.

    Returns:
        Images that only the first one has right, and images that only the second one has right.
    """
    return int((before & ~after).sum()), int((after & ~before).sum())


def mcnemar_p_value(first_only: int, second_only: int) -> float:
    """Exact two-sided p-value of McNemar's test.

    Of the images that exactly one of two classifiers gets right, each is a fair coin if both are equally good. The value
    is the chance of a split at least as uneven as the one seen, on either side.
    Source: Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages", 1947,
    in its exact form, the sign test.

    Args:
        first_only: images that only the first one gets right, 0 or more.
        second_only: images that only the second one gets right, 0 or more.

    Returns:
        0..1, correctly rounded; 1 where no image tells them apart. Sums are of whole numbers, so thousands of images lose
        nothing; what is smaller than the smallest float is 0.
    """
    trials, least = first_only + second_only, min(first_only, second_only)
    ways = total = 1  # binomial coefficients, of 0 successes first
    for successes in range(1, least + 1):
        ways = ways * (trials - successes + 1) // successes
        total += ways
    return min(1.0, 2 * total / (1 << trials))


_Z_95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution


class Interval(Spec, frozen=True, kw_only=True):
    """A confidence interval of a fraction."""

    low: float
    high: float


def wilson_interval(successes: int, trials: int) -> Interval:
    """95 % score interval of a binomial fraction.

    Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927.
    """
    fraction = successes / trials
    spread = _Z_95**2 / trials
    centre = (fraction + spread / 2) / (1 + spread)
    half = _Z_95 * math.sqrt(fraction * (1 - fraction) / trials + spread / (4 * trials)) / (1 + spread)
    return Interval(low=max(0.0, centre - half), high=min(1.0, centre + half))


Z_ONE_SIDED = 1.6448536269514722  # 95 % quantile of the standard normal distribution


def drop_interval(lost: int, won: int, images: int, z: float = Z_ONE_SIDED) -> tuple[float, float]:
    """Confidence limits of a loss of accuracy that two classifiers show on the same images.

    Args:
        lost: images that only the first one has right.
        won: images that only the second one has right.
        images: all images.
        z: quantile of the normal distribution; the default gives one-sided 95 % limits.

    Returns:
        Lower and upper limit. Source: A. Agresti and Y. Min, "Simple improved confidence intervals for comparing matched
        proportions", 2005: half an image is added to each of the four cells.
    """
    total = images + 2
    difference = (lost - won) / total
    spread = math.sqrt(max((lost + won + 1) - (lost - won) ** 2 / total, 0.0)) / total
    return difference - z * spread, difference + z * spread
