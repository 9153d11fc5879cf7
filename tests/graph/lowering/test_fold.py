"""Shape arithmetic leaves the graph, dynamic or static, and the values stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from clipmlu.graph.lowering import lower_graph, remaining_shape_nodes
from clipmlu.graph.lowering.analysis import analyse_graph
from clipmlu.graph.lowering.sizes import fit_size

Check = Callable[..., ir.Model]
Build = Callable[..., onnx.ModelProto]
OpTypes = Callable[[ir.Model], list[str]]

node = helper.make_node
SIZES = {"Shape", "Expand", "Range", "ConstantOfShape", "GatherND", "Tile"}


def test_class_token_is_repeated_without_a_shape(
    assert_same_values: Check, build_model: Build, op_types: OpTypes
) -> None:
    nodes = [
        node("Shape", ["x"], ["n"], start=0, end=1),
        node("Concat", ["n", "one", "width"], ["shape"], axis=0),
        node("Expand", ["token", "shape"], ["tokens"], name="visual/Expand"),
        node("Concat", ["tokens", "x"], ["y"], axis=1, name="visual/Concat"),
    ]
    token = np.random.default_rng(0).standard_normal((1, 1, 4)).astype(np.float32)
    constants = {"one": np.array([1]), "width": np.array([4]), "token": token}
    model = build_model(nodes, {"x": ("float32", ("batch", 3, 4))}, ["y"], constants)
    lowered = assert_same_values(model, tolerance=0)
    assert op_types(lowered) == ["Slice", "Mul", "Add", "Concat"]
    assert [each.name for each in lowered.graph][-2:] == ["visual/Expand/Add", "visual/Concat"]
    assert op_types(lower_graph(model, batch={"batch": 3})) == ["Concat"]


def test_the_input_keeps_one_user(assert_same_values: Check, build_model: Build) -> None:
    """The zeros come from the patch embedding, even where the class token is written down before it."""
    nodes = [
        node("Shape", ["x"], ["n"], start=0, end=1),
        node("Concat", ["n", "one", "width"], ["shape"], axis=0),
        node("Expand", ["token", "shape"], ["tokens"], name="visual/Expand"),
        node("MatMul", ["x", "w"], ["patches"]),
        node("Concat", ["tokens", "patches"], ["y"], axis=1),
    ]
    constants = {"one": np.array([1]), "width": np.array([4]), "token": np.ones((1, 1, 4), np.float32)}
    constants["w"] = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    model = build_model(nodes, {"x": ("float32", ("batch", 3, 6))}, ["y"], constants)
    lowered = assert_same_values(model)
    assert [each.op_type for each in lowered.graph.inputs[0].consumers()] == ["MatMul"]


def test_zeros_of_the_batch_come_from_tokens_too(assert_same_values: Check, build_model: Build) -> None:
    nodes = [
        node("Shape", ["ids"], ["n"], start=0, end=1),
        node("Concat", ["n", "size"], ["shape"], axis=0),
        node(
            "ConstantOfShape", ["shape"], ["ones"], value=helper.make_tensor("one", onnx.TensorProto.FLOAT, [1], [1.0])
        ),
        node("MatMul", ["ones", "w"], ["a"]),
        node("Cast", ["ids"], ["f"], to=onnx.TensorProto.FLOAT),
        node("Add", ["a", "f"], ["y"]),
    ]
    constants = {"size": np.array([3]), "w": np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)}
    lowered = assert_same_values(build_model(nodes, {"ids": ("int64", ("batch", 5))}, ["y"], constants))
    assert not SIZES & {each.op_type for each in lowered.graph}


@pytest.mark.parametrize("use", ["Div", "Add", "Mul"])
def test_expand_before_a_broadcast_goes(
    assert_same_values: Check, build_model: Build, op_types: OpTypes, use: str
) -> None:
    nodes = [
        node("Exp", ["x"], ["e"]),
        node("ReduceSum", ["e", "axes"], ["s"]),
        node("Shape", ["x"], ["shape"]),
        node("Expand", ["s", "shape"], ["full"]),
        node(use, ["x", "full"], ["y"]),
    ]
    model = build_model(nodes, {"x": ("float32", ("batch", 4))}, ["y"], {"axes": np.array([-1])})
    assert op_types(assert_same_values(model)) == ["Exp", "ReduceSum", use]


def test_elements_of_an_expanded_row_are_gathered_from_the_row(
    assert_same_values: Check, build_model: Build, op_types: OpTypes
) -> None:
    """RoBERTa's types of tokens."""
    nodes = [
        node("Shape", ["x"], ["size"], end=1),
        node("Concat", ["size", "length"], ["target"], axis=0),
        node("Expand", ["row", "target"], ["full"]),
        node("GatherElements", ["full", "x"], ["y"], axis=1),
    ]
    constants = {"length": np.array([12]), "row": np.random.default_rng(0).standard_normal((1, 12)).astype(np.float32)}
    lowered = assert_same_values(build_model(nodes, {"x": ("int64", ("batch", 4))}, ["y"], constants))
    assert op_types(lowered) == ["Gather"]


