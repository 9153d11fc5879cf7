"""What public sources leave open: refused in the strict reading, taken in the lenient one, each by its own switch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from clipmlu.magicmind.emulator.settings import SWITCH_NAMES
from mlu.emulator.calls import (
    FLOAT,
    INT64,
    Runner,
    build,
    calibrate,
    clip_like,
    configure,
    linear,
    parse,
    precision,
    save_graph,
)
from mlu.emulator.heads import append_detection, heads

W = np.arange(6, dtype=np.float32).reshape(3, 2)
X = np.ones((2, 3), np.float32)


def _runner(mm: ModuleType, tmp_path: Path, *parts: Any, batch: Any = 2) -> Runner:
    return Runner(mm, build(mm, parse(mm, linear(tmp_path / "m.onnx", W, batch=batch)), configure(mm, *parts)))


def _enqueue(runner: Runner, array: Any, outputs: list[Any] | None = None) -> bool:
    return bool(
        runner.inputs[0].from_numpy(array).ok()
        and runner.context.enqueue(runner.inputs, [] if outputs is None else outputs, runner.queue).ok()
        and runner.queue.sync().ok()
    )


def _shape_outside_the_range(mm: ModuleType, tmp_path: Path) -> bool:
    limits = {"graph_shape_mutable": True, "dim_range": {"0": {"min": [1, 3], "max": [4, 3]}}}
    return _enqueue(_runner(mm, tmp_path, limits), np.ones((5, 3), np.float32))


def _rank(mm: ModuleType, tmp_path: Path) -> bool:
    runner = _runner(mm, tmp_path, {"graph_shape_mutable": True})
    return bool(runner.inputs[0].from_numpy(np.ones((1, 2, 3), np.float32)).ok())


def _cast(mm: ModuleType, tmp_path: Path) -> bool:
    return _enqueue(_runner(mm, tmp_path), X.astype(np.int32))


def _ids(mm: ModuleType, tmp_path: Path, *parts: Any) -> Any:
    node = helper.make_node("Gather", ["table", "ids"], ["y"], name="Gather_0")
    path = save_graph(tmp_path / "g.onnx", [node], [("ids", INT64, [2])], [("y", FLOAT, [2])], {"table": W[:, 0]})
    return mm.Builder().build_model("x", parse(mm, path), configure(mm, *parts))


def _overflow(mm: ModuleType, tmp_path: Path) -> bool:
    model = _ids(mm, tmp_path, {"opt_config": {"type64to32_conversion": True}})
    return bool(Runner(mm, model).inputs[0].from_numpy(np.array([0, 2**32])).ok())


def _wide(mm: ModuleType, tmp_path: Path) -> bool:
    return _ids(mm, tmp_path) is not None


def _lent_array(mm: ModuleType, tmp_path: Path) -> bool:
    runner, array = _runner(mm, tmp_path), X.copy()
    outputs = runner.start(array)
    array[:] = 7
    assert runner.queue.sync().ok()
    return bool((outputs[0].asnumpy() == X @ W).all())


def _read_early(mm: ModuleType, tmp_path: Path) -> bool:
    outputs = _runner(mm, tmp_path).start(X)
    return bool((outputs[0].asnumpy() == X @ W).all())


def _keep_result(mm: ModuleType, tmp_path: Path) -> bool:
    runner, outputs = _runner(mm, tmp_path), []
    assert _enqueue(runner, X, outputs)
    kept = outputs[0].asnumpy()
    assert _enqueue(runner, X * 2, outputs)
    return bool((kept == X @ W).all())


def _other_shape_into_a_full_list(mm: ModuleType, tmp_path: Path) -> bool:
    runner, outputs = _runner(mm, tmp_path, {"graph_shape_mutable": True}), []
    assert _enqueue(runner, X, outputs)
    return _enqueue(runner, X[:1], outputs)


def _two_queues(mm: ModuleType, tmp_path: Path) -> bool:
    runner = _runner(mm, tmp_path)
    runner.start(X)
    return bool(runner.context.enqueue(runner.inputs, [], runner.dev.create_queue()).ok())


def _other_thread(mm: ModuleType, tmp_path: Path) -> bool:
    import threading

    os.environ["CLIPMLU_EMULATOR_DEVICES"] = "2"
    try:
        model = build(mm, parse(mm, linear(tmp_path / "m.onnx", W)), configure(mm))
        runner = Runner(mm, model, device=1)
        found: list[bool] = []
        thread = threading.Thread(target=lambda: found.append(_enqueue(runner, X)))
        thread.start()
        thread.join()
        return found[0]
    finally:
        del os.environ["CLIPMLU_EMULATOR_DEVICES"]


def _unknown_key(mm: ModuleType, tmp_path: Path) -> bool:
    return bool(mm.BuilderConfig().parse_from_string('{"no_such_key": 1}').ok())


def _other_batch_without_a_word(mm: ModuleType, tmp_path: Path) -> bool:
    return _runner(mm, tmp_path).engine.info.inputs[0].dims == (-1, -1)


def _calibration(mm: ModuleType, tmp_path: Path, *batches: Any, devices: str = "1", times: int = 1) -> bool:
    node = helper.make_node("MatMul", ["a", "b"], ["y"], name="MatMul_0")
    path = save_graph(
        tmp_path / "m.onnx", [node], [("a", FLOAT, [2, 3]), ("b", FLOAT, [3, 2])], [("y", FLOAT, [2, 2])], {}
    )
    network, config = parse(mm, path), configure(mm, precision("qint8_mixed_float32"))
    os.environ["CLIPMLU_EMULATOR_DEVICES"] = devices
    try:
        return [bool(calibrate(mm, network, config, *batches).ok()) for _ in range(times)] == [True] * times
    finally:
        del os.environ["CLIPMLU_EMULATOR_DEVICES"]


def _unequal(mm: ModuleType, tmp_path: Path) -> bool:
    return _calibration(mm, tmp_path, [X, X], [W])


def _twice(mm: ModuleType, tmp_path: Path) -> bool:
    return _calibration(mm, tmp_path, [X], [W], times=2)


def _no_card(mm: ModuleType, tmp_path: Path) -> bool:
    return _calibration(mm, tmp_path, [X], [W], devices="0")


def _newer_opset(mm: ModuleType, tmp_path: Path) -> bool:
    path = save_graph(
        tmp_path / "n.onnx",
        [helper.make_node("Relu", ["x"], ["y"])],
        [("x", FLOAT, [1])],
        [("y", FLOAT, [1])],
        {},
        opset=17,
    )
    return bool(mm.Parser(mm.ModelKind.kOnnx).parse(mm.Network(), str(path)).ok())


def _rare_operator(mm: ModuleType, tmp_path: Path) -> bool:
    node = helper.make_node("Atanh", ["x"], ["y"], name="Atanh_0")
    path = save_graph(tmp_path / "n.onnx", [node], [("x", FLOAT, [1])], [("y", FLOAT, [1])], {})
    return bool(mm.Parser(mm.ModelKind.kOnnx).parse(mm.Network(), str(path)).ok())


def _external_data(mm: ModuleType, tmp_path: Path) -> bool:
    path = linear(tmp_path / "e.onnx", np.ones((64, 64)))
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights", size_threshold=16)
    network = mm.Network()
    return bool(mm.Parser(mm.ModelKind.kOnnx).parse(network, str(path)).ok())


def _dims_after_calibration(mm: ModuleType, tmp_path: Path) -> bool:
    network = parse(mm, linear(tmp_path / "m.onnx", W))
    assert calibrate(mm, network, configure(mm, precision("qint8_mixed_float32")), [X]).ok()
    return bool(network.get_input(0).set_dimension(mm.Dims((4, 3))).ok())


def _chained_to(mm: ModuleType, tmp_path: Path) -> bool:
    runner = _runner(mm, tmp_path)
    return runner.inputs[0].to(runner.dev) is not None


def _after_fork(mm: ModuleType, tmp_path: Path) -> bool:
    queue = mm.Device().create_queue()
    queue._process -= 1  # as a child sees it; a real fork beside onnxruntime's threads is not safe
    return bool(queue.sync().ok())


def _boxes(mm: ModuleType, tmp_path: Path, **settings: Any) -> Any:
    network = parse(mm, heads(tmp_path / "m.onnx"))
    append_detection(mm, network, "YOLOV3", **settings)
    return mm.Builder().build_model("m", network, configure(mm))


def _rows_behind_the_boxes(mm: ModuleType, tmp_path: Path) -> bool:
    boxes, counts = Runner(mm, _boxes(mm, tmp_path))(np.zeros((2, 3, 16, 16), np.float32))
    return bool((boxes[0, counts[0] :] == 0).all())


CASES: dict[str, Callable[[ModuleType, Path], bool]] = {
    "check_shapes": _shape_outside_the_range,
    "check_rank": _rank,
    "narrow_casts": _cast,
    "refuse_overflow": _overflow,
    "inputs_stay_lent": _lent_array,
    "refuse_64bit": _wide,
    "poison_before_sync": _read_early,
    "asnumpy_is_view": _keep_result,
    "fixed_output_lists": _other_shape_into_a_full_list,
    "one_queue_per_context": _two_queues,
    "device_per_thread": _other_thread,
    "refuse_after_fork": _after_fork,
    "refuse_unknown_keys": _unknown_key,
    "static_by_default": _other_batch_without_a_word,
    "equal_calibration_lengths": _unequal,
    "calibrate_once": _twice,
    "calibration_needs_device": _no_card,
    "limit_opset": _newer_opset,
    "closed_operators": _rare_operator,
    "refuse_external_data": _external_data,
    "dims_fixed_after_calibrate": _dims_after_calibration,
    "silent_returns": _chained_to,
    "absent_boxes_are_undefined": _rows_behind_the_boxes,
    "square_detections": lambda mm, path: _boxes(mm, path, image_shape=(16, 32)) is not None,
    "opaque_status": lambda mm, _: not mm.Status(mm.Code.INTERNAL, "x"),
}


def test_every_switch_has_a_case() -> None:
    assert set(CASES) == set(SWITCH_NAMES)


@pytest.mark.parametrize("name", SWITCH_NAMES)
def test_strict_refuses(mm: ModuleType, tmp_path: Path, name: str) -> None:
    assert not CASES[name](mm, tmp_path)


@pytest.mark.parametrize("name", SWITCH_NAMES)
@pytest.mark.usefixtures("lenient")
def test_lenient_accepts(mm: ModuleType, tmp_path: Path, name: str) -> None:
    assert CASES[name](mm, tmp_path)


@pytest.mark.parametrize("name", SWITCH_NAMES)
def test_one_switch_alone_decides(mm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("CLIPMLU_EMULATOR_SWITCHES", f"{name}=0")
    assert CASES[name](mm, tmp_path)


def test_an_overwritten_input_tensor_spoils_the_work_in_flight(mm: ModuleType, tmp_path: Path) -> None:
    runner = _runner(mm, tmp_path)
    outputs = runner.start(X)
    assert runner.inputs[0].from_numpy(X * 2).ok()
    assert runner.queue.sync().ok()
    assert np.isnan(outputs[0].asnumpy()).all()


@pytest.mark.usefixtures("lenient")
def test_work_in_flight_computes_what_it_was_given(
    mm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPMLU_EMULATOR_LATENCY_MS", "100")
    runner = _runner(mm, tmp_path)
    outputs = runner.start(X)
    assert runner.inputs[0].from_numpy(X * 2).ok()
    assert runner.queue.sync().ok()
    np.testing.assert_allclose(outputs[0].asnumpy(), X @ W, rtol=1e-6)


def test_values_read_from_an_input_tensor_are_lent_when_they_are_given_back_to_it(
    mm: ModuleType, tmp_path: Path
) -> None:
    runner = _runner(mm, tmp_path)
    runner.start(X)
    assert runner.queue.sync().ok()
    values = runner.inputs[0].asnumpy()
    outputs = runner.start(values)
    values += 1
    assert runner.queue.sync().ok()
    assert np.isnan(outputs[0].asnumpy()).all()


def test_an_input_tensor_changes_its_memory_only_while_work_reads_it(mm: ModuleType, tmp_path: Path) -> None:
    runner = _runner(mm, tmp_path)
    tensor = runner.inputs[0]
    runner.start(X)
    read = tensor.data_address()
    assert tensor.from_numpy(X * 2).ok()
    assert tensor.data_address() != read
    assert runner.queue.sync().ok()
    kept = tensor.data_address()
    assert tensor.from_numpy(X * 3).ok()
    assert tensor.data_address() == kept
    np.testing.assert_array_equal(tensor.asnumpy(), X * 3)


def test_a_graph_exported_for_one_batch_is_refused_for_another(
    mm: ModuleType, mode: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"], name="Reshape_0")]
    path = save_graph(
        tmp_path / "m.onnx", nodes, [("x", FLOAT, [1, 2, 3])], [("y", FLOAT, [1, 6])], {"shape": np.array([1, 6])}
    )
    network = parse(mm, path)
    assert network.get_input(0).set_dimension(mm.Dims((4, 2, 3))).ok()
    assert mm.Builder().build_model("x", network, configure(mm, {"graph_shape_mutable": False})) is None
    assert (
        "node 'Reshape_0' reshapes [4, 2, 3] to [1, 6]: the graph was exported for another shape"
        in capfd.readouterr().err
    )


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"archs": ["mtp_999"]}', '{"precision_config": {"precision_mode": "force_float8"}}',
     '{"graph_shape_mutable": "yes"}', '{"opt_config": {"fly": true}}', '{"dim_range": {"0": {"min": [1]}}}'],
)  # fmt: skip
def test_bad_configurations_answer_with_a_status(mm: ModuleType, text: str) -> None:
    status = mm.BuilderConfig().parse_from_string(text)
    assert not status.ok()
    assert status.error_message().startswith("parse_from_string: ")


def test_repeated_strings_merge_deeply_and_the_later_value_wins(mm: ModuleType, mode: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"builder_config": {"precision_config": {"weight_quant_granularity": "per_axis"}}}')
    config = configure(mm, precision("force_float16"), {"opt_config": {"type64to32_conversion": True}})
    assert config.parse_from_string('{"opt_config":\n {"conv_scale_fold" : true}}').ok()
    assert config.parse_from_file(str(file)).ok()
    assert config.parse_from_string('{"precision_config": {"precision_mode": "qint8_mixed_float16"}}').ok()
    facts = config.facts()
    assert (facts.mode, facts.per_axis, facts.narrow) == ("qint8_mixed_float16", True, True)
    assert not config.parse_from_file(str(tmp_path / "nothing.json")).ok()


def test_archs_come_as_names_objects_and_attribute_and_the_last_holds(mm: ModuleType) -> None:
    config = mm.BuilderConfig()
    config.mlu_archs = ["mtp_372", "tp_322"]
    assert list(config.facts().archs) == ["mtp_372", "tp_322"]
    assert config.parse_from_string('{"archs": [{"mtp_372": [2, 6, 8]}, {"mtp_592": [1]}]}').ok()
    assert config.facts().archs == {"mtp_372": [2, 6, 8], "mtp_592": [1]}
    assert config.parse_from_string('{"archs": ["mtp_372.41"]}').ok()
    assert config.mlu_archs == ["mtp_372"]


def test_wrong_argument_types_raise_as_a_binding_does(mm: ModuleType) -> None:
    with pytest.raises(TypeError, match="expected str"):
        mm.BuilderConfig().parse_from_string({"archs": []})
    with pytest.raises(TypeError, match="expected Network"):
        mm.Parser(mm.ModelKind.kOnnx).parse(None, "x")
    with pytest.raises(TypeError, match="CalibDataInterface"):
        mm.Calibrator([object()])


def test_parse_failures_answer_with_a_status(mm: ModuleType, mode: str, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\x00nothing like a graph")
    for name in ("bad.onnx", "missing.onnx"):
        status = mm.Parser(mm.ModelKind.kOnnx).parse(mm.Network(), str(tmp_path / name))
        assert not status.ok()
        assert name in str(status)


def test_calibration_data_that_contradict_themselves_are_refused(mm: ModuleType, mode: str, tmp_path: Path) -> None:
    network, config = parse(mm, linear(tmp_path / "m.onnx", W)), configure(mm, precision("qint8_mixed_float32"))
    assert "no batch" in str(calibrate(mm, network, config, []))
    assert "NaN" in str(calibrate(mm, network, config, [X * np.nan]))
    assert "1 inputs, the calibrator 2" in str(calibrate(mm, network, config, [X], [X]))
    asymmetric = configure(mm, precision("qint8_mixed_float32", activation_quant_algo="asymmetric"))
    assert "symmetric" in str(calibrate(mm, network, asymmetric, [X], algorithm="EQNM_ALGORITHM"))


def test_pixels_beyond_uint8_are_refused(mm: ModuleType, tmp_path: Path) -> None:
    part = {"insert_bn_before_firstnode": {"0": {"mean": [0.0] * 3, "var": [1.0] * 3}}}
    tensor = _runner(mm, tmp_path, part).inputs[0]
    assert tensor.from_numpy(X.astype(np.float64) * 255).ok()
    assert "beyond UINT8" in str(tensor.from_numpy(X.astype(np.float64) * 256))
    assert "int64 for UINT8" in str(tensor.from_numpy(X.astype(np.int64)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fractions_for_pixels_are_refused(mm: ModuleType, tmp_path: Path, dtype: str) -> None:
    """A model with means and vars takes pixels; whether normalised ones are truncated or rounded is not known."""
    part = {"insert_bn_before_firstnode": {"0": {"mean": [0.0] * 3, "var": [1.0] * 3}}}
    tensor = _runner(mm, tmp_path, part).inputs[0]
    assert "fractions" in str(tensor.from_numpy(X.astype(dtype) * 0.5))
    assert "fractions" in str(tensor.from_numpy(X.astype(dtype) * np.nan))
    assert tensor.from_numpy(X.astype(dtype) * 200).ok()
    np.testing.assert_array_equal(tensor.asnumpy(), np.full((2, 3), 200, np.uint8))


def test_images_of_bytes_become_the_same_floats(mm: ModuleType, tmp_path: Path) -> None:
    """MC psenet and fsanet hand uint8 images to FLOAT32 inputs and publish their accuracy."""
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3) * 50
    runner = _runner(mm, tmp_path)
    np.testing.assert_array_equal(runner(pixels)[0], pixels.astype(np.float32) @ W)
    assert "uint8 for INT32" in str(Runner(mm, _ids_model(mm, tmp_path)).inputs[0].from_numpy(np.zeros(2, np.uint8)))


def test_tokens_in_an_array_of_floats_become_integers(mm: ModuleType, tmp_path: Path) -> None:
    """MC bert_squad_pytorch collects its tokens in an ``np.empty`` of float64."""
    runner = Runner(mm, _ids_model(mm, tmp_path))
    np.testing.assert_array_equal(runner(np.array([2.0, 1.0]))[0], W[[2, 1], 0])
    assert "fractions" in str(runner.inputs[0].from_numpy(np.array([0.5, 1.0])))


def _ids_model(mm: ModuleType, tmp_path: Path) -> Any:
    return _ids(mm, tmp_path, {"opt_config": {"type64to32_conversion": True}})


def test_a_calibrator_takes_one_data_object(mm: ModuleType, mode: str, tmp_path: Path) -> None:
    """MC deeplabv3_tensorflow passes the object itself; its qint8 accuracy is published."""
    network = parse(mm, linear(tmp_path / "m.onnx", W))
    config = configure(mm, precision("qint8_mixed_float32"))
    assert calibrate(mm, network, config, [X], listed=False).ok()
    assert network.calibration.batches == 1
    model = build(mm, network, config)
    np.testing.assert_allclose(Runner(mm, model)(X)[0], X @ W, rtol=0.02)


def test_a_calibrator_with_one_data_object_is_refused_for_two_inputs(mm: ModuleType, tmp_path: Path) -> None:
    network = parse(mm, clip_like(tmp_path / "clip.onnx"))
    status = calibrate(mm, network, configure(mm, precision("qint8_mixed_float32")), [X], listed=False)
    assert "2 inputs, the calibrator 1" in str(status)


def test_a_batch_that_the_graph_does_not_take_answers_with_a_status(mm: ModuleType, mode: str, tmp_path: Path) -> None:
    network, config = parse(mm, linear(tmp_path / "m.onnx", W)), configure(mm, precision("qint8_mixed_float32"))
    assert "a batch failed" in str(calibrate(mm, network, config, [np.ones((2, 7), np.float32)]))
    model = build(mm, parse(mm, tmp_path / "m.onnx"), configure(mm, {"graph_shape_mutable": True}))
    runner = Runner(mm, model)
    assert runner.inputs[0].from_numpy(np.ones((2, 7), np.float32)).ok()
    status = runner.context.enqueue(runner.inputs, [], runner.queue)
    assert "shapes do not fit together" in str(status)


def test_a_graph_that_no_runtime_loads_gives_no_engine(
    mm: ModuleType, mode: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["y"], name="Relu_0"),
        helper.make_node("Relu", ["x"], ["y"], name="Relu_1"),
    ]
    path = save_graph(tmp_path / "m.onnx", nodes, [("x", FLOAT, [1])], [("y", FLOAT, [1])], {})
    assert build(mm, parse(mm, path), configure(mm)).create_i_engine() is None
    assert "the graph cannot be loaded" in capfd.readouterr().err
