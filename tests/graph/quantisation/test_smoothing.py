"""Smoothing changes nothing in float, wherever it is applied, and evens out what it is meant to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from clipmlu.bundle.directory import ExportedBundle
from clipmlu.graph.lowering import lower_graph
from clipmlu.graph.quantisation.sites import find_sites
from clipmlu.graph.quantisation.smoothing import choose_factors, smooth_graph
from clipmlu.graph.roles import find_operators
from clipmlu.graph.watch import channel_maxima
from clipmlu.specs import SMOOTHED_ROLES, TowerName

Array = np.ndarray[Any, np.dtype[Any]]

SITES: dict[tuple[str, TowerName], dict[str, int]] = {
    ("vit", "image"): {"qkv": 2, "attention_output": 2, "mlp_in": 2, "mlp_out": 2, "projection": 1},
    ("vit", "text"): {"qkv": 2, "attention_output": 2, "mlp_in": 2, "mlp_out": 2},
    ("siglip", "image"): {"qkv": 6, "attention_output": 6, "mlp_in": 6, "mlp_out": 6, "pooling": 2},
    ("siglip", "text"): {"qkv": 2, "attention_output": 2, "mlp_in": 2, "mlp_out": 2, "projection": 1},
    ("resnet", "image"): {},
    ("convnext", "image"): {"mlp_in": 9, "mlp_out": 9},
    ("hf-text", "text"): {"attention_output": 2, "mlp_out": 2},
}
"""By hand from the architectures: LayerNorms that feed linear layers only, value/output pairs, and MLPs. A residual connection that
starts behind the LayerNorm (BERT) leaves none; a text's token is picked behind the last LayerNorm by a masked sum."""


def run(model: onnx.ModelProto, feeds: dict[str, Array]) -> Array:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, feeds)
    return np.asarray(result)


def feeds_for(bundle: ExportedBundle, tower: TowerName) -> dict[str, Array]:
    generator = np.random.default_rng(5)
    (tensor,) = bundle.tower(tower).inputs
    shape = [2, *(int(size) for size in tensor.shape[1:])]
    if tensor.dtype == "int64":
        return {tensor.name: generator.integers(1, 250, shape)}
    return {tensor.name: generator.standard_normal(shape, dtype=np.float32)}


@pytest.mark.torch
@pytest.mark.parametrize(("kind", "tower"), SITES, ids="-".join)
def test_any_factors_leave_the_float_result_as_it_is(
    tiny_bundle: Callable[..., ExportedBundle], kind: str, tower: TowerName
) -> None:
    bundle = tiny_bundle(kind)
    model = ir.to_proto(lower_graph(bundle.tower_path(tower)))
    sites = find_sites(model, find_operators(model))
    assert Counter(site.role for site in sites) == SITES[kind, tower]
    generator = np.random.default_rng(1)
    factors = {site.tensor: np.exp(generator.normal(size=site.channels)).astype(np.float32) for site in sites}
    smoothed = smooth_graph(model, sites, factors)
    feeds = feeds_for(bundle, tower)
    np.testing.assert_allclose(run(smoothed, feeds), run(model, feeds), atol=1e-6)
    before = {weight.name: weight.raw_data for weight in model.graph.initializer}
    changed = [weight for weight in smoothed.graph.initializer if before.get(weight.name) != weight.raw_data]
    assert len(changed) >= len(sites)
    added = [site.tensor for site in sites if site.role == "mlp_out"]
    kept = [(node.name, node.op_type) for node in smoothed.graph.node if node.name not in added]
    assert kept == [(node.name, node.op_type) for node in model.graph.node]
    assert len(smoothed.graph.node) == len(kept) + len(added)
    roles = [(each.node, each.role, each.block, each.macs) for each in find_operators(model)]
    assert [(each.node, each.role, each.block, each.macs) for each in find_operators(smoothed)] == roles


def affine_graph(*, shared_weight: bool = False, leaks: bool = False) -> onnx.ModelProto:
    """``softmax(x) * gain + offset`` into two MatMuls, as behind a LayerNorm in front of an attention."""
    generator = np.random.default_rng(0)
    weights = {
        "gain": generator.uniform(0.5, 2.0, 4).astype(np.float32),
        "offset": generator.standard_normal(4, dtype=np.float32),
        "w0": generator.standard_normal((4, 3), dtype=np.float32),
        "w1": generator.standard_normal((4, 3), dtype=np.float32),
    }
    second = "w0" if shared_weight else "w1"
    node = helper.make_node
    nodes = [
        node("Mul", ["x", "gain"], ["m"], name="gain"),
        node("Add", ["m", "offset"], ["normal"], name="offset"),
        node("MatMul", ["normal", "w0"], ["a"], name="first"),
        node("MatMul", ["normal", second], ["b"], name="second"),
        node("Add", ["a", "b"], ["sum"], name="sum"),
        node("ReduceMean", ["normal"], ["mean"], name="mean", axes=[1]),
        node("Add", ["sum", "mean" if leaks else "zero"], ["y"], name="end"),
    ]
    if not leaks:
        del nodes[5]
        weights["zero"] = np.zeros(1, np.float32)
    graph = helper.make_graph(
        nodes,
        "affine",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)


def operators_of(model: onnx.ModelProto, role: str = "mlp_in") -> list[Any]:
    from clipmlu.graph.roles import Operator

    return [
        Operator(node=node.name, role=role, block=0, macs=1, inputs=(node.input[0],), output=node.output[0])  # type: ignore[arg-type]
        for node in model.graph.node
        if node.op_type == "MatMul"
    ]