@pytest.mark.parametrize("shape", [("batch", 1), (1, 4), (1, 1)])
def test_expand_that_is_needed_becomes_an_addition(
    assert_same_values: Check, build_model: Build, shape: tuple[Any, ...]
) -> None:
    """A MatMul needs the full tensor."""
    nodes = [
        node("Shape", ["x"], ["target"]),
        node("Expand", ["small", "target"], ["full"]),
        node("MatMul", ["full", "w"], ["m"]),
        node("Add", ["m", "x"], ["y"]),
    ]
    inputs = {"x": ("float32", ("batch", 4)), "small": ("float32", shape)}
    constants = {"w": np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)}
    lowered = assert_same_values(build_model(nodes, inputs, ["y"], constants))
    assert not SIZES & {each.op_type for each in lowered.graph}


def test_keys_of_attention_are_transposed_in_one_step(
    assert_same_values: Check, build_model: Build, op_types: OpTypes
) -> None:
    """What torch writes for scaled_dot_product_attention: Shape, Slice, Concat, Reshape, Transpose, Reshape."""
    constants = {
        "last": np.array([-1]),
        "second": np.array([-2]),
        "end": np.array([2**63 - 1]),
        "begin": np.array([-(2**63)]),
        "open": np.array([-1]),
    }
    nodes = [
        node("Shape", ["k"], ["s"], start=0),
        node("Slice", ["s", "last", "end"], ["d"]),
        node("Slice", ["s", "second", "last"], ["t"]),
        node("Slice", ["s", "begin", "second"], ["bh"]),
        node("Concat", ["open", "t", "d"], ["flat"], axis=0),
        node("Reshape", ["k", "flat"], ["k3"]),
        node("Transpose", ["k3"], ["kt"], perm=[0, 2, 1]),
        node("Concat", ["bh", "d", "t"], ["full"], axis=0),
        node("Reshape", ["kt", "full"], ["k4"], name="attn/Reshape_8"),
        node("MatMul", ["q", "k4"], ["y"]),
    ]
    shape = ("batch", 2, 3, 4)
    model = build_model(nodes, {"q": ("float32", shape), "k": ("float32", shape)}, ["y"], constants)
    lowered = assert_same_values(model)
    assert op_types(lowered) == ["Transpose", "MatMul"]
    assert lowered.graph[0].name == "attn/Reshape_8/Transpose"


@pytest.mark.parametrize(
    ("given", "target"),
    [
        (("batch", 6), ["batch", 2, 3]),
        (("batch", 2, 3), ["2*batch", 3]),
        ((5, "batch", 4), [5, "batch", 2, 2]),
        ((5, "batch", 4), ["5*batch", 4]),
    ],
)
def test_computed_reshape_says_minus_one(
    assert_same_values: Check, build_model: Build, op_types: OpTypes, given: tuple[Any, ...], target: list[Any]
) -> None:
    """The target is computed from the shape of the input; sizes with a factor by a product."""
    axis = given.index("batch")
    perm = [*range(1, axis + 1), 0, *range(axis + 1, len(given))]  # only the first axis of an input may be dynamic
    nodes = [node("Transpose", ["x"], ["t"], perm=perm), node("Shape", ["t"], ["s"])]
    parts: list[str] = []
    constants = {"axis": np.array([axis])}
    nodes.append(node("Gather", ["s", "axis"], ["batch"], axis=0))
    for index, size in enumerate(target):
        if isinstance(size, int) or size != "batch":
            factor = size if isinstance(size, int) else int(size.split("*")[0])
            constants[f"c{index}"] = np.array([factor])
        if isinstance(size, int):
            parts.append(f"c{index}")
        elif size == "batch":
            parts.append("batch")
        else:
            nodes.append(node("Mul", ["batch", f"c{index}"], [f"p{index}"]))
            parts.append(f"p{index}")
    nodes += [
        node("Concat", parts, ["shape"], axis=0),
        node("Reshape", ["t", "shape"], ["r"]),
        node("Neg", ["r"], ["y"]),
    ]
    lowered = assert_same_values(
        build_model(nodes, {"x": ("float32", ("batch", *given[:axis], *given[axis + 1 :]))}, ["y"], constants)
    )
    assert op_types(lowered) == ["Transpose", "Reshape", "Neg"]
    says = lowered.graph[1].inputs[1].const_value.numpy().tolist()
    assert says == [size if isinstance(size, int) else -1 for size in target]


