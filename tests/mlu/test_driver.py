"""The driver against the emulated SDK, in both readings of what is not known, and against NumPy's values."""

from __future__ import annotations

import collections
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from clipmlu.magicmind.driver.building import build
from clipmlu.magicmind.driver.calls import check_status, made, made_list
from clipmlu.magicmind.driver.errors import DriverError
from clipmlu.magicmind.driver.running import Runner
from clipmlu.magicmind.driver.sdk import Cards
from mlu.small import WIDTH, reference, rows, write_graph

OpenRunner = Callable[..., Runner]
Spec = dict[str, Any]


def run(runner: Runner, *feeds: Any) -> list[Any]:
    runner.start(feeds)
    return runner.finish()


# ---- running


@pytest.mark.usefixtures("mode")
def test_float32_equals_numpy_for_any_number_of_rows(open_runner: OpenRunner) -> None:
    runner = open_runner()
    for count in (1, 4, 16, 3):
        (result,) = run(runner, rows(count, count))
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, reference(rows(count, count)), atol=1e-6)


@pytest.mark.usefixtures("mode")
def test_static_model_takes_its_shape_only(sdk: Any, cards: Cards, spec: Spec) -> None:
    spec.update(mutable=False, inputs=[{"shape": [4, WIDTH]}])
    facts = build(sdk, cards, spec)
    assert facts["inputs"] == [{"shape": [4, WIDTH], "dtype": "float32"}]
    runner = Runner(sdk, cards, spec["output"])
    np.testing.assert_allclose(run(runner, rows(4, 1))[0], reference(rows(4, 1)), atol=1e-6)
    with pytest.raises(DriverError, match=r"input 0 takes \[4, 8\] to \[4, 8\]; got \[3, 8\]") as caught:
        runner.start([rows(3, 1)])
    assert caught.value.kind == "shape"
    runner.close()


@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_batches_in_flight_finish_in_order_and_belong_to_the_caller(open_runner: OpenRunner, depth: int) -> None:
    runner = open_runner(depth=depth)
    waiting: collections.deque[Any] = collections.deque()
    results: list[tuple[Any, Any]] = []
    for seed in range(12):
        if not runner.free_slots:
            results.append((waiting.popleft(), runner.finish()[0]))
        batch = rows(1 + seed % 5, seed)
        runner.start([batch])
        waiting.append(batch)
        assert len(waiting) <= depth
    while waiting:
        results.append((waiting.popleft(), runner.finish()[0]))
    assert len(results) == 12
    for batch, result in results:  # only now: later runs must not have changed them
        np.testing.assert_allclose(result, reference(batch), atol=1e-6)
        result[:] = 0  # writable


