"""What the precision modes compute, against NumPy."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from onnx import helper

from mlu.emulator.calls import FLOAT, Runner, build, calibrate, configure, linear, parse, precision, save_graph

RNG = np.random.default_rng(7)
X = RNG.standard_normal((16, 24)).astype(np.float32)
W = (RNG.standard_normal((24, 10)) * np.geomspace(0.1, 10, 10)).astype(np.float32)


def _half(array: Any) -> Any:
    with np.errstate(over="ignore"):
        return np.asarray(array).astype(np.float16).astype(np.float32)


def _fake(array: Any, bound: Any, bits: int) -> Any:
    scale = np.float32(bound) / np.float32(2 ** (bits - 1) - 1)
    return (np.rint(array / scale) * scale).astype(np.float32)


def _run(mm: ModuleType, network: Any, config: Any, *feeds: Any) -> Any:
    return Runner(mm, build(mm, network, config))(*feeds)[0]


def _quantised(
    mm: ModuleType, tmp_path: Path, mode: str, algorithm: str = "LINEAR_ALGORITHM", x: Any = X, w: Any = W, **more: str
) -> Any:
    network = parse(mm, linear(tmp_path / "m.onnx", w, batch=len(x)))
    config = configure(mm, precision(mode, **more))
    status = calibrate(mm, network, config, [x], algorithm=algorithm)
    assert status.ok(), status
    return _run(mm, network, config, x)


def test_float16_rounds_inputs_weights_and_every_result(mm: ModuleType, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "a"], ["p"], name="Mul_0"),
        helper.make_node("Exp", ["p"], ["q"], name="Exp_1"),
        helper.make_node("Add", ["q", "b"], ["y"], name="Add_2"),
    ]
    a, b = RNG.standard_normal((2, 24)).astype(np.float32)
    path = save_graph(tmp_path / "m.onnx", nodes, [("x", FLOAT, [16, 24])], [("y", FLOAT, [16, 24])], {"a": a, "b": b})
    result = _run(mm, parse(mm, path), configure(mm, precision("force_float16")), X)
    expected = _half(_half(np.exp(_half(_half(X) * _half(a)))) + _half(b))
    close = np.abs(result - expected) <= np.spacing(expected.astype(np.float16)).astype(np.float32)
    assert close.all()
    assert (result == expected).mean() > 0.98  # two libraries' exp may round apart
    np.testing.assert_array_equal(result, _half(result))


def test_float16_overflows_to_infinity(mm: ModuleType, tmp_path: Path) -> None:
    network = parse(mm, linear(tmp_path / "m.onnx", [[300.0, 1.0]]))
    result = _run(mm, network, configure(mm, precision("force_float16")), np.array([[300], [-300]], np.float32))
    np.testing.assert_array_equal(result, [[np.inf, 300], [-np.inf, -300]])


def test_float16_underflows_as_binary16_does(mm: ModuleType, tmp_path: Path) -> None:
    network = parse(mm, linear(tmp_path / "m.onnx", np.eye(2)))
    small = np.array([[2.0**-24, 2.0**-26], [1.0009765625, 1.00048828125]], np.float32)
    result = _run(mm, network, configure(mm, precision("force_float16")), small)
    np.testing.assert_array_equal(result, _half(small))


@pytest.mark.parametrize("bits", [8, 16])
def test_linear_per_tensor_symmetric(mm: ModuleType, tmp_path: Path, bits: int) -> None:
    result = _quantised(mm, tmp_path, f"qint{bits}_mixed_float32")
    expected = _fake(X, np.abs(X).max(), bits) @ _fake(W, np.abs(W).max(), bits)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(result - X @ W).max() > 0


def test_calibration_sees_normalised_floats_whatever_goes_in_front(mm: ModuleType, tmp_path: Path) -> None:
    """MC swintransformer: means and vars for the build, and a calibrator that normalises by itself and declares FLOAT32."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="Conv_0", kernel_shape=[1, 1])
    w = RNG.standard_normal((2, 3, 1, 1)).astype(np.float32)
    shape = [4, 3, 2, 2]
    path = save_graph(tmp_path / "c.onnx", [node], [("x", FLOAT, shape)], [("y", FLOAT, [4, 2, 2, 2])], {"w": w})
    mean, variance = [123.675, 116.28, 103.53], [3409.976, 3262.694, 3291.89]
    part = {"insert_bn_before_firstnode": {"0": {"mean": mean, "var": variance}}}
    network, config = parse(mm, path), configure(mm, precision("qint8_mixed_float32"), part)
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
    mean_, std = (np.reshape(side, (1, 3, 1, 1)) for side in (mean, np.sqrt(variance)))
    normal = ((pixels - mean_) / std).astype(np.float32)
    status = calibrate(mm, network, config, [normal])
    assert status.ok(), status
    x, kernel = _fake(normal, np.abs(normal).max(), 8), _fake(w, np.abs(w).max(), 8)[:, :, 0, 0]
    expected = np.einsum("oc,nchw->nohw", kernel, x)
    np.testing.assert_allclose(_run(mm, network, config, pixels), expected, rtol=1e-4, atol=1e-4)


