"""Rewriting an 8-bit graph for OpenVINO."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from clipmlu.backends.openvino_graph import quantise_before_reshapes
from clipmlu.graph.messages import Model

SHAPE = (3, 4, 5)


def _rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = Model.read(model.SerializeToString())
    quantise_before_reshapes(copy)
    return onnx.load_from_string(copy.to_bytes())


def _model(*, scale: object = np.float32(0.1), outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    """x reshaped to rows, quantised, dequantised, and negated."""
    node, value = helper.make_node, helper.make_tensor_value_info
    constants = {"rows": np.array([-1, 20]), "scale": scale, "zero": np.zeros(np.shape(scale), np.int8)}
    nodes = [
        node("Abs", ["x"], ["a"], name="abs"),
        node("Reshape", ["a", "rows"], ["r"], name="reshape"),
        node("QuantizeLinear", ["r", "scale", "zero"], ["q"], name="quantise"),
        node("DequantizeLinear", ["q", "scale", "zero"], ["d"], name="dequantise"),
        node("Neg", ["d"], ["y"], name="negate"),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [value("x", TensorProto.FLOAT, SHAPE)],
        [value(name, TensorProto.INT8 if name == "q" else TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)


def test_a_tensor_is_quantised_before_it_is_reshaped() -> None:
    model = _rewritten(_model())
    assert [node.name for node in model.graph.node] == ["abs", "quantise", "dequantise", "reshape", "negate"]
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = -np.clip(np.rint(np.abs(x) / np.float32(0.1)), -128, 127).astype(np.float32) * np.float32(0.1)
    np.testing.assert_array_equal(session.run(["y"], {"x": x})[0], expected.reshape(-1, 20))


@pytest.mark.parametrize("taken", ["r", "q"])
def test_a_tensor_that_is_an_output_keeps_its_shape(taken: str) -> None:
    model = _model(outputs=("y", taken))
    assert _rewritten(model) == model


def test_a_tensor_with_a_scale_for_each_column_keeps_its_place() -> None:
    model = _model(scale=np.full(20, 0.1, np.float32))
    assert _rewritten(model) == model
