"""Operators that opset 11 says in another way keep their values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from clipmlu.errors import CompileError
from clipmlu.graph.lowering import check_int32_range, lower_graph

Check = Callable[..., ir.Model]
Build = Callable[..., onnx.ModelProto]


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [(("batch", 5), -1), (("batch", 5), 1), (("batch", 5), 0), (("batch", 3, 4), 1), (("batch", 3, 4), -2)]
    + [(("batch", 2, 3, 4), axis) for axis in (0, 1, 2, 3)],
)
def test_softmax_runs_along_its_axis_only(
    assert_same_values: Check, build_model: Build, op_type: str, shape: tuple[Any, ...], axis: int
) -> None:
    assert_same_values(
        build_model([helper.make_node(op_type, ["x"], ["y"], axis=axis)], {"x": ("float32", shape)}, ["y"])
    )


@pytest.mark.parametrize("op_type", ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"])
@pytest.mark.parametrize("axes", [[-1], [1], [1, -1], [0], None, []])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reductions(
    assert_same_values: Check, build_model: Build, op_type: str, axes: list[int] | None, keepdims: int
) -> None:
    constants = {} if axes is None else {"axes": np.array(axes, np.int64)}
    node = helper.make_node(op_type, ["x", *constants], ["y"], keepdims=keepdims)
    model = build_model([node], {"x": ("float32", ("batch", 3, 4))}, ["y"], constants)
    assert_same_values(model, tolerance=2e-6)


def test_reduction_over_no_axes_is_nothing(assert_same_values: Check, build_model: Build) -> None:
    node = helper.make_node("ReduceSum", ["x"], ["y"], noop_with_empty_axes=1)
    lowered = assert_same_values(build_model([node], {"x": ("float32", ("batch", 3))}, ["y"]))
    assert [each.op_type for each in lowered.graph] == ["Identity"]


@pytest.mark.parametrize("axes", [[1], [-1, 1], [-2]])
def test_unsqueeze_and_squeeze(assert_same_values: Check, build_model: Build, axes: list[int]) -> None:
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axes"], ["u"]),
        helper.make_node("Neg", ["u"], ["n"]),
        helper.make_node("Squeeze", ["n", "axes"], ["y"]),
    ]
    model = build_model(nodes, {"x": ("float32", ("batch", 3))}, ["y", "n"], {"axes": np.array(axes)})
    lowered = assert_same_values(model)
    assert all(len(node.inputs) == 1 for node in lowered.graph)


@pytest.mark.parametrize(
    ("sizes", "attributes", "count"),
    [([1, 2, 4], {}, 3), (None, {"num_outputs": 3}, 3), (None, {"num_outputs": 7}, 7)],
)
def test_split(
    assert_same_values: Check, build_model: Build, sizes: list[int] | None, attributes: dict[str, int], count: int
) -> None:
    constants = {} if sizes is None else {"sizes": np.array(sizes)}
    outputs = [f"y{index}" for index in range(count)]
    node = helper.make_node("Split", ["x", *constants], outputs, axis=-1, **attributes)
    assert_same_values(build_model([node], {"x": ("float32", ("batch", 2, 7))}, outputs, constants))


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ([1], [2**63 - 1], [1], None),
        ([-2], [2**63 - 1], [-1], None),
        ([0, 1], [2, 3], [1, 2], [1, 2]),
        ([-1], [-(2**63)], [2], [-1]),
        ([3], [0], [2], [-1]),
        ([1], [2**63 - 1], [0], None),
        ([2], [1], [1], None),
    ],
)
def test_slice_says_the_end_in_32_bit(
    assert_same_values: Check,
    build_model: Build,
    starts: list[int],
    ends: list[int],
    axes: list[int],
    steps: list[int] | None,
) -> None:
    constants = {"starts": np.array(starts), "ends": np.array(ends), "axes": np.array(axes)}
    constants |= {} if steps is None else {"steps": np.array(steps)}
    node = helper.make_node("Slice", ["x", *constants], ["y"])
    if axes != [0] and starts != [2]:  # rows of a batch of one, and no elements at all, are no shapes of a tower
        check_int32_range(
            assert_same_values(build_model([node], {"x": ("float32", ("batch", 3, 4))}, ["y"], constants))
        )
    else:
        check_int32_range(lower_graph(build_model([node], {"x": ("float32", (4, 3, 4))}, ["y"], constants)))


@pytest.mark.parametrize(("low", "high"), [(-0.5, 0.5), (None, 0.5), (-0.5, None), (1e-12, None)])
def test_clip_of_floats(assert_same_values: Check, build_model: Build, low: float | None, high: float | None) -> None:
    constants = {name: np.float32(bound) for name, bound in (("low", low), ("high", high)) if bound is not None}
    names = ["x", "low" if low is not None else "", *(["high"] if high is not None else [])]
    node = helper.make_node("Clip", names, ["y"])
    assert_same_values(build_model([node], {"x": ("float32", ("batch", 9))}, ["y"], constants))


def test_clip_of_integers(assert_same_values: Check, build_model: Build) -> None:
    node = helper.make_node("Clip", ["x", "low", "high"], ["y"])
    constants = {"low": np.int64(2), "high": np.int64(6)}
    assert_same_values(build_model([node], {"x": ("int64", ("batch", 9))}, ["y"], constants))


@pytest.mark.parametrize(("pads", "axes"), [([1, 2], [1]), ([0, 1, 1, 0], [-1, 1]), ([0, 1, 0, 0, 0, 2], None)])
@pytest.mark.parametrize("mode", ["constant", "edge"])
def test_pad(assert_same_values: Check, build_model: Build, pads: list[int], axes: list[int] | None, mode: str) -> None:
    constants: dict[str, Any] = {"pads": np.array(pads)} | ({} if axes is None else {"axes": np.array(axes)})
    names = ["x", "pads"] if axes is None else ["x", "pads", "", "axes"]
    node = helper.make_node("Pad", names, ["y"], mode=mode)
    assert_same_values(build_model([node], {"x": ("float32", ("batch", 3, 4))}, ["y"], constants))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("by_sizes", [True, False])
def test_resize(build_model: Build, run_plain: Callable[..., Any], mode: str, by_sizes: bool) -> None:
    constants: dict[str, Any] = (
        {"sizes": np.array([1, 2, 6, 8])} if by_sizes else {"scales": np.array([1, 1, 2, 2], np.float32)}
    )
    names = ["x", "", "", "sizes"] if by_sizes else ["x", "", "scales"]
    node = helper.make_node(
        "Resize", names, ["y"], mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )
    model = build_model([node], {"x": ("float32", (1, 2, 3, 4))}, ["y"], constants, opset=18)
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 2, 3, 4)).astype(np.float32)}
    np.testing.assert_allclose(run_plain(lower_graph(model), feeds)[0], run_plain(model, feeds)[0], atol=1e-6)


def test_antialiased_resize_is_refused(build_model: Build) -> None:
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="linear", antialias=1, name="shrink")
    constants = {"scales": np.array([1, 1, 0.5, 0.5], np.float32)}
    with pytest.raises(CompileError, match=r"Node 'shrink'.*antialias"):
        lower_graph(build_model([node], {"x": ("float32", (1, 1, 4, 4))}, ["y"], constants))


@pytest.mark.parametrize("exponent", [np.int64(2), np.float32(3), np.int32(2)])
def test_pow(assert_same_values: Check, build_model: Build, exponent: Any) -> None:
    node = helper.make_node("Pow", ["x", "exponent"], ["y"])
    assert_same_values(
        build_model([node], {"x": ("float32", ("batch", 9))}, ["y"], {"exponent": exponent}), tolerance=2e-6
    )


@pytest.mark.parametrize("dtype", ["int64", "float32"])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_argmax_takes_the_first_of_equals(
    assert_same_values: Check, build_model: Build, dtype: str, keepdims: int
) -> None:
    node = helper.make_node("ArgMax", ["x"], ["y"], axis=-1, keepdims=keepdims)
    lowered = assert_same_values(build_model([node], {"x": (dtype, ("batch", 20))}, ["y"]))
    assert [each.op_type for each in lowered.graph] == (["Cast", "ArgMax"] if dtype == "int64" else ["ArgMax"])


def test_argmax_of_the_last_of_equals_is_refused(build_model: Build) -> None:
    node = helper.make_node("ArgMax", ["x"], ["y"], select_last_index=1, name="eot")
    with pytest.raises(CompileError, match=r"Node 'eot'.*select_last_index=1"):
        lower_graph(build_model([node], {"x": ("float32", ("batch", 3))}, ["y"]))


@pytest.mark.parametrize("index", [0, -1, [1, -1], [[0, 1], [-2, -1]]])
@pytest.mark.parametrize("axis", [1, -1])
def test_gather_counts_from_the_front(assert_same_values: Check, build_model: Build, index: Any, axis: int) -> None:
    node = helper.make_node("Gather", ["x", "index"], ["y"], axis=axis)
    model = build_model([node], {"x": ("float32", ("batch", 3, 4))}, ["y"], {"index": np.array(index)})
    lowered = assert_same_values(model)
    (gather,) = lowered.graph
    assert gather.inputs[1].const_value.numpy().min() >= 0


def test_gather_nd(assert_same_values: Check, build_model: Build) -> None:
    node = helper.make_node("GatherND", ["x", "index"], ["y"])
    inputs = {"x": ("float32", (3, 4)), "index": ("int64", ("batch", 2))}
    model = build_model([node], inputs, ["y"])
    feeds = {"x": np.arange(12, dtype=np.float32).reshape(3, 4), "index": np.array([[0, 1], [2, 3]])}
    for lowered in (lower_graph(model), lower_graph(model, batch={"batch": 2})):
        assert [each.op_type for each in lowered.graph] == ["GatherND"]
    assert_same_values(model, feeds=feeds)


def test_batch_normalization(assert_same_values: Check, build_model: Build) -> None:
    names = ["scale", "bias", "mean", "variance"]
    constants = {name: np.random.default_rng(index).random(3).astype(np.float32) for index, name in enumerate(names)}
    node = helper.make_node("BatchNormalization", ["x", *names], ["y"], epsilon=1e-3)
    assert_same_values(build_model([node], {"x": ("float32", ("batch", 3, 4, 5))}, ["y"], constants))


def test_average_pool(assert_same_values: Check, build_model: Build) -> None:
    node = helper.make_node(
        "AveragePool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2], dilations=[1, 1], count_include_pad=1
    )
    assert_same_values(build_model([node], {"x": ("float32", ("batch", 3, 4, 6))}, ["y"]))


@pytest.mark.parametrize("is_output", [True, False])
def test_dropout_and_identity_are_removed(assert_same_values: Check, build_model: Build, is_output: bool) -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["i"]),
        helper.make_node("Relu", ["i"], ["r"]),
        helper.make_node("Dropout", ["r"], ["y"]),
    ]
    nodes += [] if is_output else [helper.make_node("Neg", ["y"], ["z"])]
    lowered = assert_same_values(build_model(nodes, {"x": ("float32", ("batch", 3))}, ["y" if is_output else "z"]))
    assert [each.op_type for each in lowered.graph] == ["Relu", "Identity" if is_output else "Neg"]


@pytest.mark.parametrize(
    ("source", "target"),
    [("float32", onnx.TensorProto.INT64), ("int64", onnx.TensorProto.FLOAT), ("bool", onnx.TensorProto.FLOAT)],
)
def test_cast(assert_same_values: Check, build_model: Build, source: str, target: int) -> None:
    node = helper.make_node("Cast", ["x"], ["y"], to=target)
    assert_same_values(build_model([node], {"x": (source, ("batch", 5))}, ["y"]))


def test_where(assert_same_values: Check, build_model: Build) -> None:
    inputs = {"c": ("bool", ("batch", 5)), "x": ("float32", ("batch", 5))}
    node = helper.make_node("Where", ["c", "x", "zero"], ["y"])
    assert_same_values(build_model([node], inputs, ["y"], {"zero": np.float32(0)}))
