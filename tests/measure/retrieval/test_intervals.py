"""Intervals of dependent queries, against simulations and a bootstrap over groups."""

from __future__ import annotations

import numpy as np
import pytest

from clipmlu.measure.retrieval.intervals import effective_queries, recall_drop_bound, recall_interval
from clipmlu.measure.statistics import drop_interval, wilson_interval


def test_independent_queries_have_the_ordinary_intervals() -> None:
    hits = np.random.default_rng(0).random(400) < 0.7
    found, expected = recall_interval(hits, np.arange(400)), wilson_interval(int(hits.sum()), 400)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=2e-4)


def test_texts_that_always_agree_count_as_one() -> None:
    images = np.random.default_rng(1).random(200) < 0.6
    found, expected = (
        recall_interval(np.repeat(images, 5), np.repeat(np.arange(200), 5)),
        wilson_interval(int(images.sum()), 200),
    )
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-3)


def test_the_interval_is_that_of_a_bootstrap_over_the_images() -> None:
    generator = np.random.default_rng(2)
    easy = generator.beta(2, 2, 300)
    sizes = generator.integers(1, 8, 300)
    groups = np.repeat(np.arange(300), sizes)
    hits = generator.random(len(groups)) < easy[groups]
    found = recall_interval(hits, groups)
    sums = np.bincount(groups, weights=hits)
    drawn = generator.integers(0, 300, (4000, 300))
    low, high = np.quantile(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.005)
    naive = wilson_interval(int(hits.sum()), len(hits))
    assert found.high - found.low > 1.25 * (naive.high - naive.low), "texts of one image are not independent"


def test_a_perfect_recall_is_not_certain() -> None:
    groups = np.repeat(np.arange(50), 5)
    found = recall_interval(np.ones(250, bool), groups)
    assert (found.low, found.high) == (wilson_interval(50, 50).low, 1.0)
    assert recall_interval(np.ones(250, bool), np.zeros(250, np.int64)).low == pytest.approx(wilson_interval(1, 1).low)


def test_95_of_100_intervals_hold_the_truth() -> None:
    generator = np.random.default_rng(3)
    groups = np.repeat(np.arange(150), 5)
    held = 0
    for _ in range(400):
        chances = generator.beta(2, 1, 150)  # mean 2/3
        found = recall_interval(generator.random(750) < chances[groups], groups)
        held += found.low <= 2 / 3 <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_the_bound_of_a_drop() -> None:
    generator = np.random.default_rng(4)
    before = generator.random(500) < 0.8
    after = before ^ (generator.random(500) < 0.05)
    lost, won = int((before & ~after).sum()), int((after & ~before).sum())
    found = recall_drop_bound(before, after, np.arange(500))
    assert found == pytest.approx(drop_interval(lost, won, 500)[1], abs=1e-3)
    repeated = recall_drop_bound(np.repeat(before, 5), np.repeat(after, 5), np.repeat(np.arange(500), 5))
    assert repeated == pytest.approx(found, abs=1e-3), "five texts that agree show no more than one"
    same = recall_drop_bound(before, before, np.repeat(np.arange(100), 5))
    assert same == drop_interval(0, 0, 100)[1] > 0, "no difference in 100 groups is no proof"


def test_effective_queries_are_within_bounds() -> None:
    values = np.array([1.0, 0.0, 1.0, 0.0])
    assert effective_queries(values, np.array([0, 0, 1, 1])) == 4.0, "texts that differ more than independent ones"
    assert effective_queries(values, np.array([0, 1, 0, 1])) == pytest.approx(1.0)