def test_factors_are_those_of_the_formula() -> None:
    model = affine_graph()
    x = np.random.default_rng(2).standard_normal((64, 4)).astype(np.float32) * np.float32([1, 1, 50, 1])
    (site,) = find_sites(model, operators_of(model))
    assert (site.tensor, site.channels, site.role) == ("normal", 4, "mlp_in")
    maxima = channel_maxima(model, {"normal": 4}, [[x[:32]], [x[32:]]])
    weights = {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}
    normal = x * weights["gain"] + weights["offset"]
    np.testing.assert_allclose(maxima["normal"], np.abs(normal).max(axis=0), rtol=1e-6)
    facing = np.maximum(np.abs(weights["w0"]).max(axis=1), np.abs(weights["w1"]).max(axis=1))
    for alpha in (0.25, 0.5, 1.0):
        found = choose_factors(model, [site], maxima, {"mlp_in": alpha})["normal"]
        np.testing.assert_allclose(found, np.abs(normal).max(axis=0) ** alpha / facing ** (1 - alpha), rtol=1e-5)
    assert choose_factors(model, [site], maxima, {"mlp_in": 0.0, "qkv": 0.5}) == {}
    even = smooth_graph(model, [site], choose_factors(model, [site], maxima, {"mlp_in": 1.0}))
    after = channel_maxima(even, {"normal": 4}, [[x]])["normal"]
    np.testing.assert_allclose(after, 1.0, rtol=1e-5)
    np.testing.assert_allclose(run(even, {"x": x}), run(model, {"x": x}), rtol=1e-4, atol=1e-5)


def test_a_shared_weight_is_scaled_once_for_each_that_takes_it() -> None:
    model = affine_graph(shared_weight=True)
    (site,) = find_sites(model, operators_of(model))
    smoothed = smooth_graph(model, [site], {"normal": [2.0, 0.5, 8.0, 1.0]})
    x = np.random.default_rng(2).standard_normal((5, 4), dtype=np.float32)
    np.testing.assert_allclose(run(smoothed, {"x": x}), run(model, {"x": x}), rtol=1e-5, atol=1e-6)


def test_what_something_else_takes_too_is_left_alone() -> None:
    model = affine_graph(leaks=True)
    assert find_sites(model, operators_of(model)) == []


def test_roles_that_cannot_be_smoothed_are_left_alone() -> None:
    model = affine_graph()
    assert find_sites(model, operators_of(model, "attention_scores")) == []
    assert "attention_scores" not in SMOOTHED_ROLES


def hidden_graph(*, leaks: bool = False) -> onnx.ModelProto:
    """``x * sigmoid(x)`` into a MatMul: the hidden layer of an MLP, which no weight can scale."""
    generator = np.random.default_rng(0)
    node = helper.make_node
    nodes = [
        node("Sigmoid", ["x"], ["s"], name="sigmoid"),
        node("Mul", ["x", "s"], ["hidden"], name="swish"),
        node("MatMul", ["hidden", "w"], ["y"], name="second"),
        *([node("Identity", ["hidden"], ["z"], name="other")] if leaks else []),
    ]
    outputs = [("y", 3), *([("z", 4)] if leaks else [])]
    graph = helper.make_graph(
        nodes,
        "hidden",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in outputs],
        [numpy_helper.from_array(generator.standard_normal((4, 3), dtype=np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)


def test_a_hidden_layer_is_divided_by_a_mul_that_binary16_does_not_round() -> None:
    model = hidden_graph()
    x = np.random.default_rng(2).standard_normal((64, 4)).astype(np.float32) * np.float32([1, 1, 50, 1])
    (site,) = find_sites(model, operators_of(model, "mlp_out"))
    assert (site.source, site.channels, site.role) == ("hidden", 4, "mlp_out")
    hidden = x / (1 + np.exp(-x.astype(np.float64)))
    maxima = np.abs(hidden).max(axis=0)
    factors = choose_factors(model, [site], {"hidden": maxima}, {"mlp_out": 0.75})
    weight = numpy_helper.to_array(model.graph.initializer[0])
    np.testing.assert_allclose(factors[site.tensor], maxima**0.75 / np.abs(weight).max(axis=1) ** 0.25, rtol=2**-11)
    smoothed = smooth_graph(model, [site], factors)
    onnx.checker.check_model(smoothed, full_check=True)
    (divided,) = channel_maxima(smoothed, {site.tensor: 4}, [[x]]).values()
    np.testing.assert_allclose(divided, maxima / factors[site.tensor], rtol=1e-5)
    np.testing.assert_allclose(run(smoothed, {"x": x}), run(model, {"x": x}), rtol=1e-4, atol=1e-5)
    assert [node.name for node in smoothed.graph.node if node.op_type != "Mul"] == ["sigmoid", "second"]
    inverse = numpy_helper.to_array(next(each for each in smoothed.graph.initializer if each.name != "w"))
    np.testing.assert_array_equal(inverse, inverse.astype(np.float16).astype(np.float32))


def test_a_hidden_layer_that_something_else_uses_is_left_alone() -> None:
    model = hidden_graph(leaks=True)
    assert find_sites(model, operators_of(model, "mlp_out")) == []


def test_a_channel_that_is_always_zero_keeps_its_factor_of_one() -> None:
    model = affine_graph()
    (site,) = find_sites(model, operators_of(model))
    factors = choose_factors(model, [site], {"normal": np.array([1.0, 0.0, 4.0, 9.0])}, {"mlp_in": 1.0})
    np.testing.assert_allclose(factors["normal"], [1.0, 1.0, 4.0, 9.0])


def test_the_graph_given_is_not_changed(tmp_path: Path) -> None:
    model = affine_graph()
    content = model.SerializeToString()
    (site,) = find_sites(model, operators_of(model))
    smooth_graph(model, [site], {"normal": [2.0, 0.5, 8.0, 1.0]})
    assert model.SerializeToString() == content
