"""Unsigned integers stand for the same numbers, and are exact on every CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from clipmlu.backends import onnxruntime as backend
from clipmlu.bundle import CompiledBundle
from clipmlu.quantisation.unsigned import saturation_probe, with_unsigned_integers

Array = np.ndarray[Any, np.dtype[Any]]


def run(model: onnx.ModelProto, feeds: dict[str, Array]) -> Array:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, feeds)
    return np.asarray(result)


def test_the_largest_products_are_exact_in_unsigned_integers() -> None:
    """On a CPU without VNNI, the signed graph gives 8,160 here instead of 1,032,256."""
    model, feeds, expected = saturation_probe()
    assert expected == 64 * 127 * 127
    np.testing.assert_array_equal(run(with_unsigned_integers(model), feeds), np.full((4, 32), expected))


def test_scales_zero_points_and_levels_stand_for_the_same_numbers() -> None:
    """Per channel, asymmetric, against the ONNX reference evaluator on the graph as it was."""
    generator = np.random.default_rng(0)
    weights = {
        "scale": np.float32(0.02),
        "zero": np.int8(-31),
        "w": generator.integers(-127, 128, (24, 6), dtype=np.int8),
        "w_scale": generator.uniform(0.01, 0.03, 6).astype(np.float32),
        "w_zero": np.zeros(6, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["levels"]),
        helper.make_node("DequantizeLinear", ["levels", "scale", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["b"], axis=1),
        helper.make_node("MatMul", ["a", "b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 24])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 6])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    before = model.SerializeToString()
    x = generator.standard_normal((9, 24), dtype=np.float32)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    unsigned = with_unsigned_integers(model)
    np.testing.assert_allclose(run(unsigned, {"x": x}), expected, rtol=1e-5, atol=1e-5)
    assert model.SerializeToString() == before
    kinds = {weight.name: weight.data_type for weight in unsigned.graph.initializer}
    assert {kinds[name] for name in ("zero", "w", "w_zero")} == {TensorProto.UINT8}


def test_the_backend_asks_the_runtime_itself() -> None:
    model, feeds, expected = saturation_probe()
    assert backend._signed_integers_are_exact() is bool((run(model, feeds) == expected).all())


@pytest.mark.parametrize("exact", [True, False])
def test_graphs_are_turned_around_where_signed_kernels_saturate(
    monkeypatch: pytest.MonkeyPatch, compiled: CompiledBundle, exact: bool
) -> None:
    loaded: list[Any] = []

    def load(path: Any) -> str:
        loaded.append(path)
        return str(path)

    monkeypatch.setattr(backend, "_signed_integers_are_exact", lambda: exact)
    monkeypatch.setattr(backend, "_unsigned_graph", load)
    path = compiled.tower_path("image")
    backend._load(path, backend.SessionOptions(), backend.Precision.QINT8_MIXED_FLOAT32)
    assert loaded == ([] if exact else [path])
    backend._load(path, backend.SessionOptions(), backend.Precision.FORCE_FLOAT32)
    assert len(loaded) <= 1