def test_mixed_float16_rounds_the_result_too(mm: ModuleType, tmp_path: Path) -> None:
    result = _quantised(mm, tmp_path, "qint8_mixed_float16")
    x = _half(X)
    expected = _fake(x, np.abs(X).max(), 8) @ _fake(W, np.abs(W).max(), 8)
    np.testing.assert_allclose(result, expected, rtol=2e-3, atol=1e-3)
    np.testing.assert_array_equal(result, _half(result))


def test_per_axis_takes_one_scale_for_each_output_channel(mm: ModuleType, tmp_path: Path) -> None:
    result = _quantised(mm, tmp_path, "qint8_mixed_float32", weight_quant_granularity="per_axis")
    expected = _fake(X, np.abs(X).max(), 8) @ _fake(W, np.abs(W).max(axis=0), 8)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    whole = _quantised(mm, tmp_path, "qint8_mixed_float32")
    assert np.abs(result - X @ W)[:, 0].mean() < 0.5 * np.abs(whole - X @ W)[:, 0].mean()


def test_asymmetric_activations_use_all_levels(mm: ModuleType, tmp_path: Path) -> None:
    positive = np.abs(X) + 1
    result = _quantised(
        mm, tmp_path, "qint8_mixed_float32", x=positive, w=np.eye(24), activation_quant_algo="asymmetric"
    )
    step = positive.max() / 255
    assert np.abs(result - positive).max() <= step * 0.51
    plain = _quantised(mm, tmp_path, "qint8_mixed_float32", x=positive, w=np.eye(24))
    assert np.abs(plain - positive).max() > step * 0.9


def test_eqnm_clips_outliers_where_that_lessens_the_noise(mm: ModuleType, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((40_000, 24)).astype(np.float32)
    x[0, [5, 7, 11]] = 40.0
    linear_result = _quantised(mm, tmp_path, "qint8_mixed_float32", x=x, w=np.eye(24))
    eqnm_result = _quantised(mm, tmp_path, "qint8_mixed_float32", "EQNM_ALGORITHM", x=x, w=np.eye(24))
    assert np.square(eqnm_result - x).sum() < 0.7 * np.square(linear_result - x).sum()
    assert eqnm_result[0, 5] < 39


def test_eqnm_keeps_the_range_of_well_behaved_data(mm: ModuleType, tmp_path: Path) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (500, 24)).astype(np.float32)
    result = _quantised(mm, tmp_path, "qint8_mixed_float32", "EQNM_ALGORITHM", x=x, w=np.eye(24))
    assert np.abs(result - x).max() < 0.02


def test_two_activations_are_both_quantised(mm: ModuleType, tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["a", "b"], ["y"], name="MatMul_0")
    path = save_graph(
        tmp_path / "m.onnx", [node], [("a", FLOAT, [16, 24]), ("b", FLOAT, [24, 10])], [("y", FLOAT, [16, 10])], {}
    )
    network, config = parse(mm, path), configure(mm, precision("qint8_mixed_float32"))
    assert calibrate(mm, network, config, [X], [W]).ok()
    expected = _fake(X, np.abs(X).max(), 8) @ _fake(W, np.abs(W).max(), 8)
    np.testing.assert_allclose(_run(mm, network, config, X, W), expected, rtol=1e-4, atol=1e-4)


