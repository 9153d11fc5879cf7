"""Each decomposition computes what the operator means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from clipmlu.errors import CompileError
from clipmlu.graph.lowering import lower_graph

Check = Callable[..., ir.Model]
Build = Callable[..., onnx.ModelProto]

RANDOM = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return RANDOM.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "axis"), [((6,), -1), ((3, 6), -1), ((3, 6), 2), ((3, 4, 6), -2), ((3, 4, 6), 1), ((2, 3, 6), 3)]
)
@pytest.mark.parametrize("with_bias", [True, False])
def test_layer_normalization(
    assert_same_values: Check, build_model: Build, shape: tuple[int, ...], axis: int, with_bias: bool
) -> None:
    full = ("batch", *shape)
    rest = full[axis if axis < 0 else axis - len(full) :]
    constants = {"scale": normal(*map(int, rest)), "bias": normal(*map(int, rest))}
    names = ["x", "scale", "bias"] if with_bias else ["x", "scale"]
    node = helper.make_node("LayerNormalization", names, ["y"], axis=axis, epsilon=1e-3)
    assert_same_values(build_model([node], {"x": ("float32", full)}, ["y"], constants), tolerance=2e-6)


def test_layer_normalization_of_a_large_offset_stays_precise(assert_same_values: Check, build_model: Build) -> None:
    model = build_model(
        [helper.make_node("LayerNormalization", ["x", "scale"], ["y"])],
        {"x": ("float32", (1, 64))},
        ["y"],
        {"scale": np.ones(64, np.float32)},
    )
    assert_same_values(model, feeds={"x": normal(1, 64) + np.float32(50)}, tolerance=2e-5)


def test_layer_normalization_whose_mean_is_used_is_refused(build_model: Build) -> None:
    node = helper.make_node("LayerNormalization", ["x", "scale"], ["y", "mean"], name="ln")
    model = build_model([node], {"x": ("float32", ("batch", 4))}, ["y", "mean"], {"scale": normal(4)})
    with pytest.raises(CompileError, match=r"Node 'ln'.*more results"):
        lower_graph(model)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("shape", [("batch",), ("batch", 3), ("batch", 2, 3, 4)])
def test_gelu(assert_same_values: Check, build_model: Build, approximate: str, shape: tuple[Any, ...]) -> None:
    node = helper.make_node("Gelu", ["x"], ["y"], approximate=approximate)
    assert_same_values(build_model([node], {"x": ("float32", shape)}, ["y"]))


def test_gelu_follows_the_erf_form_of_older_exports(
    build_model: Build, op_types: Callable[[ir.Model], list[str]]
) -> None:
    model = build_model([helper.make_node("Gelu", ["x"], ["y"], name="act")], {"x": ("float32", ("batch", 4))}, ["y"])
    lowered = lower_graph(model)
    assert op_types(lowered) == ["Div", "Erf", "Add", "Mul", "Mul"]
    assert [node.name for node in lowered.graph] == ["act/Div", "act/Erf", "act/Add", "act/Mul", "act/Mul_1"]


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [
        ("HardSwish", {}),
        ("HardSigmoid", {}),
        ("HardSigmoid", {"alpha": 0.3, "beta": 0.1}),
        ("Mish", {}),
        ("LpNormalization", {"axis": 1, "p": 2}),
    ],
)
def test_functions_of_one_tensor(
    assert_same_values: Check, build_model: Build, op_type: str, attributes: dict[str, Any]
) -> None:
    node = helper.make_node(op_type, ["x"], ["y"], **attributes)
    assert_same_values(build_model([node], {"x": ("float32", ("batch", 3, 4))}, ["y"]))


def test_l1_normalization(build_model: Build, run_plain: Callable[..., Any]) -> None:
    """Against NumPy: the reference evaluator of onnx 1.23 forgets the absolute value."""
    node = helper.make_node("LpNormalization", ["x"], ["y"], axis=-1, p=1)
    lowered = lower_graph(build_model([node], {"x": ("float32", ("batch", 3, 4))}, ["y"]))
    x = normal(2, 3, 4)
    np.testing.assert_allclose(run_plain(lowered, {"x": x})[0], x / np.abs(x).sum(-1, keepdims=True), rtol=1e-6)


@pytest.mark.parametrize("alpha", [1.0, 1.702])
def test_swish(assert_same_values: Check, build_model: Build, alpha: float) -> None:
    node = helper.make_node("Swish", ["x"], ["y"], alpha=alpha)
    assert_same_values(build_model([node], {"x": ("float32", ("batch", 5))}, ["y"], opset=24))


@pytest.mark.parametrize("axis", [-1, 1, -2])
def test_rms_normalization(assert_same_values: Check, build_model: Build, axis: int) -> None:
    node = helper.make_node("RMSNormalization", ["x", "scale"], ["y"], axis=axis)
    scale = normal(4) if axis == -1 else normal(3, 4)
    assert_same_values(build_model([node], {"x": ("float32", ("batch", 3, 4))}, ["y"], {"scale": scale}, opset=23))


@pytest.mark.parametrize(("opset", "size"), [(18, 2), (21, 6)])
def test_group_normalization(assert_same_values: Check, build_model: Build, opset: int, size: int) -> None:
    node = helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["y"], num_groups=2)
    constants = {"scale": normal(size), "bias": normal(size)}
    model = build_model([node], {"x": ("float32", ("batch", 6, 4, 5))}, ["y"], constants, opset=opset)
    assert_same_values(model, tolerance=3e-6)


def test_instance_normalization(assert_same_values: Check, build_model: Build) -> None:
    node = helper.make_node("InstanceNormalization", ["x", "scale", "bias"], ["y"])
    constants = {"scale": normal(3), "bias": normal(3)}
    assert_same_values(build_model([node], {"x": ("float32", ("batch", 3, 4, 5))}, ["y"], constants), tolerance=3e-6)


@pytest.mark.parametrize("op_type", ["LessOrEqual", "GreaterOrEqual"])
def test_comparisons(assert_same_values: Check, build_model: Build, op_type: str) -> None:
    inputs = {"a": ("int64", ("batch", 7)), "b": ("int64", ("batch", 7))}
    assert_same_values(build_model([helper.make_node(op_type, ["a", "b"], ["y"])], inputs, ["y"]))


def test_cast_like(assert_same_values: Check, build_model: Build) -> None:
    inputs = {"a": ("int64", ("batch", 7)), "b": ("float32", ("batch", 7))}
    assert_same_values(build_model([helper.make_node("CastLike", ["a", "b"], ["y"])], inputs, ["y"]))


@pytest.mark.parametrize(("axis", "attributes"), [(1, {}), (-1, {"exclusive": 1}), (1, {"reverse": 1, "exclusive": 1})])
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_cumulative_sum(
    assert_same_values: Check, build_model: Build, axis: int, attributes: dict[str, int], dtype: str
) -> None:
    """Positions of the tokens that are not padding, in RoBERTa and NLLB."""
    node = helper.make_node("CumSum", ["x", "axis"], ["y"], **attributes)
    model = build_model([node], {"x": (dtype, ("batch", 5, 3))}, ["y"], {"axis": np.array(axis)})
    assert "CumSum" not in {each.op_type for each in assert_same_values(model).graph}


@pytest.mark.parametrize("keepdims", [0, 1])
def test_reduce_l1(assert_same_values: Check, build_model: Build, keepdims: int) -> None:
    node = helper.make_node("ReduceL1", ["x", "axes"], ["y"], keepdims=keepdims)
    model = build_model([node], {"x": ("float32", ("batch", 3, 4))}, ["y"], {"axes": np.array([-1, 1])})
    assert_same_values(model)


@pytest.mark.parametrize(
    ("equation", "left", "right"),
    [
        ("bhqd,bhkd->bhqk", ("batch", 2, 3, 4), ("batch", 2, 5, 4)),
        ("bqhd,bkhd->bhqk", ("batch", 3, 2, 4), ("batch", 5, 2, 4)),
        ("bhqk,bkhd->bqhd", ("batch", 2, 3, 5), ("batch", 5, 2, 4)),
        ("bd,cd->bc", ("batch", 4), (6, 4)),
        ("bij,jk->bik", ("batch", 2, 3), (3, 5)),
    ],
)
def test_einsum(
    assert_same_values: Check, build_model: Build, equation: str, left: tuple[Any, ...], right: tuple[Any, ...]
) -> None:
    node = helper.make_node("Einsum", ["a", "b"], ["y"], equation=equation)
    assert_same_values(build_model([node], {"a": ("float32", left), "b": ("float32", right)}, ["y"]), tolerance=2e-6)


@pytest.mark.parametrize("equation", ["ii,ij->j", "bij->b", "bij,bk->bj"])
def test_einsum_that_is_no_plain_product_names_its_equation(build_model: Build, equation: str) -> None:
    sides = equation.split("->", maxsplit=1)[0].split(",")
    names = ["a", "b"][: len(sides)]
    inputs = {
        name: ("float32", tuple({"b": 2, "i": 3, "j": 3, "k": 4}[each] for each in side))
        for name, side in zip(names, sides, strict=True)
    }
    node = helper.make_node("Einsum", names, ["y"], equation=equation, name="product")
    with pytest.raises(CompileError, match=f"Node 'product'.*'{equation}'"):
        lower_graph(build_model([node], inputs, ["y"]))


@pytest.mark.parametrize("mask", [None, "float32", "bool"])
def test_attention(assert_same_values: Check, build_model: Build, mask: str | None) -> None:
    shape = ("batch", 2, 3, 4)
    inputs: dict[str, Any] = dict.fromkeys("qkv", ("float32", shape))
    constants = {}
    if mask is not None:
        constants["mask"] = np.tril(np.ones((3, 3), bool)) if mask == "bool" else normal(3, 3)
    node = helper.make_node("Attention", [*inputs, *constants], ["y"])
    assert_same_values(build_model([node], inputs, ["y"], constants, opset=23), tolerance=3e-6)


def test_causal_attention_is_refused(build_model: Build) -> None:
    inputs = dict.fromkeys("qkv", ("float32", ("batch", 2, 3, 4)))
    node = helper.make_node("Attention", list(inputs), ["y"], is_causal=1, name="attn")
    with pytest.raises(CompileError, match=r"Node 'attn'.*causal"):
        lower_graph(build_model([node], inputs, ["y"], opset=23))