@pytest.mark.usefixtures("mode")
def test_several_sessions_on_several_cards(open_runner: OpenRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPMLU_EMULATOR_DEVICES", "2")
    runners = [open_runner(device=device) for device in (0, 1, 0)]
    for seed, runner in enumerate(runners):
        runner.start([rows(2, seed)])
    for seed, runner in reversed(list(enumerate(runners))):
        np.testing.assert_allclose(runner.finish()[0], reference(rows(2, seed)), atol=1e-6)


def test_absent_card_is_refused_before_the_sdk_sees_it(open_runner: OpenRunner) -> None:
    with pytest.raises(DriverError, match="there is no card 3; this process sees 1"):
        open_runner(device=3)


def test_batches_that_do_not_fit_are_refused_before_the_sdk_sees_them(open_runner: OpenRunner) -> None:
    runner = open_runner()
    for feeds, message in (
        ([rows(17, 0)], r"\[1, 8\] to \[16, 8\]; got \[17, 8\]"),
        ([rows(2, 0)[:, :7]], r"got \[2, 7\]"),
        ([rows(2, 0).astype(np.float64)], "input 0 takes float32; got float64"),
        ([], "0 arrays for 1 inputs"),
    ):
        with pytest.raises(DriverError, match=message):
            runner.start(feeds)
    assert runner.free_slots == 2
    np.testing.assert_allclose(run(runner, rows(2, 0))[0], reference(rows(2, 0)), atol=1e-6)


@pytest.mark.usefixtures("mode")
def test_strided_batches_are_made_contiguous(open_runner: OpenRunner) -> None:
    batch = rows(8, 3)[::-2]
    np.testing.assert_allclose(run(open_runner(), batch)[0], reference(batch), atol=1e-6)


@pytest.fixture
def tokens_spec(tmp_path: Path) -> Spec:
    """Image rows and int64 tokens in, scores out; batch of the texts fixed, as in the vendor's sample."""
    table = np.random.default_rng(3).standard_normal((50, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="embed", axis=0),
        helper.make_node("ReduceMean", ["e"], ["m"], name="pool", axes=[1], keepdims=0),
        helper.make_node("Transpose", ["m"], ["t"], name="turn", perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["y"], name="score"),
    ]
    inputs = [("x", TensorProto.FLOAT, [1, WIDTH]), ("ids", TensorProto.INT64, [3, 6])]
    outputs = [("y", TensorProto.FLOAT, [1, 3])]
    graph = write_graph(tmp_path / "tokens.onnx", nodes, inputs, outputs, {"table": table})
    return {
        "onnx": str(graph),
        "output": str(tmp_path / "tokens.mm"),
        "precision": "force_float32",
        "archs": {"mtp_372": []},
        "mutable": True,
        "inputs": [
            {"shape": [2, WIDTH], "min": [1, WIDTH], "max": [4, WIDTH]},
            {"shape": [7, 6], "min": [7, 6], "max": [7, 6]},
        ],
    }


@pytest.mark.usefixtures("mode")
def test_int64_tokens_become_what_the_model_takes(sdk: Any, cards: Cards, tokens_spec: Spec) -> None:
    build(sdk, cards, tokens_spec)
    runner = Runner(sdk, cards, tokens_spec["output"], ranges=[[[1, WIDTH], [4, WIDTH]], [[7, 6], [7, 6]]])
    assert runner.ports["inputs"][1]["dtype"] == "int32"
    ids = np.random.default_rng(1).integers(0, 50, (7, 6))
    (result,) = run(runner, rows(3, 1), ids)
    (expected,) = ReferenceEvaluator(onnx.load(tokens_spec["onnx"])).run(None, {"x": rows(3, 1), "ids": ids})
    np.testing.assert_allclose(result, expected, atol=1e-5)
    ids[0, 0] = 2**31
    with pytest.raises(DriverError, match="do not fit INT32"):
        runner.start([rows(3, 1), ids])
    runner.close()


# ---- building


def test_settings_reach_the_sdk_in_the_samples_order_and_the_users_come_last(
    sdk: Any, cards: Cards, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class Config(sdk.BuilderConfig):  # type: ignore[misc, name-defined]
        def parse_from_string(self, text: str) -> Any:
            seen.append(json.loads(text))
            return super().parse_from_string(text)

    monkeypatch.setattr(sdk, "BuilderConfig", Config)
    spec.update(extra={"computation_preference": "fast", "graph_shape_mutable": False}, precision="force_float16")
    facts = build(sdk, cards, spec)
    assert [next(iter(part)) for part in seen] == [
        "precision_config",
        "archs",
        "graph_shape_mutable",
        "dim_range",
        "computation_preference",
        "opt_config",
        "opt_config",
        "computation_preference",
    ]
    assert seen[1] == {"archs": [{"mtp_372": [2, 6, 8]}]}
    assert facts["inputs"][0]["shape"] == [4, WIDTH], "the user's graph_shape_mutable=false holds"


def test_only_the_archs_that_were_built_for_load(
    sdk: Any, cards: Cards, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec["archs"] = {"mtp_592": [], "tp_322": [1]}
    build(sdk, cards, spec)
    with pytest.raises(DriverError, match=r"create_i_engine.*answered None") as caught:
        Runner(sdk, cards, spec["output"])
    assert caught.value.kind == "none"
    monkeypatch.setenv("CLIPMLU_EMULATOR_ARCH", "mtp_592")
    Runner(sdk, cards, spec["output"]).close()


@pytest.mark.usefixtures("mode")
def test_uint8_input_is_normalised_on_the_card(sdk: Any, cards: Cards, tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], name="pool", axes=[2, 3], keepdims=0)]
    inputs, outputs = [("x", TensorProto.FLOAT, [1, 3, 4, 4])], [("y", TensorProto.FLOAT, [1, 3])]
    graph = write_graph(tmp_path / "pixels.onnx", nodes, inputs, outputs, {})
    mean, var = [100.0, 110.0, 120.0], [64.0, 100.0, 144.0]
    spec = {
        "onnx": str(graph),
        "output": str(tmp_path / "pixels.mm"),
        "precision": "force_float32",
        "archs": {"mtp_372": [6]},
        "inputs": [{"shape": [2, 3, 4, 4], "mean": mean, "var": var, "layout": ["NCHW", "NHWC"]}],
    }
    build(sdk, cards, spec)
    runner = Runner(sdk, cards, str(spec["output"]))
    assert runner.ports["inputs"] == [{"shape": [2, 4, 4, 3], "dtype": "uint8"}]
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    expected = ((pixels - np.array(mean)) / np.sqrt(var)).mean(axis=(1, 2))
    np.testing.assert_allclose(run(runner, pixels)[0], expected, atol=1e-4)
    runner.close()


def test_output_type_can_be_set(sdk: Any, cards: Cards, spec: Spec) -> None:
    facts = build(sdk, cards, {**spec, "outputs": [{"dtype": "float16"}]})
    assert facts["outputs"][0]["dtype"] == "float16"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precison": "x"}, r"unknown keys \['precison'\]"),
        ({"precision": "int8"}, "precision is 'int8'; known: force_float32"),
        ({"inputs": [{"shape": [0, 8]}]}, "expected sizes of 1 or more"),
        ({"inputs": [{"shape": [1, 8], "min": [1, 8]}]}, "min needs max"),
        ({"inputs": []}, "has 1 inputs; the request describes 0"),
        ({"onnx": "/nowhere.onnx"}, "there is no file '/nowhere.onnx'"),
        ({"precision": "qint8_mixed_float16"}, "needs calibration data"),
        ({"nodes": {"blocks.0/MatMull": "float32"}}, r"no node 'blocks.0/MatMull'; close: blocks.0/MatMul"),
        ({"nodes": {"blocks.0/MatMul": "float99"}}, "there is no type 'float99'"),
        ({"extra": {"no_such_key": 1}}, r"parse_from_string\('{\"no_such_key\": 1}'\): .*unknown key"),
        ({"archs": {"mtp_999": []}}, "parse_from_string"),
    ],
)
def test_request_that_cannot_be_built_names_what_is_wrong(
    sdk: Any, cards: Cards, spec: Spec, change: Spec, message: str
) -> None:
    with pytest.raises(DriverError, match=message):
        build(sdk, cards, {**spec, **change})
    assert not Path(spec["output"]).exists()


