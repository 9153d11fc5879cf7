"""McNemar's test against values computed by hand, and against the normal approximation where it is good."""

from __future__ import annotations

import math
import statistics
from fractions import Fraction

import pytest

from clipmlu.measure.statistics import fraction_text, mcnemar_p_value, wilson_interval


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (0, 1, 1.0),
        (0, 5, 2 / 32),
        (5, 0, 2 / 32),
        (1, 9, 2 * (1 + 10) / 1024),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
        (3, 4, 1.0),  # both tails meet
    ],
)
def test_small_counts_have_the_values_of_the_binomial_by_hand(first: int, second: int, expected: float) -> None:
    assert mcnemar_p_value(first, second) == expected


@pytest.mark.parametrize(("first", "second"), [(400, 460), (2400, 2600), (4900, 5100)])
def test_thousands_of_images_are_near_the_normal_distribution(first: int, second: int) -> None:
    z = (abs(first - second) - 1) / math.sqrt(first + second)
    assert mcnemar_p_value(first, second) == pytest.approx(2 * statistics.NormalDist().cdf(-z), rel=0.02)


def test_sums_of_many_terms_are_exact() -> None:
    total = sum(math.comb(3001, successes) for successes in range(1401))
    assert mcnemar_p_value(1400, 1601) == float(2 * Fraction(total, 2**3001))


def test_what_no_float_can_hold_is_zero() -> None:
    assert mcnemar_p_value(0, 1000) == pytest.approx(2.0**-999)
    assert mcnemar_p_value(0, 5000) == 0.0


@pytest.mark.parametrize(
    ("right", "images", "text", "percent"),
    [
        (49_999, 50_000, "0.9999", "99.99 %"),
        (1, 50_000, "0.0001", "0.01 %"),
        (50_000, 50_000, "1.0000", "100.00 %"),
        (0, 50_000, "0.0000", "0.00 %"),
        (2, 3, "0.6667", "66.67 %"),
    ],
)
def test_only_all_and_none_are_written_so(right: int, images: int, text: str, percent: str) -> None:
    assert fraction_text(right / images) == text
    assert fraction_text(right / images, 2, percent=True) == percent


def test_the_ends_of_an_interval_that_are_all_and_none_are_written_so() -> None:
    for images in range(1, 3000, 7):
        assert fraction_text(wilson_interval(images, images).high) == "1.0000"
        assert fraction_text(wilson_interval(0, images).low) == "0.0000"
