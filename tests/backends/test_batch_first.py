"""Attention rewritten to (batch, tokens, width), against NumPy's attention and against the graph before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from clipmlu.backends.batch_first import make_batch_first
from clipmlu.bundle.directory import ExportedBundle
from clipmlu.graph.lowering import lower_graph
from clipmlu.graph.messages import Model
from clipmlu.graph.quantisation.rewrite import rewrite_for_runtime
from clipmlu.specs import Precision, QuantisationOptions

Array = npt.NDArray[Any]
BATCH, TOKENS, HEADS, SIZE = 3, 5, 2, 4
WIDTH = HEADS * SIZE


def _weights(generator: np.random.Generator) -> dict[str, Array]:
    shapes = {"w": (WIDTH, 3 * WIDTH), "b": (3 * WIDTH,), "w_out": (WIDTH, WIDTH), "b_out": (WIDTH,)}
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _attention(weights: dict[str, Array], *, batch: int = -1, bias: bool = True) -> list[onnx.NodeProto]:
    """The nodes of torch's ``nn.MultiheadAttention`` after lowering: x (batch, tokens, width) to y of the same shape."""
    node = helper.make_node
    weights |= {
        "joined": np.array([TOKENS, batch * HEADS if batch > 0 else -1, SIZE]),
        "apart": np.array([batch, HEADS, TOKENS, SIZE]),
        "rows": np.array([-1, WIDTH]),
        "back": np.array([TOKENS, batch, WIDTH]),
        "scale": np.float32(SIZE**-0.5),
    }
    nodes = [
        node("Transpose", ["x"], ["t"], name="entry", perm=[1, 0, 2]),
        node("MatMul", ["t", "w"], ["product" if bias else "qkv"], name="qkv"),
        *([node("Add", ["product", "b"], ["qkv"], name="qkv_bias")] if bias else []),
        node("Split", ["qkv"], ["q", "k", "v"], name="split", axis=2, split=[WIDTH] * 3),
    ]
    for name in "qkv":
        nodes += [
            node("Reshape", [name, "joined"], [f"{name}1"], name=f"{name}1"),
            node("Transpose", [f"{name}1"], [f"{name}2"], name=f"{name}2", perm=[1, 0, 2]),
            node("Reshape", [f"{name}2", "apart"], [f"{name}3"], name=f"{name}3"),
        ]
    return [
        *nodes,
        node("Mul", ["q3", "scale"], ["q4"], name="scaled"),
        node("Transpose", ["k3"], ["k4"], name="flipped", perm=[0, 1, 3, 2]),
        node("MatMul", ["q4", "k4"], ["scores"], name="scores"),
        node("Softmax", ["scores"], ["weights"], name="softmax", axis=3),
        node("MatMul", ["weights", "v3"], ["mixed"], name="mixed"),
        node("Transpose", ["mixed"], ["m1"], name="merge", perm=[2, 0, 1, 3]),
        node("Reshape", ["m1", "rows"], ["m2"], name="flat"),
        node("MatMul", ["m2", "w_out"], ["m3"], name="out"),
        node("Add", ["m3", "b_out"], ["m4"], name="out_bias"),
        node("Reshape", ["m4", "back"], ["m5"], name="unflat"),
        node("Transpose", ["m5"], ["y"], name="leave", perm=[1, 0, 2]),
    ]


