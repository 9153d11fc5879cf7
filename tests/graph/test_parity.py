"""The measure behind the gates."""

from __future__ import annotations

import math

import numpy as np
import pytest

from clipmlu.graph.parity import allowed_logit_difference, compare_outputs, is_within, measure_difference
from clipmlu.specs import TowerName


def test_equal_rows_do_not_differ() -> None:
    rows = np.random.default_rng(0).standard_normal((5000, 7)).astype(np.float32)
    difference = measure_difference(rows, rows.copy())
    assert difference.max_abs_diff == 0.0
    assert difference.min_cosine == pytest.approx(1.0, abs=1e-12)


def test_the_worst_element_and_the_worst_row_count() -> None:
    reference = np.eye(3, dtype=np.float32)
    measured = reference.copy()
    measured[2] = [0.6, 0.0, 0.8]
    difference = measure_difference(reference, measured)
    assert difference.max_abs_diff == pytest.approx(0.6)
    assert difference.min_cosine == pytest.approx(0.8)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_meet_no_bound(value: float) -> None:
    broken = np.ones((2, 2), np.float32)
    broken[1, 1] = value
    for pair in ((broken, np.ones_like(broken)), (np.ones_like(broken), broken), (broken, broken)):
        difference = measure_difference(*pair)
        assert difference.max_abs_diff == math.inf


def test_other_shapes_meet_no_bound() -> None:
    assert measure_difference(np.ones((2, 3)), np.ones((2, 4))).max_abs_diff == math.inf
    none = measure_difference(np.ones((0, 3)), np.ones((0, 3)))
    assert (none.max_abs_diff, none.min_cosine) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("tower", "allowed", "min_cosine", "within"),
    [
        ("image", 0.7, 0.7, True),
        ("image", 0.5, 0.7, False),
        ("image", 0.7, 0.9, False),
        ("joint", 0.7, 0.9, True),  # logits have no cosine
        ("joint", 0.5, 0.0, False),
    ],
)
def test_a_record_is_within_when_difference_and_cosine_are(
    tower: TowerName, allowed: float, min_cosine: float, within: bool
) -> None:
    reference = np.eye(3, dtype=np.float32)
    measured = reference.copy()
    measured[2] = [0.6, 0.0, 0.8]
    record = compare_outputs(tower, "y", reference, measured, batch_size=3, allowed=allowed)
    assert is_within(record, min_cosine) is within


def test_rows_of_zeros_have_a_cosine() -> None:
    zeros, ones = np.zeros((1, 3)), np.ones((1, 3))
    assert measure_difference(zeros, zeros).min_cosine == 1.0
    assert measure_difference(zeros, ones).min_cosine == 0.0


def test_bound_on_logits_grows_with_the_scale() -> None:
    assert allowed_logit_difference(1e-5, 100.0) == pytest.approx(1e-3)
    assert allowed_logit_difference(1e-5, 0.5) == 1e-5