def test_queries_keys_and_values_are_split(assert_same_values: Check, build_model: Build, op_types: OpTypes) -> None:
    """nn.MultiheadAttention in PyTorch 2: (T, B, 3C) -> (T, B, 3, C) -> (1, T, B, 3, C) -> (3, T, B, 1, C) -> (3, T, B, C)."""
    nodes = [
        node("Transpose", ["x"], ["p"], perm=[1, 0, 2]),
        node("Reshape", ["p", "shape"], ["r"], name="attn/Reshape"),
        node("Unsqueeze", ["r", "zero"], ["u"]),
        node("Transpose", ["u"], ["t"], perm=[3, 1, 2, 0, 4]),
        node("Squeeze", ["t", "minus_two"], ["s"]),
    ]
    nodes += [node("Gather", ["s", f"i{index}"], [f"g{index}"], axis=0) for index in range(3)]
    nodes += [node(op_type, [f"g{index}"], [f"y{index}"]) for index, op_type in enumerate(("Neg", "Exp", "Relu"))]
    constants: dict[str, Any] = {f"i{index}": np.int64(index) for index in range(3)}
    constants |= {"shape": np.array([5, -1, 3, 4]), "zero": np.array([0]), "minus_two": np.array([-2])}
    model = build_model(nodes, {"x": ("float32", ("batch", 5, 12))}, ["y0", "y1", "y2"], constants)
    lowered = assert_same_values(model)
    assert sorted(op_types(lowered)) == ["Exp", "Neg", "Relu", "Split", "Transpose"]
    assert "attn/Reshape/Split" in {each.name for each in lowered.graph}


@pytest.mark.parametrize("parts", [2, 3])
def test_heads_are_split_before_they_are_moved(
    assert_same_values: Check, build_model: Build, op_types: OpTypes, parts: int
) -> None:
    """timm's attention: (B, T, n h d) -> (B, T, n, h, d) -> (n, B, h, T, d), cut and squeezed."""
    nodes = [
        node("Reshape", ["x", "shape"], ["r"], name="attn/Reshape"),
        node("Transpose", ["r"], ["t"], perm=[2, 0, 3, 1, 4]),
    ]
    for index in range(parts):
        nodes.append(node("Slice", ["t", f"n{index}", f"n{index + 1}", "n0"], [f"c{index}"]))
        nodes.append(node("Squeeze", [f"c{index}", "n0"], [f"s{index}"], name=f"attn/Squeeze_{index}"))
        nodes.append(node("Neg", [f"s{index}"], [f"y{index}"]))
    constants: dict[str, Any] = {f"n{index}": np.array([index]) for index in range(parts + 1)}
    constants["shape"] = np.array([-1, 5, parts, 2, 4])
    model = build_model(
        nodes, {"x": ("float32", ("batch", 5, parts * 8))}, [f"y{index}" for index in range(parts)], constants
    )
    lowered = assert_same_values(model)
    assert op_types(lowered) == ["Split", *["Reshape", "Transpose", "Neg"] * parts]
    assert lowered.graph[2].name == "attn/Squeeze_0/Transpose"


def test_a_choice_that_is_no_part_of_the_last_axis_is_kept(
    assert_same_values: Check, build_model: Build, op_types: OpTypes
) -> None:
    nodes = [
        node("Reshape", ["x", "shape"], ["r"]),
        node("Transpose", ["r"], ["t"], perm=[1, 0, 2]),
        node("Gather", ["t", "first"], ["g"], axis=0),
        node("Neg", ["g"], ["y"]),
    ]
    constants: dict[str, Any] = {"shape": np.array([-1, 6, 2]), "first": np.int64(0)}
    lowered = assert_same_values(build_model(nodes, {"x": ("float32", ("batch", 3, 4))}, ["y"], constants))
    assert op_types(lowered) == ["Reshape", "Transpose", "Gather", "Neg"]


