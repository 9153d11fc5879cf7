"""How ranges are found: each algorithm against a plain reference on values that are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from clipmlu.errors import CalibrationError
from clipmlu.graph.quantisation.calibrate import RangeOptions, collect_ranges
from clipmlu.graph.quantisation.parameters import BINS, entropy_bound
from clipmlu.specs import CalibrationAlgorithm

Array = np.ndarray[Any, np.dtype[Any]]


def passing_graph() -> onnx.ModelProto:
    """One MatMul of the input with a constant, so that the input is what is quantised."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "passing",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 50])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
        [helper.make_tensor("w", TensorProto.FLOAT, [50, 1], [1.0] * 50)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)


def range_of(values: Array, algorithm: CalibrationAlgorithm, **options: Any) -> tuple[float, float]:
    rows = values.reshape(-1, 50).astype(np.float32)
    batches = np.array_split(rows, 4)
    wanted = RangeOptions(bits=options.pop("bits", 8), algorithm=algorithm, **options)
    ranges, count = collect_ranges(passing_graph(), ["x"], lambda: ([batch] for batch in batches), wanted)
    assert count == 4
    return ranges["x"]


def normal_values(seed: int = 0, count: int = 20_000) -> Array:
    return np.random.default_rng(seed).standard_normal(count)


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentile_keeps_that_share_of_the_magnitudes(percentile: float) -> None:
    values = normal_values()
    low, high = range_of(values, "percentile", percentile=percentile)
    assert low == -high
    bin_width = np.abs(values).max() / BINS
    assert high == pytest.approx(np.percentile(np.abs(values), percentile), abs=2 * bin_width)


def test_percentile_of_uncentred_values_cuts_both_sides_alike() -> None:
    values = np.random.default_rng(1).exponential(size=20_000) - 0.3
    low, high = range_of(values, "percentile", percentile=98.0, centred=False)
    bin_width = np.abs(values).max() / BINS
    assert low == pytest.approx(np.percentile(values, 1), abs=2 * bin_width)
    assert high == pytest.approx(np.percentile(values, 99), abs=2 * bin_width)


def test_percentile_100_is_the_whole_range() -> None:
    values = normal_values()
    low, high = range_of(values, "percentile", percentile=100.0, centred=False)
    bin_width = np.abs(values).max() / BINS
    assert values.min() - bin_width <= low <= values.min() + 1e-6
    assert values.max() - 1e-6 <= high <= values.max() + bin_width


def test_least_noise_is_the_bound_with_the_least_mean_squared_error() -> None:
    values = np.concatenate([normal_values(), [40.0] * 50])
    _, high = range_of(values, "eqnm")

    def noise(bound: float) -> float:
        scale = bound / 127
        return float(np.mean((np.clip(np.rint(values / scale), -127, 127) * scale - values) ** 2))

    candidates = np.linspace(40.0, 2.0, 96)
    best = min(noise(float(bound)) for bound in candidates)
    assert noise(high) <= 1.05 * best


def naive_divergence(counts: Array, stop: int, levels: int) -> float:
    """The definition, written out: each level's mass spread over the bins of it that are not empty."""
    true = [float(count) for count in counts[:stop]]
    true[-1] += float(counts[stop:].sum())
    seen = [0.0] * stop
    for level in range(levels):
        bins = range(level * stop // levels, (level + 1) * stop // levels)
        filled = [index for index in bins if counts[index] > 0]
        for index in filled:
            seen[index] = sum(float(counts[each]) for each in bins) / len(filled)
    total_true, total_seen = sum(true), sum(seen)
    return sum(
        p / total_true * math.log((p / total_true) / max(q / total_seen, 1e-9))
        for p, q in zip(true, seen, strict=True)
        if p > 0
    )


def test_entropy_takes_the_bound_that_diverges_least() -> None:
    values = np.abs(np.concatenate([normal_values(3, 50_000), [30.0] * 20]))
    counts, _ = np.histogram(values, bins=BINS, range=(0.0, 30.0))
    stops = range(128, BINS + 1, 8)
    divergences = {stop: naive_divergence(counts, stop, 128) for stop in stops}
    expected = min(divergences, key=lambda stop: divergences[stop])
    assert entropy_bound(counts, 30.0, 8) == pytest.approx(30.0 * expected / BINS)
    assert 30.0 * expected / BINS < 10.0, "the few values at 30 are not worth their levels"


def test_entropy_leaves_16_bits_alone() -> None:
    values = np.concatenate([normal_values(), [40.0] * 50])
    assert range_of(values, "entropy", bits=16) == (-40.0, 40.0)


def test_nan_is_refused_by_name() -> None:
    values = normal_values()
    values[7] = np.nan
    with pytest.raises(CalibrationError, match="tensor 'x' holds NaN"):
        range_of(values, "percentile")
