"""Whether two classifiers that saw the same images differ by more than chance."""

from __future__ import annotations


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