def test_two_dynamic_axes_copy_one(build_model: Build, run_plain: Callable[..., Any]) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Transpose", ["v"], ["t"]),
        node("MatMul", ["a", "t"], ["m"]),
    ]
    nodes += [
        node("Shape", ["m"], ["sm"]),
        node("Concat", ["sm", "one"], ["target"], axis=0),
        node("Reshape", ["m", "target"], ["y"]),
    ]
    inputs = {"x": ("float32", ("images", 4)), "v": ("float32", ("texts", 5))}
    constants = {"w": np.ones((4, 5), np.float32), "one": np.array([1])}
    lowered = lower_graph(build_model(nodes, inputs, ["y"], constants))
    assert lowered.graph[-1].inputs[1].const_value.numpy().tolist() in ([0, -1, 1], [-1, 0, 1])
    feeds = {"x": np.ones((2, 4), np.float32), "v": np.ones((3, 5), np.float32)}
    assert run_plain(lowered, feeds)[0].shape == (2, 3, 1)
    assert [str(size) for size in lowered.graph.outputs[0].shape] == ["images", "texts", "1"]


def _text_pooling() -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    nodes = [
        node("Shape", ["ids"], ["s"], start=0, end=1),
        node("Squeeze", ["s"], ["n"]),
        node("Range", ["zero", "n", "one"], ["rows"]),
        node("ArgMax", ["ids"], ["eot"], axis=-1, keepdims=0, name="ArgMax"),
        node("Unsqueeze", ["rows", "last"], ["r"]),
        node("Unsqueeze", ["eot", "last"], ["e"]),
        node("Concat", ["r", "e"], ["index"], axis=-1),
        node("GatherND", ["x", "index"], ["y"], name="GatherND"),
    ]
    return nodes, {"zero": np.int64(0), "one": np.int64(1), "last": np.array([-1])}


def test_text_pooling_takes_the_row_of_the_largest_token(
    assert_same_values: Check, build_model: Build, op_types: OpTypes
) -> None:
    nodes, constants = _text_pooling()
    model = build_model(nodes, {"ids": ("int64", ("batch", 6)), "x": ("float32", ("batch", 6, 4))}, ["y"], constants)
    lowered = assert_same_values(model, tolerance=0)
    assert "Gather" not in op_types(lowered)
    assert not SIZES & set(op_types(lowered))
    static = lower_graph(model, batch={"batch": 3})
    assert op_types(static)[-1] == "Gather"
    assert "ReduceSum" not in op_types(static)
    assert {each.name for each in static.graph} >= {"GatherND/Gather", "ArgMax"}


def test_text_pooling_ignores_infinities_nowhere_but_in_its_row(
    build_model: Build, run_plain: Callable[..., Any]
) -> None:
    """The dynamic form multiplies by 0 and 1: a row that is not finite must not exist. Known, and stated in the report."""
    nodes, constants = _text_pooling()
    model = build_model(nodes, {"ids": ("int64", ("batch", 3)), "x": ("float32", ("batch", 3, 2))}, ["y"], constants)
    feeds = {"ids": np.array([[1, 9, 2]]), "x": np.array([[[np.inf, 0], [1, 2], [3, 4]]], np.float32)}
    np.testing.assert_array_equal(run_plain(lower_graph(model, batch={"batch": 1}), feeds)[0], [[1, 2]])


def test_flat_gather_in_order_is_a_reshape(assert_same_values: Check, build_model: Build, op_types: OpTypes) -> None:
    """timm's global pooling: Gather(Reshape(x, -1), arange(n) * channels + arange(channels))."""
    nodes = [
        node("Shape", ["x"], ["s"], start=0, end=1),
        node("Squeeze", ["s"], ["n"]),
        node("Range", ["zero", "n", "one"], ["rows"]),
        node("Mul", ["rows", "channels"], ["offsets"]),
        node("Unsqueeze", ["offsets", "axes"], ["o"]),
        node("Add", ["o", "columns"], ["index"]),
        node("Reshape", ["x", "flat"], ["f"]),
        node("Gather", ["f", "index"], ["g"], axis=0),
        node("Neg", ["g"], ["y"]),
    ]
    constants = {"zero": np.int64(0), "one": np.int64(1), "channels": np.int64(3), "flat": np.array([-1])}
    constants |= {"axes": np.array([1, 2, 3]), "columns": np.arange(3).reshape(1, 3, 1, 1)}
    lowered = assert_same_values(build_model(nodes, {"x": ("float32", ("batch", 3, 1, 1))}, ["y"], constants))
    assert op_types(lowered) == ["Neg"]


