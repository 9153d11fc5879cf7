"""The figures of a node against NumPy's, over batches, chunks, groups and values that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from clipmlu.bundle.manifest import Tower
from clipmlu.measure.compare.compare import cut_rows
from clipmlu.measure.compare.nodes import NodeComparison, TowerComparison, compare_tower
from clipmlu.measure.compare.tensors import TensorGraph
from clipmlu.specs import GraphQuantisation, TensorQuantisation

Array = np.ndarray[Any, np.dtype[Any]]
WEIGHT = np.random.default_rng(0).standard_normal((6, 5), dtype=np.float32)
NOTHING = GraphQuantisation(macs=0, quantised_macs=0)


def graph(weight: Array, record: GraphQuantisation = NOTHING) -> TensorGraph:
    """``y = relu(x) @ weight``."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w"], ["y"], name="product"),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in (("x", 6), ("y", 5))
    ]
    body = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
    return TensorGraph(model, lowered=model, tower=Tower(file="", inputs=(), outputs=()), record=record)


def batches_of(rows: Array) -> Callable[[int], Any]:
    return lambda count: cut_rows(rows, count, fixed=False)


def compare(measured: TensorGraph, rows: Array, **options: Any) -> TowerComparison:
    reference = graph(WEIGHT)
    options = {"batch_size": 4, "threshold": 0.99, **options}
    return compare_tower(measured, reference, reference.model, batches_of(rows), **options)


def by_name(comparison: TowerComparison) -> dict[str, NodeComparison]:
    return {node.tensor: node for node in comparison.nodes}


@pytest.fixture
def rows() -> Array:
    return np.random.default_rng(1).standard_normal((11, 6), dtype=np.float32)


@pytest.mark.parametrize(("count", "batch_size", "budget"), [(11, 4, 1 << 29), (11, 4, 40), (8000, 7000, 1 << 29)])
def test_figures_are_those_of_numpy_over_all_batches(count: int, batch_size: int, budget: int) -> None:
    """A budget of 40 bytes leaves one row and one tensor at a time; 7000 rows are summed in two chunks."""
    rows = np.random.default_rng(1).standard_normal((count, 6), dtype=np.float32)
    other = WEIGHT + np.float32(0.1) * np.random.default_rng(2).standard_normal(WEIGHT.shape, dtype=np.float32)
    comparison = compare(graph(other), rows, batch_size=batch_size, watched_bytes=budget)
    found = by_name(comparison)
    assert comparison.rows == count
    assert [(node.tensor, node.kind) for node in comparison.nodes] == [("r", "input"), ("y", "operator")]
    r = np.maximum(rows, 0).astype(np.float64)
    ours, theirs = r @ other, r @ WEIGHT
    node = found["y"]
    assert node.node == "product"
    assert node.elements == 5 * count
    norms = np.linalg.norm(ours) * np.linalg.norm(theirs)
    assert node.cosine == pytest.approx((ours * theirs).sum() / norms, abs=1e-6)
    assert node.snr_db == pytest.approx(10 * np.log10((theirs**2).sum() / ((ours - theirs) ** 2).sum()), abs=1e-3)
    assert node.max_abs_diff == pytest.approx(np.abs(ours - theirs).max(), rel=1e-4)
    assert (node.minimum, node.maximum) == (pytest.approx(ours.min(), rel=1e-5), pytest.approx(ours.max(), rel=1e-5))
    assert node.reference_maximum == pytest.approx(theirs.max(), rel=1e-5)
    assert node.float16_share == pytest.approx(max(np.abs(ours).max(), np.abs(theirs).max()) / 65504, rel=1e-5)
    assert (found["r"].cosine, found["r"].snr_db, found["r"].is_exact) == (1.0, None, True)