def test_convolutions_are_quantised_and_depthwise_weights_stay_per_tensor(mm: ModuleType, tmp_path: Path) -> None:
    weight = RNG.standard_normal((3, 1, 1, 1)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="Conv_0", kernel_shape=[1, 1], group=3)
    path = save_graph(
        tmp_path / "m.onnx", [node], [("x", FLOAT, [2, 3, 4, 4])], [("y", FLOAT, [2, 3, 4, 4])], {"w": weight}
    )
    x = RNG.standard_normal((2, 3, 4, 4)).astype(np.float32)
    network = parse(mm, path)
    config = configure(mm, precision("qint8_mixed_float32", weight_quant_granularity="per_axis"))
    assert calibrate(mm, network, config, [x]).ok()
    expected = _fake(x, np.abs(x).max(), 8) * _fake(weight, np.abs(weight).max(), 8).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(_run(mm, network, config, x), expected, rtol=1e-4, atol=1e-4)


def test_ranges_come_from_all_batches(mm: ModuleType, tmp_path: Path) -> None:
    network = parse(mm, linear(tmp_path / "m.onnx", np.eye(24), batch=16))
    config = configure(mm, precision("qint8_mixed_float32"))
    assert calibrate(mm, network, config, [X * 0.1, X, X * 0.5]).ok()
    np.testing.assert_allclose(_run(mm, network, config, X), _fake(X, np.abs(X).max(), 8), rtol=1e-4, atol=1e-5)


def test_what_lies_outside_the_calibrated_range_is_cut(mm: ModuleType, tmp_path: Path) -> None:
    network = parse(mm, linear(tmp_path / "m.onnx", np.eye(24), batch=16))
    config = configure(mm, precision("qint8_mixed_float32"))
    assert calibrate(mm, network, config, [np.clip(X, -1, 1)]).ok()
    assert np.abs(_run(mm, network, config, X)).max() < 1.02


def test_custom_ranges_stand_in_for_calibration(mm: ModuleType, tmp_path: Path) -> None:
    """The official script's fake calibration (MC model_process.py is_rand_calib_or_fake_calib)."""
    network = parse(mm, linear(tmp_path / "m.onnx", np.eye(24), batch=16))
    config = configure(mm, precision("qint8_mixed_float32"), {"custom_ranges": {"": {"max": [1], "min": [-1]}}})
    np.testing.assert_allclose(_run(mm, network, config, X), _fake(np.clip(X, -1, 1), 1, 8), rtol=1e-4, atol=0.0079)


