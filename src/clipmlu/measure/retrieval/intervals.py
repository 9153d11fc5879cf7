"""Confidence intervals of fractions of queries that are not independent, such as the texts of one image.

A fraction of dependent queries is less certain than its number of queries suggests. That number is replaced by the effective one, that of
independent queries whose fraction would have the same variance, and then the intervals for independent queries apply. Source: E. L. Korn
and B. I. Graubard, "Confidence intervals for proportions with small expected number of positive counts estimated from survey data",
1998. Unlike a percentile bootstrap over the groups this is not degenerate for fractions of 0 and 1, and needs no random numbers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from clipmlu.measure.statistics import BoolArray, Interval, drop_interval, wilson_interval

IntArray = npt.NDArray[np.int64]


def recall_interval(hits: BoolArray, groups: IntArray) -> Interval:
    """Return the 95 % score interval (Wilson) of a recall, for the effective number of queries.

    Args:
        hits: whether each query found a match, shape (Q,).
        groups: group of each query, from 0; queries of different groups are independent.
    """
    effective = effective_queries(hits.astype(np.float64), groups)
    return wilson_interval(float(hits.mean()) * effective, effective)


def recall_drop_bound(before: BoolArray, after: BoolArray, groups: IntArray) -> float:
    """Return the upper end of the one-sided 95 % confidence interval of the loss of recall between two models.

    Args:
        before: whether each query found a match with the first model, shape (Q,).
        after: whether it did with the second one.
        groups: see ``recall_interval``.
    """
    differences = before.astype(np.float64) - after
    effective = effective_queries(differences, groups)
    share = effective / len(before)
    lost, won = float((differences > 0).sum()), float((differences < 0).sum())
    return min(1.0, drop_interval(lost * share, won * share, effective)[1])


def effective_queries(values: npt.NDArray[np.float64], groups: IntArray) -> float:
    """Return the number of independent queries whose mean would have the variance of this mean.

    The variance of the mean is that of a ratio of sums over independent groups (linearised, with the factor G / (G - 1)).

    Args:
        values: one value for each query, shape (Q,).
        groups: see ``recall_interval``.

    Returns:
        1 to Q. If all values are equal, so that nothing shows how they depend on each other: the number of groups.
    """
    count, mean = len(values), values.mean()
    sums = np.bincount(groups, weights=values - mean)
    number = np.count_nonzero(np.bincount(groups))
    independent = float(((values - mean) ** 2).sum())
    if number == 1 or independent == 0:
        return float(number)
    grouped = float((sums**2).sum()) * number / (number - 1)
    return float(np.clip(count * independent / grouped, 1, count)) if grouped else float(count)