def test_reordering_gather_is_kept(build_model: Build, op_types: OpTypes, run_plain: Callable[..., Any]) -> None:
    constants = {"index": np.array([2, 0, 1]), "flat": np.array([-1])}
    nodes = [node("Reshape", ["x", "flat"], ["f"]), node("Gather", ["f", "index"], ["y"], axis=0)]
    lowered = lower_graph(build_model(nodes, {"x": ("float32", (1, 3))}, ["y"], constants))
    assert op_types(lowered) == ["Reshape", "Gather"]
    assert run_plain(lowered, {"x": np.array([[5, 6, 7]], np.float32)})[0].tolist() == [7, 5, 6]


@pytest.mark.parametrize(("low", "guard_stays"), [(-1e30, False), (-np.inf, True)])
def test_guard_of_masked_softmax(build_model: Build, op_types: OpTypes, low: float, guard_stays: bool) -> None:
    nodes = [
        node("Where", ["mask", "zero", "low"], ["m"]),
        node("Add", ["x", "m"], ["a"]),
        node("Softmax", ["a"], ["s"]),
        node("IsNaN", ["s"], ["bad"]),
        node("Where", ["bad", "zero", "s"], ["g"]),
        node("Neg", ["g"], ["y"]),
    ]
    inputs = {"mask": ("bool", ("batch", 4)), "x": ("float32", ("batch", 4))}
    model = build_model(nodes, inputs, ["y"], {"zero": np.float32(0), "low": np.float32(low)})
    assert ("IsNaN" in op_types(lower_graph(model))) == guard_stays


def test_constants_are_computed_but_not_the_work(build_model: Build, op_types: OpTypes) -> None:
    """A product of constants stays: it is what a precision is chosen for."""
    nodes = [node("Transpose", ["w"], ["t"]), node("MatMul", ["q", "t"], ["k"]), node("MatMul", ["x", "k"], ["y"])]
    constants = {"w": np.ones((4, 3), np.float32), "q": np.ones((5, 3), np.float32)}
    lowered = lower_graph(build_model(nodes, {"x": ("float32", ("batch", 5))}, ["y"], constants))
    assert op_types(lowered) == ["MatMul", "MatMul"]
    assert [each.shape for each in lowered.graph.initializers.values()] == [(5, 3), (3, 4)]


def test_a_shape_that_cannot_be_avoided_is_listed(build_model: Build, run_plain: Callable[..., Any]) -> None:
    """The mean over the batch is no tower's business, but the size of the batch is then really needed."""
    nodes = [
        node("Shape", ["x"], ["s"], start=0, end=1),
        node("Cast", ["s"], ["n"], to=onnx.TensorProto.FLOAT),
        node("Mul", ["x", "n"], ["y"], name="scaled"),
    ]
    lowered = lower_graph(build_model(nodes, {"x": ("float32", ("batch", 2))}, ["y"]))
    assert len(remaining_shape_nodes(lowered)) == 1
    assert run_plain(lowered, {"x": np.ones((3, 2), np.float32)})[0].tolist() == [[3, 3]] * 3
    assert (
        remaining_shape_nodes(
            lower_graph(build_model(nodes, {"x": ("float32", ("batch", 2))}, ["y"]), batch={"batch": 2})
        )
        == ()
    )


def test_sizes_are_expressions_of_the_axes(build_model: Build) -> None:
    nodes = [node("Concat", ["x", "x", "c"], ["a"], axis=0), node("MatMul", ["a", "t"], ["y"])]
    inputs = {"x": ("float32", ("images", 4)), "t": ("float32", (4, "texts"))}
    model = ir.from_proto(build_model(nodes, inputs, ["y"], {"c": np.ones((1, 4), np.float32)}))
    analysis = analyse_graph(model)
    assert [str(size) for size in analysis.sizes(model.graph.outputs[0])] == ["1 + 2*images", "texts"]


def test_a_size_that_is_no_polynomial_has_no_expression() -> None:
    points = [{"n": 3}, {"n": 5}, {"n": 7}]
    assert fit_size(["n"], points, [1, 2, 3]) is None
    assert str(fit_size(["n"], points, [7, 11, 15])) == "1 + 2*n"
    assert str(fit_size(["n"], points, [4, 4, 4])) == "4"
    assert str(fit_size(["n"], points, [0, 0, 0])) == "0"