def test_share_that_the_integers_cut_off_is_counted_beyond_half_a_step(rows: Array) -> None:
    rows[0] = [5.0, 5.2, 1.0, -9.0, 0.0, 0.0]
    how = TensorQuantisation(bits=8, scale=(0.04,), zero_point=0, axis=None, minimum=-5.08, maximum=5.08)
    record = GraphQuantisation(tensors={"r": how}, macs=1, quantised_macs=1)
    node = by_name(compare(graph(WEIGHT, record), rows))["r"]
    assert node.quantised_range == (pytest.approx(-5.12), pytest.approx(5.08))
    assert node.outside == 1 / 66  # 5.2 alone: the relu takes the -9
    clipped = GraphQuantisation(tensors={"r/clipped": how}, macs=1, quantised_macs=1)
    assert by_name(compare(graph(WEIGHT, clipped), rows))["r"].outside == 1 / 66
    assert by_name(compare(graph(WEIGHT), rows))["r"].outside is None


def test_asymmetric_range_is_what_the_levels_stand_for(rows: Array) -> None:
    how = TensorQuantisation(bits=8, scale=(0.5,), zero_point=-100, axis=None, minimum=-14.0, maximum=113.5)
    record = GraphQuantisation(tensors={"r": how}, macs=1, quantised_macs=1)
    assert by_name(compare(graph(WEIGHT, record), rows))["r"].quantised_range == (-14.0, 113.5)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_values_that_are_not_finite_are_counted_and_diverge(rows: Array, bad: float) -> None:
    broken = WEIGHT.copy()
    broken[0, 2] = bad
    rows[:, 0] = 1.0
    comparison = compare(graph(broken), rows)
    node = by_name(comparison)["y"]
    assert (node.non_finite, node.reference_non_finite) == (11, 0)
    assert (node.cosine, node.snr_db, node.diverges) == (None, None, True)
    assert comparison.first_divergence == node
    expected = np.delete(np.maximum(rows, 0) @ WEIGHT, 2, axis=1)
    assert node.maximum == pytest.approx(expected.max(), rel=1e-5)


def test_first_divergence_is_the_first_below_the_threshold(rows: Array) -> None:
    comparison = compare(graph(-WEIGHT), rows)
    assert comparison.first_divergence is not None
    assert comparison.first_divergence.tensor == "y"
    assert comparison.first_divergence.cosine == pytest.approx(-1.0)
    other = WEIGHT + np.float32(0.5)
    cosine = by_name(compare(graph(other), rows))["y"].cosine
    assert cosine is not None
    assert compare(graph(other), rows, threshold=cosine - 1e-9).first_divergence is None
    assert compare(graph(other), rows, threshold=cosine + 1e-9).first_divergence is not None


def test_tensors_of_zeros_are_alike_and_like_no_other(rows: Array) -> None:
    nothing = np.zeros_like(WEIGHT)
    node = by_name(compare(graph(nothing), rows))["y"]
    assert (node.cosine, node.snr_db) == (0.0, pytest.approx(0.0, abs=1e-9))
    same = compare_tower(graph(nothing), graph(nothing), graph(nothing).model, batches_of(rows), 4, threshold=0.99)
    assert by_name(same)["y"].cosine == 1.0


def test_rows_of_a_fixed_size_are_filled_up_from_the_front() -> None:
    numbers = [np.array([number]) for number in range(5)]
    assert [batch[:, 0].tolist() for batch in cut_rows(numbers, 3, fixed=True)] == [[0, 1, 2], [3, 4, 0]]
    assert [batch[:, 0].tolist() for batch in cut_rows(numbers, 3, fixed=False)] == [[0, 1, 2], [3, 4]]
    assert [batch[:, 0].tolist() for batch in cut_rows(numbers[:2], 5, fixed=True)] == [[0, 1, 0, 1, 0]]
    assert list(cut_rows([], 3, fixed=True)) == []


def test_model_files_are_left_alone() -> None:
    before = graph(WEIGHT)
    content = before.model.SerializeToString()
    before.watch(["y"]).run(np.zeros((2, 6), np.float32))
    assert before.model.SerializeToString() == content
    assert isinstance(before.structure, onnx.ModelProto)
