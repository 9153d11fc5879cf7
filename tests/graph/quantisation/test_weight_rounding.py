"""Rounding of weights: GPTQ against its definition, and weights that every quantiser rounds to the chosen integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from clipmlu.graph.quantisation.gptq import DAMPING, choose_levels
from clipmlu.graph.quantisation.parameters import for_weights, symmetric
from clipmlu.graph.quantisation.weight_rounding import round_weights, with_weights
from clipmlu.graph.watch import second_moments
from support import StepRecorder

Array = np.ndarray[Any, np.dtype[Any]]
OUTPUTS, INPUTS = 5, 40


def correlated(rows: int, seed: int, inputs: int = INPUTS) -> Array:
    """Rows whose channels depend on each other and have very different sizes; the first channel is always 0."""
    mixing = np.random.default_rng(0).standard_normal((inputs // 3, inputs)) * np.geomspace(0.1, 10, inputs)
    generator = np.random.default_rng(seed)
    found = generator.standard_normal((rows, inputs // 3)) @ mixing + 0.1 * generator.standard_normal((rows, inputs))
    found[:, 0] = 0
    return found.astype(np.float32)


def weights(seed: int = 1, inputs: int = INPUTS) -> Array:
    return np.random.default_rng(seed).standard_normal((OUTPUTS, inputs)).astype(np.float32)


def by_definition(row: Array, moments: Array, scale: float, most: int) -> list[int]:
    """Optimal brain quantisation of one row, with the inverse of what is left computed anew for each input."""
    damped = moments.astype(np.float64).copy()
    alive = np.diagonal(damped) > 0
    damped[np.diag_indices_from(damped)] += np.where(alive, DAMPING, 1) * np.diagonal(damped)[alive].mean()
    left, rest = row.astype(np.float64), list(np.argsort(-np.diagonal(damped), kind="stable"))
    largest, levels = int(np.argmax(np.abs(row))), np.zeros(len(row), int)
    while rest:
        inverse = np.linalg.inv(damped[np.ix_(rest, rest)])
        first = rest[0]
        nearest = np.clip(np.rint(left[first] / scale), -most, most)
        levels[first] = np.sign(row[first]) * most if first == largest else nearest
        left[rest] -= (left[first] - levels[first] * scale) / inverse[0, 0] * inverse[:, 0]
        rest = rest[1:]
    return levels.tolist()


@pytest.mark.parametrize("bits", [8, 4])
def test_integers_are_those_of_the_definition(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipmlu.graph.quantisation.gptq._BLOCK", 16)
    inputs = correlated(400, 2)
    moments, most = inputs.T @ inputs, 2 ** (bits - 1) - 1
    rows = weights()
    scale = np.abs(rows).max(axis=1) / most
    found = choose_levels(rows, moments, scale, most)
    expected = [by_definition(row, moments, step, most) for row, step in zip(rows, scale, strict=True)]
    assert (found == expected).mean() > 0.999, "a sum that lies on the border of two integers may fall on either side"
    np.testing.assert_array_equal(found[:, 0], np.rint(rows[:, 0] / scale), "an input that is always 0 changes nothing")


@pytest.mark.parametrize("granularity", ["per_axis", "per_tensor"])
def test_result_of_the_layer_is_nearer_on_other_inputs(granularity: str) -> None:
    inputs, others = correlated(400, 2), correlated(400, 3)
    rows = weights()
    how = for_weights(rows, 8, 0 if granularity == "per_axis" else None, least_noise=False)
    levels = choose_levels(rows, inputs.T @ inputs, how.scale.reshape(-1), 127)
    chosen, nearest = how.stored_values(levels), how.apply(rows)
    errors = [np.square(others @ (values - rows).T.astype(np.float64)).mean() for values in (chosen, nearest)]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("axis", [0, 1, None])
def test_nearest_integers_of_the_stored_values_are_the_chosen_ones(bits: int, axis: int | None) -> None:
    generator = np.random.default_rng(5)
    most = 2 ** (bits - 1) - 1
    for magnitude in np.geomspace(1e-6, 1e6, 25):
        levels = generator.integers(-most, most + 1, (64, 64))
        levels[np.arange(64), np.arange(64)] = most * generator.choice([-1, 1], 64)
        bounds = (magnitude * generator.uniform(0.5, 2, 64)).astype(np.float32)
        if axis is not None:
            levels[(3, slice(None))[:: 1 if axis == 0 else -1]] = 0
            bounds[3] = 0
        how = symmetric(bits, bounds if axis is not None else bounds[0], axis)
        stored = how.stored_values(levels)
        again = for_weights(stored, bits, axis, least_noise=False)
        np.testing.assert_array_equal(again.levels(stored), levels)
        np.testing.assert_array_equal(again.scale, how.scale)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_inputs_without_usable_moments_are_rounded_to_the_nearest(bad: float) -> None:
    moments = np.full((INPUTS, INPUTS), bad, np.float32)
    rows = weights()
    scale = np.abs(rows).max(axis=1) / 127
    np.testing.assert_array_equal(choose_levels(rows, moments, scale, 127), np.rint(rows / scale[:, None]))


def test_zeros_stay_zeros() -> None:
    inputs = correlated(400, 2)
    rows = np.zeros((OUTPUTS, INPUTS), np.float32)
    assert not choose_levels(rows, inputs.T @ inputs, np.ones(OUTPUTS), 127).any()


def layers(values: dict[str, Array]) -> onnx.ModelProto:
    """x @ a -> Gemm with b transposed -> @ s @ s (shared); all with 6 channels."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["1"], name="first"),
        helper.make_node("Gemm", ["1", "b"], ["2"], name="second", transB=1),
        helper.make_node("MatMul", ["2", "s"], ["3"], name="third"),
        helper.make_node("MatMul", ["3", "s"], ["y"], name="fourth"),
    ]
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 6])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)


