"""Preparing an 8-bit graph for onnxruntime's kernels: fewer operators, the same values."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from clipmlu.backends.onnxruntime_graph import prepare, read_prepared
from clipmlu.graph.messages import Model
from clipmlu.graph.quantisation.rewrite import rewrite_for_runtime
from clipmlu.specs import Precision, QuantisationOptions

Array = npt.NDArray[Any]
ROWS, DEPTH, WIDTH, SIDE = 5, 24, 16, 8
RANGE = (-1.5, 2.5)


def _linear_model(generator: np.random.Generator, *, gemm: bool = False, result_taken: bool = False) -> onnx.ModelProto:
    """y = x @ w + b, as a MatMul and an Add or as a Gemm with a transposed weight."""
    weight = generator.standard_normal((WIDTH, DEPTH) if gemm else (DEPTH, WIDTH)).astype(np.float32)
    bias = generator.standard_normal(WIDTH).astype(np.float32)
    nodes = (
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="linear", transB=1)]
        if gemm
        else [
            helper.make_node("MatMul", ["x", "w"], ["product"], name="linear"),
            helper.make_node("Add", ["product", "b"], ["y"], name="bias"),
        ]
    )
    return _model(nodes, [ROWS, DEPTH], {"w": weight, "b": bias}, ["y", *(["product"] if result_taken else [])])


def _model(
    nodes: list[onnx.NodeProto], shape: list[int], weights: dict[str, Array], outputs: list[str]
) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "test",
        [value("x", TensorProto.FLOAT, shape)],
        [value(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)


def _quantised(
    model: onnx.ModelProto, activation: str = "asymmetric", granularity: str = "per_axis"
) -> onnx.ModelProto:
    how = QuantisationOptions(granularity=granularity, activation=activation)  # type: ignore[arg-type]
    precision = Precision.QINT8_MIXED_FLOAT32
    return rewrite_for_runtime(model, precision, how, {"x": RANGE}, {})[0]


def _prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = Model.read(model.SerializeToString())
    prepare(copy)
    return onnx.load_from_string(copy.to_bytes())


def _run(model: onnx.ModelProto, x: Array) -> list[Array]:
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return [np.asarray(result) for result in session.run(None, {"x": x})]


def _constants(model: onnx.ModelProto) -> dict[str, Array]:
    return {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}


def _operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def _in_integers(model: onnx.ModelProto, x: Array, *, gemm: bool) -> Array:
    """x @ w + b with exact sums of integers, from the scales that the quantised graph holds."""
    constants = _constants(model)
    quantise = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    scale, zero = (constants[name] for name in quantise.input[1:])
    limits = np.iinfo(zero.dtype)
    levels = np.clip(np.rint(x / scale) + zero.astype(np.int64), limits.min, limits.max).astype(np.int64) - zero
    stored = next(name for name in constants if name.endswith("_integers"))
    weight = constants[stored].astype(np.int64)
    sums = levels @ (weight.T if gemm else weight)
    return sums * (scale * constants[stored.replace("_integers", "_scale")]).astype(np.float64) + constants["b"]


@pytest.mark.parametrize("gemm", [False, True])
@pytest.mark.parametrize("activation", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_axis"])
def test_a_product_and_its_bias_are_one_operator(gemm: bool, activation: str, granularity: str) -> None:
    generator = np.random.default_rng(0)
    quantised = _quantised(_linear_model(generator, gemm=gemm), activation, granularity)
    prepared = _prepared(quantised)
    assert _operators(prepared) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}
    x = generator.uniform(-2, 3, (ROWS, DEPTH)).astype(np.float32)
    (result,) = _run(prepared, x)
    np.testing.assert_allclose(result, _in_integers(quantised, x, gemm=gemm), rtol=1e-5, atol=1e-5)


def test_a_product_that_something_else_uses_keeps_its_own_result() -> None:
    generator = np.random.default_rng(1)
    quantised = _quantised(_linear_model(generator, result_taken=True))
    prepared = _prepared(quantised)
    assert _operators(prepared) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1, "Add": 1}
    x = generator.uniform(-2, 3, (ROWS, DEPTH)).astype(np.float32)
    with_bias, product = _run(prepared, x)
    np.testing.assert_allclose(with_bias, _in_integers(quantised, x, gemm=False), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(product + _constants(prepared)["b"], with_bias, rtol=1e-6)


def _convolution(generator: np.random.Generator, *, quantised_result: bool) -> onnx.ModelProto:
    """A patch embedding; ``quantised_result``: a second one takes its result."""
    weights = {"w": generator.standard_normal((4, 3, 2, 2)).astype(np.float32)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="patches", strides=[2, 2])]
    if quantised_result:
        weights["w2"] = generator.standard_normal((4, 4, 1, 1)).astype(np.float32)
        nodes[0].output[0] = "h"
        nodes += [
            helper.make_node("Relu", ["h"], ["r"], name="relu"),
            helper.make_node("Conv", ["r", "w2"], ["y"], name="second"),
        ]
    return _model(nodes, [1, 3, SIDE, SIDE], weights, ["y"])


def test_the_weight_of_a_convolution_in_float32_is_stored_as_floats() -> None:
    generator = np.random.default_rng(2)
    quantised = _quantised(_convolution(generator, quantised_result=False))
    prepared = _prepared(quantised)
    assert _operators(prepared) == {"QuantizeLinear": 1, "DequantizeLinear": 1, "Conv": 1}
    constants = _constants(quantised)
    stored = next(name for name in constants if name.endswith("_integers"))
    expected = constants[stored] * constants[stored.replace("_integers", "_scale")].reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(_constants(prepared)[stored.removesuffix("_integers")], expected)
    x = generator.uniform(-2, 3, (1, 3, SIDE, SIDE)).astype(np.float32)
    np.testing.assert_array_equal(_run(prepared, x)[0], _run(quantised, x)[0])


def test_a_convolution_between_quantised_tensors_is_left_to_onnxruntime() -> None:
    """onnxruntime computes it in integers, for which the weight has to stay integers."""
    model = _convolution(np.random.default_rng(3), quantised_result=True)
    how = QuantisationOptions(granularity="per_axis", activation="asymmetric")
    quantised, _ = rewrite_for_runtime(model, Precision.QINT8_MIXED_FLOAT32, how, {"x": RANGE, "r": (0.0, 4.0)}, {})
    prepared = _prepared(quantised)
    assert _operators(prepared)["DequantizeLinear"] == _operators(quantised)["DequantizeLinear"] - 1
    assert next(node for node in prepared.graph.node if node.name == "patches").input[1].endswith("int8_0")
    names = {name for node in prepared.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    assert {"w_mode_int8_0", "x_mode_int8", "r_mode_int8"} == names


def test_a_graph_with_a_second_file_of_weights_is_opened_as_it_is(tmp_path: Path) -> None:
    quantised = _quantised(_linear_model(np.random.default_rng(4)))
    onnx.save(quantised, tmp_path / "one.onnx")
    assert read_prepared(tmp_path / "one.onnx")
    onnx.save(quantised, tmp_path / "two.onnx", save_as_external_data=True, location="two.data", size_threshold=0)
    assert read_prepared(tmp_path / "two.onnx") is None


def test_activations_that_use_each_other_are_followed_once() -> None:
    """40 operators Clip, each with three inputs from the one before: 3**40 paths, and deep chains of them."""
    kernel = np.ones((1, 1, 1, 1), np.float32)
    deep = [helper.make_node("Relu", [f"r{at}"], [f"r{at + 1}"]) for at in range(2000)]
    wide = [helper.make_node("Clip", [f"c{at}"] * 3, [f"c{at + 1}"]) for at in range(40)]
    for nodes, first, last in ((deep, "r0", "r2000"), (wide, "c0", "c40")):
        model = _model([helper.make_node("Conv", ["x", "w"], [first]), *nodes], [1, 1, 1, 1], {"w": kernel}, [last])
        before = model.SerializeToString()
        assert _constants(_prepared(model))["w"].shape == kernel.shape
        assert len(_prepared(model).graph.node) == len(nodes) + 1
        assert model.SerializeToString() == before