def test_node_types_reach_the_named_node_only(
    sdk: Any, cards: Cards, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    node_type = type(build_network(sdk, spec).get_all_nodes_in_network()[0])
    for call in ("set_precision", "set_output_type"):
        original = getattr(node_type, call)

        def spy(self: Any, index: int, kind: Any, call: str = call, original: Any = original) -> Any:
            seen.append((call, self.get_node_name(), index, kind.name))
            return original(self, index, kind)

        monkeypatch.setattr(node_type, call, spy)
    build(sdk, cards, {**spec, "precision": "force_float16", "nodes": {"blocks.0/MatMul": "float32"}})
    name = "blocks.0/MatMul"
    assert seen == [
        ("set_precision", name, 0, "FLOAT32"),
        ("set_precision", name, 1, "FLOAT32"),
        ("set_output_type", name, 0, "FLOAT32"),
    ]
    seen.clear()
    build(sdk, cards, {**spec, "precision": "force_float16", "nodes": {name: {"inputs": {"0": "float32"}}}})
    assert seen == [("set_precision", name, 0, "FLOAT32")]


def build_network(sdk: Any, spec: Spec) -> Any:
    network = sdk.Network()
    assert sdk.Parser(sdk.ModelKind.kOnnx).parse(network, spec["onnx"]).ok()
    return network


def test_float32_nodes_in_a_float16_build_round_neither_weights_nor_results(sdk: Any, cards: Cards, spec: Spec) -> None:
    """The graph's input is rounded as in any force_float16 build; what the two nodes do with it is exact."""
    half = rows(4, 5).astype(np.float16).astype(np.float32)
    errors = {}
    for label, nodes in (("half", {}), ("mixed", {"blocks.0/MatMul": "float32", "blocks.0/Relu": "float32"})):
        build(sdk, cards, {**spec, "precision": "force_float16", "nodes": nodes})
        runner = Runner(sdk, cards, spec["output"])
        errors[label] = np.abs(run(runner, rows(4, 5))[0] - reference(half)).max()
        runner.close()
    assert errors["mixed"] < 1e-6
    assert errors["half"] > 1e-4


# ---- calibration


@pytest.fixture
def quantised(spec: Spec) -> Spec:
    batches = [rows(4, seed) for seed in range(5)]
    return {**spec, "precision": "qint8_mixed_float32", "calibration": {"data": [{"arrays": batches}]}}


@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize("algorithm", ["linear", "eqnm"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_axis"])
@pytest.mark.parametrize(
    "precision", ["qint8_mixed_float32", "qint8_mixed_float16", "qint16_mixed_float32", "qint16_mixed_float16"]
)
def test_calibrated_model_is_close(
    sdk: Any, cards: Cards, quantised: Spec, algorithm: str, granularity: str, precision: str
) -> None:
    quantised.update(precision=precision, granularity=granularity)
    quantised["calibration"]["algorithm"] = algorithm
    facts = build(sdk, cards, quantised)
    assert facts["calibration_batches"] == 5
    assert facts["warnings"] == []
    runner = Runner(sdk, cards, quantised["output"])
    error = np.abs(run(runner, rows(4, 0))[0] - reference(rows(4, 0))).max()
    assert 0 < error < (0.3 if "qint8" in precision else 0.02)
    runner.close()


def test_asymmetric_activations_are_asked_for(sdk: Any, cards: Cards, quantised: Spec) -> None:
    build(sdk, cards, {**quantised, "activation": "asymmetric"})
    quantised["calibration"]["algorithm"] = "eqnm"
    with pytest.raises(DriverError, match="eqnm works with symmetric activations only"):
        build(sdk, cards, {**quantised, "activation": "asymmetric"})


def test_calibrator_gets_each_batch_once_in_order(
    sdk: Any, cards: Cards, quantised: Spec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken: list[Any] = []
    calibrate = sdk.Calibrator.calibrate

    def spy(self: Any, network: Any, config: Any) -> Any:
        (data,) = self._data
        original = data.get_sample
        monkeypatch.setattr(data, "get_sample", lambda: (taken.append(np.array(original())), original())[1])
        return calibrate(self, network, config)

    monkeypatch.setattr(sdk.Calibrator, "calibrate", spy)
    batches = [rows(4, seed) for seed in range(5)]
    files = [str(tmp_path / f"{number}.npy") for number in range(5)]
    for path, batch in zip(files, batches, strict=True):
        np.save(path, batch)
    np.save(tmp_path / "all.npy", np.concatenate([*batches, rows(3, 9)]))
    whole = {"file": str(tmp_path / "all.npy"), "batch": 4}
    for source, rest in (({"arrays": batches}, []), ({"files": files}, []), (whole, [rows(3, 9)])):
        taken.clear()
        quantised["calibration"]["data"] = [source]
        build(sdk, cards, quantised)
        assert len(taken) == 5 + len(rest)
        for got, want in zip(taken, [*batches, *rest], strict=True):
            np.testing.assert_array_equal(got, want)


def test_fixed_texts_are_repeated_for_each_image_batch(sdk: Any, cards: Cards, tokens_spec: Spec) -> None:
    ids = np.random.default_rng(1).integers(0, 50, (7, 6))
    data = [{"arrays": [rows(2, seed) for seed in range(3)]}, {"arrays": [ids], "repeat": True}]
    tokens_spec.update(precision="qint8_mixed_float32", calibration={"data": data})
    assert build(sdk, cards, tokens_spec)["calibration_batches"] == 3


def test_calibration_data_that_do_not_fit_are_refused(
    sdk: Any, cards: Cards, tokens_spec: Spec, tmp_path: Path
) -> None:
    tokens_spec["precision"] = "qint8_mixed_float32"
    ids = np.zeros((7, 6), np.int64)
    (tmp_path / "bad.npy").write_bytes(b"no array")
    for data, message in (
        ([{"arrays": [rows(2, 0)] * 3}, {"arrays": [ids] * 2}], r"different numbers of batches: \[2, 3\]"),
        ([{"arrays": [rows(2, 0)]}], "1 data sources for 2 inputs"),
        ([{"arrays": []}, {"arrays": [ids]}], "a data source has 0 batches"),
        ([{"files": [str(tmp_path / "bad.npy")]}, {"arrays": [ids]}], r"cannot read '.*bad.npy'"),
    ):
        with pytest.raises(DriverError, match=message) as caught:
            build(sdk, cards, {**tokens_spec, "calibration": {"data": data}})
        assert caught.value.kind == "calibration"


def test_file_that_goes_bad_in_the_middle_is_reported_and_never_crosses_the_sdk(
    sdk: Any, cards: Cards, quantised: Spec, tmp_path: Path
) -> None:
    np.save(tmp_path / "0.npy", rows(4, 0))
    (tmp_path / "1.npy").write_bytes(b"no array")
    quantised["calibration"]["data"] = [{"files": [str(tmp_path / "0.npy"), str(tmp_path / "1.npy")]}]
    with pytest.raises(DriverError, match=r"cannot read '.*1.npy'"):
        build(sdk, cards, quantised)


def test_host_without_a_card_calibrates_on_another_one(
    sdk: Any, cards: Cards, quantised: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPMLU_EMULATOR_DEVICES", "0")
    with pytest.raises(DriverError, match="there is no device; use set_remote") as caught:
        build(sdk, cards, quantised)
    assert caught.value.call == "calibrate"
    quantised["calibration"]["remote"] = "10.0.0.7:9009"
    assert build(sdk, cards, quantised)["calibration_batches"] == 5
    quantised["calibration"]["remote"] = "nonsense"
    with pytest.raises(DriverError, match="expected ip:port"):
        build(sdk, cards, quantised)


# ---- every Status


@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize("call", ["parse", "calibrate", "build_model", "serialize_to_file"])
def test_failing_build_call_is_named(
    sdk: Any, cards: Cards, quantised: Spec, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPMLU_EMULATOR_FAULTS", f"{call}:1:status")
    with pytest.raises(DriverError, match=call) as caught:
        build(sdk, cards, quantised)
    assert caught.value.call == call
    assert caught.value.arguments
    assert caught.value.kind == ("none" if call == "build_model" else "status")
    assert not list(Path(quantised["output"]).parent.glob("graph.mm*"))


@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize(
    "call", ["deserialize_from_file", "active", "create_queue", "create_i_engine", "create_i_context", "create_inputs"]
)
def test_failing_open_call_is_named(open_runner: OpenRunner, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPMLU_EMULATOR_FAULTS", f"{call}:1:status")
    with pytest.raises(DriverError, match=call) as caught:
        open_runner()
    assert caught.value.call.startswith(call)


@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize("call", ["from_numpy", "enqueue", "sync"])
def test_failing_run_call_costs_one_batch_and_no_other(
    open_runner: OpenRunner, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPMLU_EMULATOR_FAULTS", f"{call}:2:status")
    runner = open_runner()
    outcomes: list[Any] = []
    failures: list[DriverError] = []
    for seed in range(5):
        try:
            outcomes.append(run(runner, rows(3, seed))[0])
        except DriverError as error:
            outcomes.append(None)
            failures.append(error)
    (failure,) = failures
    assert failure.call == call
    assert "INTERNAL" in failure.status
    assert [outcome is None for outcome in outcomes] == [False, True, False, False, False]
    for seed in (0, 2, 3, 4):
        np.testing.assert_allclose(outcomes[seed], reference(rows(3, seed)), atol=1e-6)


@pytest.mark.parametrize("call", ["enqueue", "sync", "active"])
@pytest.mark.parametrize(("fault", "kind"), [("oom", "out_of_memory"), ("device_lost", "device_lost")])
def test_lost_card_and_full_memory_are_told_apart(
    open_runner: OpenRunner, call: str, fault: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPMLU_EMULATOR_FAULTS", f"{call}:1:{fault}")
    with pytest.raises(DriverError) as caught:
        run(open_runner(), rows(2, 0))
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Resource exhausted: cnrtMalloc", "out_of_memory"),  # the form of the SDK's log: ``Internal: ...`` (api 2.1)
        ("RESOURCE_EXHAUSTED: cnrtMalloc", "out_of_memory"),
        ("Unavailable: device 0", "device_lost"),
        ("Internal: Onnx mlir graph is illegal", "status"),
    ],
)
def test_the_kind_of_a_status_is_read_from_both_forms_of_its_text(sdk: Any, text: str, kind: str) -> None:
    class Status(sdk.Status):  # type: ignore[misc, name-defined]
        def __str__(self) -> str:
            return text

    with pytest.raises(DriverError) as caught:
        check_status("parse", Status(sdk.Code.INTERNAL, text))
    assert caught.value.kind == kind


def test_second_context_that_cannot_be_had_is_done_without(
    open_runner: OpenRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPMLU_EMULATOR_FAULTS", "create_i_context:2:oom")
    runner = open_runner(depth=2)
    assert runner.free_slots == 1
    assert "batches in flight: 1 instead of 2" in runner.warnings[0]
    np.testing.assert_allclose(run(runner, rows(2, 0))[0], reference(rows(2, 0)), atol=1e-6)


def test_results_that_are_not_finite_are_computed_again_then_refused(
    open_runner: OpenRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPMLU_EMULATOR_FAULTS", "enqueue:2:nan,enqueue:5:nan,enqueue:6:nan")
    runner = open_runner()
    for seed in range(3):
        np.testing.assert_allclose(run(runner, rows(2, seed))[0], reference(rows(2, seed)), atol=1e-6)
    with pytest.raises(DriverError, match="NaN or infinity, twice in a row") as caught:
        run(runner, rows(2, 3))
    assert caught.value.kind == "not_finite"
    np.testing.assert_allclose(run(runner, rows(2, 4))[0], reference(rows(2, 4)), atol=1e-6)


def test_file_that_is_no_model_is_refused(sdk: Any, cards: Cards, tmp_path: Path) -> None:
    (tmp_path / "bad.mm").write_bytes(b"no model")
    for name in ("bad.mm", "absent.mm"):
        with pytest.raises(DriverError, match=name) as caught:
            Runner(sdk, cards, str(tmp_path / name))
        assert caught.value.kind == "model"


class Bad:
    """A Status that is not good."""

    def ok(self) -> bool:
        return False

    def error_message(self) -> str:
        return "text"

    def __str__(self) -> str:
        return "INTERNAL: text"


def test_answers_of_the_wrong_kind_are_errors() -> None:
    def fail() -> None:
        raise RuntimeError("boom")

    with pytest.raises(DriverError, match=r"f\(1, 'a'\): INTERNAL: text"):
        check_status("f", Bad(), (1, "a"))
    for answer in (None, True, 7):
        with pytest.raises(DriverError, match="instead of a Status"):
            check_status("f", answer)
    with pytest.raises(DriverError, match="answered None"):
        made("f", lambda: None)
    with pytest.raises(DriverError, match="INTERNAL: text"):
        made_list("f", Bad)
    with pytest.raises(DriverError, match="instead of a list"):
        made_list("f", lambda: (1,))
    with pytest.raises(DriverError, match="RuntimeError: boom") as caught:
        made("f", fail)
    assert caught.value.kind == "exception"


def test_objects_are_released_in_the_documented_order(open_runner: OpenRunner) -> None:
    runner = open_runner()
    run(runner, rows(2, 0))
    order: list[str] = []
    slot = runner._slots[-1]
    things = {"tensor": slot.inputs[0], "context": slot.context, "queue": slot.queue, "engine": runner._engine}
    things["model"] = runner._model
    for name, thing in things.items():
        weakref.finalize(thing, order.append, name)
    del slot, thing
    things.clear()
    runner.close()
    assert order == ["tensor", "context", "queue", "engine", "model"]