def _model(
    nodes: list[onnx.NodeProto], weights: dict[str, Array], outputs: tuple[str, ...] = ("y",)
) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "attention",
        [value("x", TensorProto.FLOAT, ["batch", TOKENS, WIDTH])],
        [value(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)


def _rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = Model.read(model.SerializeToString())
    make_batch_first(copy)
    return onnx.load_from_string(copy.to_bytes())


def _operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def _run(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return [np.asarray(result) for result in session.run(None, feeds)]


def _in_numpy(x: Array, weights: dict[str, Array], *, bias: bool = True) -> Array:
    """Multi-head attention of each image and each head by itself, in float64."""
    result = np.zeros(x.shape)
    for image, tokens in enumerate(x.astype(np.float64)):
        qkv = tokens @ weights["w"] + (weights["b"] if bias else 0)
        for head in range(HEADS):
            q, k, v = (qkv[:, part * WIDTH + head * SIZE :][:, :SIZE] for part in range(3))
            scores = np.exp(q @ k.T / np.sqrt(SIZE))
            result[image, :, head * SIZE :][:, :SIZE] = scores / scores.sum(1, keepdims=True) @ v
    return result @ weights["w_out"] + weights["b_out"]


@pytest.mark.parametrize("batch", [-1, BATCH])
@pytest.mark.parametrize("bias", [True, False])
def test_the_attention_is_the_same_with_the_batch_first(batch: int, bias: bool) -> None:
    generator = np.random.default_rng(0)
    weights = _weights(generator)
    x = generator.standard_normal((BATCH, TOKENS, WIDTH)).astype(np.float32)
    rewritten = _rewritten(_model(_attention(weights, batch=batch, bias=bias), weights))
    operators = _operators(rewritten)
    assert (operators["Split"], operators["Transpose"], operators["MatMul"]) == (0, 5, 6)
    np.testing.assert_allclose(_run(rewritten, {"x": x})[0], _in_numpy(x, weights, bias=bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("granularity", ["per_tensor", "per_axis"])
def test_a_quantised_attention_has_the_same_integers(granularity: Any) -> None:
    generator = np.random.default_rng(1)
    weights = _weights(generator)
    x = generator.standard_normal((BATCH, TOKENS, WIDTH)).astype(np.float32)
    how = QuantisationOptions(granularity=granularity, activation="asymmetric")
    kept = {"scores": "float32", "mixed": "float32"}
    ranges = {"t": (-3.0, 2.5), "m2": (-4.0, 3.0)}
    model = _model(_attention(weights), weights)
    quantised, _ = rewrite_for_runtime(model, Precision.QINT8_MIXED_FLOAT32, how, ranges, kept)
    rewritten = _rewritten(quantised)
    assert _operators(rewritten) - _operators(quantised) == {"DequantizeLinear": 2, "MatMul": 2, "Add": 2}
    np.testing.assert_array_equal(_run(rewritten, {"x": x})[0], _run(quantised, {"x": x})[0])


@pytest.mark.parametrize("taken", ["t", "qkv", "k", "v2", "m1", "m4"])
def test_an_attention_whose_tensors_something_else_uses_stays(taken: str) -> None:
    weights = _weights(np.random.default_rng(2))
    for outputs, more in ((("y", taken), []), (("y", "z"), [helper.make_node("Neg", [taken], ["z"], name="z")])):
        model = _model([*_attention(weights), *more], weights, outputs)
        assert _rewritten(model).SerializeToString() == model.SerializeToString()


@pytest.mark.parametrize("tower", ["image", "text"])
def test_all_attentions_of_a_lowered_tower_are_rewritten(
    tiny_bundle: Callable[..., ExportedBundle], tower: Any
) -> None:
    bundle = tiny_bundle("vit")
    for batch in (None, BATCH):
        static = None if batch is None else {_batch_axis(bundle, tower): batch}
        model = ir.to_proto(lower_graph(bundle.tower_path(tower), batch=static))
        rewritten = _rewritten(model)
        assert _operators(model)["Split"] == 2
        assert _operators(rewritten)["Split"] == 0
        source = bundle.tower(tower).inputs[0]
        shape = (BATCH, *(int(size) for size in source.shape[1:]))
        generator = np.random.default_rng(3)
        values: Array = generator.standard_normal(shape) if tower == "image" else generator.integers(1, 200, shape)
        feeds = {source.name: values.astype(source.dtype)}
        for one, other in zip(_run(rewritten, feeds), _run(model, feeds), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def _batch_axis(bundle: ExportedBundle, tower: Any) -> str:
    axis = bundle.tower(tower).inputs[0].shape[0]
    assert isinstance(axis, str)
    return axis