def test_each_linear_layer_is_rounded_for_its_own_inputs_and_outputs() -> None:
    generator = np.random.default_rng(3)
    values = {name: generator.standard_normal((6, 6)).astype(np.float32) for name in "abs"}
    model = layers(values)
    batches = [[correlated(40, seed, 6)] for seed in (4, 5)]
    recorder = StepRecorder()
    rounded = round_weights(model, lambda: batches, bits=8, granularity="per_axis", without=(), on_step=recorder)
    assert recorder.labels() == ["measuring the inputs of 2 layers", "rounding the weights (2 layers)"]
    assert sorted(rounded) == ["a", "b"], "a weight of two layers would have to suit the inputs of both"
    inputs = np.concatenate([batch for (batch,) in batches])
    for name, seen, rows in (("a", inputs, values["a"].T), ("b", inputs @ values["a"], values["b"])):
        scale = np.abs(rows).max(axis=1, keepdims=True) / 127
        levels = (rounded[name].T if name == "a" else rounded[name]) / scale
        expected = [
            by_definition(row, seen.T @ seen, float(step[0]), 127) for row, step in zip(rows, scale, strict=True)
        ]
        np.testing.assert_allclose(levels, expected, atol=1e-3)
    changed = {weight.name: numpy_helper.to_array(weight) for weight in with_weights(model, rounded).graph.initializer}
    np.testing.assert_array_equal(changed["b"], rounded["b"])
    np.testing.assert_array_equal(changed["s"], values["s"])
    assert "a" not in round_weights(model, lambda: batches, bits=8, granularity="per_axis", without=["first"])


def test_second_moments_are_those_of_rows_from_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = layers({name: np.eye(6, dtype=np.float32) for name in "abs"})
    batches = [[correlated(40, seed, 6)] for seed in range(3)]
    every = np.concatenate([batch for (batch,) in batches]).astype(np.float64)
    found = second_moments(model, {"x": 6, "2": 6}, lambda: batches)
    for moments in found.values():
        np.testing.assert_allclose(moments, every.T @ every, rtol=1e-4, atol=1e-3)
    for limit, some in ((60, np.concatenate([batches[0][0], batches[2][0]])), (20, batches[0][0][::2])):
        monkeypatch.setattr("clipmlu.graph.watch._MOMENT_ROWS", limit)
        found = second_moments(model, {"x": 6}, lambda: batches)
        np.testing.assert_allclose(found["x"], some.T.astype(np.float64) @ some, rtol=1e-4, atol=1e-3)