def test_quantised_modes_need_calibration(
    mm: ModuleType, mode: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    network = parse(mm, linear(tmp_path / "m.onnx", W))
    assert mm.Builder().build_model("x", network, configure(mm, precision("qint8_mixed_float16"))) is None
    assert "needs calibrate() before build_model()" in capfd.readouterr().err


def test_calibrating_a_float_mode_is_accepted_and_changes_nothing(mm: ModuleType, mode: str, tmp_path: Path) -> None:
    network = parse(mm, linear(tmp_path / "m.onnx", W, batch=16))
    config = configure(mm, precision("force_float32"))
    assert calibrate(mm, network, config, [X]).ok()
    np.testing.assert_allclose(_run(mm, network, config, X), X @ W, rtol=1e-5, atol=1e-5)


def test_int64_handed_over_as_int32_is_taken(mm: ModuleType, mode: str, tmp_path: Path) -> None:
    """XDeepFM declares INT32 and hands over int64."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="Gather_0"),
        helper.make_node("MatMul", ["rows", "w"], ["y"], name="MatMul_1"),
    ]
    path = save_graph(tmp_path / "m.onnx", nodes, [("ids", 7, [4])], [("y", FLOAT, [4, 10])], {"table": X, "w": W})

    class Data(mm.CalibDataInterface):  # type: ignore[misc, name-defined]
        left = 1

        def next(self) -> Any:
            self.left -= 1
            return mm.Status.OK() if self.left >= 0 else mm.Status(mm.Code.OUT_OF_RANGE, "end")

        def reset(self) -> Any:
            self.left = 1
            return mm.Status.OK()

        def get_shape(self) -> Any:
            return mm.Dims((16,))

        def get_data_type(self) -> Any:
            return mm.DataType.INT32

        def get_sample(self) -> Any:
            return np.arange(16)

    network = parse(mm, path)
    config = configure(mm, precision("qint8_mixed_float32"), {"opt_config": {"type64to32_conversion": True}})
    assert mm.Calibrator([Data()]).calibrate(network, config).ok()
    expected = _fake(X, np.abs(X).max(), 8)[:4] @ _fake(W, np.abs(W).max(), 8)
    np.testing.assert_allclose(_run(mm, network, config, np.arange(4)), expected, rtol=1e-4, atol=1e-4)


def test_set_precision_takes_a_node_out(mm: ModuleType, mode: str, tmp_path: Path) -> None:
    network = parse(mm, linear(tmp_path / "m.onnx", W, batch=16))
    node = network.find_node_by_name("MatMul_0")
    for index in range(node.get_input_count()):
        assert node.set_precision(index, mm.DataType.FLOAT32).ok()
    assert node.set_output_type(0, mm.DataType.FLOAT32).ok()
    result = _run(mm, network, configure(mm, precision("force_float16")), X)
    np.testing.assert_allclose(result, _half(X) @ W, rtol=1e-5, atol=1e-5)


def test_set_precision_keeps_a_node_from_being_quantised(mm: ModuleType, tmp_path: Path) -> None:
    network = parse(mm, linear(tmp_path / "m.onnx", W, batch=16))
    config = configure(mm, precision("qint8_mixed_float32"))
    assert calibrate(mm, network, config, [X]).ok()
    assert network.find_node_by_name("MatMul_0").set_precision(0, mm.DataType.FLOAT32).ok()
    np.testing.assert_allclose(_run(mm, network, config, X), X @ W, rtol=1e-5, atol=1e-5)


def test_set_precision_can_ask_for_float16_in_a_float32_model(mm: ModuleType, tmp_path: Path) -> None:
    network = parse(mm, linear(tmp_path / "m.onnx", W, batch=16))
    node = network.find_node_by_name("MatMul_0")
    for index in range(2):
        assert node.set_precision(index, mm.DataType.FLOAT16).ok()
    result = _run(mm, network, configure(mm, precision("force_float32")), X)
    np.testing.assert_allclose(result, _half(X) @ _half(W), rtol=1e-5, atol=1e-5)
    assert not node.set_precision(5, mm.DataType.FLOAT32).ok()
    assert not node.set_precision(0, mm.DataType.INT32).ok()


@pytest.mark.parametrize("mutable", [True, False])
def test_float32_is_what_onnxruntime_gives_for_the_file(
    mm: ModuleType, mode: str, tmp_path: Path, mutable: bool
) -> None:
    import onnxruntime

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="MatMul_0"),
        helper.make_node("Add", ["p", "b"], ["y"], name="Add_1"),
    ]
    path = save_graph(
        tmp_path / "m.onnx", nodes, [("x", FLOAT, ["n", "m", 24])], [("y", FLOAT, ["n", "m", 10])], {"w": W, "b": W[0]}
    )
    network = parse(mm, path)
    assert network.get_input(0).get_dimension().GetDims() == [-1, -1, 24]
    assert network.get_input(0).set_dimension(mm.Dims((16, 3, 24))).ok()
    limits = {"dim_range": {"0": {"min": [1, 3, 24], "max": [16, 3, 24]}}} if mutable else {}
    x = RNG.standard_normal((16, 3, 24)).astype(np.float32)
    result = _run(mm, network, configure(mm, {"graph_shape_mutable": mutable, **limits}), x)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(result, session.run(None, {"x": x})[0])
