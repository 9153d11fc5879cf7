"""OpenVINO: what it is told, what it may compute on this CPU, and that it sends nothing anywhere."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import fake_packages
import support
from clipmlu.backends import SessionOptions, backend_for_target, get_backend, openvino_graph, openvino_runtime
from clipmlu.backends.integer_products import integer_product_graph, products_are_exact
from clipmlu.backends.openvino import OpenVinoBackend, OpenVinoSession
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.bundle.manifest import Tower
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions, plan_compilation
from clipmlu.data.calibration import CalibrationOptions
from clipmlu.doctor import examine
from clipmlu.errors import BackendUnavailableError, CompileError, OptionError, PrecisionError, SessionError
from clipmlu.host import import_onnxruntime
from clipmlu.model import Model
from clipmlu.specs import VENDOR_PRECISIONS, Precision, TensorSpec, TowerName
from clipmlu.tune.candidates import modes_of
from clipmlu.tune.quantise import search_bundle
from clipmlu.tune.trial import SearchOptions

_ABSENT = not OpenVinoBackend().probe().ok
needs_openvino = pytest.mark.skipif(_ABSENT, reason="needs the openvino extra, not older than 2025.3")


def _pixels(rows: int, seed: int = 1) -> support.FloatArray:
    return np.random.default_rng(seed).standard_normal((rows, 3, support.SIDE, support.SIDE), dtype=np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> CompiledBundle:
    """The tiny model, compiled once; not to be changed."""
    folder = tmp_path_factory.mktemp("openvino")
    exported = support.write_exported(folder / "tiny")
    return compile_bundle(exported, folder / "compiled", CompileOptions(target="openvino", batch_size=4))


def _forget_this_cpu() -> None:
    runtime = openvino_runtime
    for known in (runtime.core, runtime.has_bfloat16, runtime.bfloat16_speed, runtime.int8_is_exact):
        known.cache_clear()


@pytest.fixture
def other_cpu() -> Iterator[None]:
    """What OpenVINO found out about this CPU is forgotten before the test and after it."""
    _forget_this_cpu()
    yield
    _forget_this_cpu()


@pytest.fixture(scope="module")
def really_exact() -> bool:
    """Whether 8-bit products are exact on this CPU."""
    return openvino_runtime.int8_is_exact()


OnCpu = Callable[..., None]


@pytest.fixture
def on_cpu(other_cpu: None, monkeypatch: pytest.MonkeyPatch) -> OnCpu:
    """``on_cpu(bfloat16=False, exact=True)``: OpenVINO says that this CPU is such a one, and computes as it does here."""
    real = openvino_runtime.core()

    def arrange(*, bfloat16: bool = False, exact: bool = True) -> None:
        core = functools.partial(fake_packages.Core, bfloat16=bfloat16, exact=exact, real=real)
        monkeypatch.setattr(openvino_runtime.import_openvino(), "Core", core)
        _forget_this_cpu()

    return arrange


@pytest.fixture(params=[True, False], ids=["exact", "saturating"])
def exact(request: pytest.FixtureRequest, on_cpu: OnCpu) -> bool:
    on_cpu(exact=request.param)
    return bool(request.param)


def _open(bundle: CompiledBundle, tower: TowerName = "image", **options: int) -> OpenVinoSession:
    session = get_backend("openvino").open(bundle.runnable, tower, SessionOptions(**options))
    assert isinstance(session, OpenVinoSession)
    return session


# ---- settings --------------------------------------------------------------------------------------------------------


@needs_openvino
def test_nothing_is_left_to_the_machine(bundle: CompiledBundle) -> None:
    with _open(bundle, threads=1) as session:
        read = session.read_property
        assert read("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
        assert str(read("PERFORMANCE_HINT")).rpartition(".")[2] == "LATENCY"
        assert int(read("NUM_STREAMS")) == 1
        assert read("INFERENCE_NUM_THREADS") == 1
        assert read("ENABLE_CPU_PINNING") is False
        assert read("EXECUTION_DEVICES") == ["CPU"]


@needs_openvino
def test_nothing_is_cached_on_disk(bundle: CompiledBundle) -> None:
    with _open(bundle) as session:
        session.run({"pixel_values": _pixels(1)})
    assert openvino_runtime.core().get_property("CACHE_DIR") == ""


@needs_openvino
@pytest.mark.parametrize("zero_point", [0, 5])
def test_patches_in_8_bits_with_a_scale_per_channel_are_those_of_onnxruntime(tmp_path: Path, zero_point: int) -> None:
    random = np.random.default_rng(0)
    channels, side = 64, 8
    weights = {
        "scale": np.float32(0.02),
        "zero": np.int8(zero_point),
        "kernel": random.integers(-127, 128, (channels, 3, side, side), np.int8),
        "kernel_scales": random.uniform(0.001, 0.01, channels).astype(np.float32),
        "kernel_zeros": np.zeros(channels, np.int8),
        "first": np.int64([0, 0]),
        "second": np.int64([1, 1]),
        "plane": np.int64([2, 3]),
        "nothing": np.float32(0),
        "row": random.standard_normal((1, 1, channels), np.float32),
        "row_shape": np.int64([0, 1, channels]),
        "patches_shape": np.int64([0, channels, -1]),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["pixels", "scale", "zero"], ["integers"]),
        helper.make_node("DequantizeLinear", ["integers", "scale", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["kernel", "kernel_scales", "kernel_zeros"], ["rounded_kernel"], axis=0),
        helper.make_node("Conv", ["rounded", "rounded_kernel"], ["patches"], strides=[side, side]),
        helper.make_node("Slice", ["patches", "first", "second", "plane"], ["corner"]),
        helper.make_node("Mul", ["corner", "nothing"], ["zeros"]),
        helper.make_node("Reshape", ["zeros", "row_shape"], ["zero_rows"]),
        helper.make_node("Add", ["row", "zero_rows"], ["class_rows"]),
        helper.make_node("Reshape", ["patches", "patches_shape"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("Concat", ["class_rows", "tokens"], ["all"], axis=1),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["rows", 3, 32, 32])
    results = helper.make_tensor_value_info("all", TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(np.asarray(values), name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "patches", [pixels], [results], stored)
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "patches.onnx")
    feeds = {"pixels": random.standard_normal((4, 3, 32, 32), np.float32)}

    session = import_onnxruntime().InferenceSession(tmp_path / "patches.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, feeds)
    compiled = openvino_runtime.core().compile_model(
        openvino_graph.read_graph(tmp_path / "patches.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    np.testing.assert_allclose(compiled(feeds)[0], expected, atol=0.1)  # values up to 30; a pixel may round differently


@needs_openvino
def test_device_of_a_bundle_for_the_cpu_is_refused(bundle: CompiledBundle) -> None:
    with pytest.raises(OptionError, match="runs on the CPU"):
        _open(bundle, device=1)


# ---- running ---------------------------------------------------------------------------------------------------------


@needs_openvino
def test_inputs_are_read_where_they_lie_or_copied_where_they_must_be(bundle: CompiledBundle) -> None:
    frozen = _pixels(4)
    frozen.flags.writeable = False
    with _open(bundle) as session:
        for pixels in (frozen, frozen[::2], frozen[:, :, ::-1], np.asfortranarray(frozen)):
            found = session.run({"pixel_values": pixels})["image_embeds"]
            np.testing.assert_allclose(found, support.embed_images(pixels), atol=1e-6)


@needs_openvino
def test_stages_of_every_batch_are_on_the_clock(bundle: CompiledBundle) -> None:
    with _open(bundle) as session:
        for rows in (4, 3):
            session.run({"pixel_values": _pixels(rows)})
        totals = session.clock.totals()
    assert {stage: total.items for stage, total in totals.items()} == {"compute": 7, "copy_out": 7}


@needs_openvino
@pytest.mark.parametrize("outside", [support.VOCAB, -support.VOCAB - 1, 2**31 + 1])
def test_id_outside_the_vocabulary_is_named(bundle: CompiledBundle, outside: int) -> None:
    """OpenVINO itself answers zeros."""
    ids = np.zeros((2, support.CONTEXT), np.int64)
    ids[1, 3] = outside
    with _open(bundle, "text") as session:
        with pytest.raises(
            SessionError, match=rf"text tower.*'input_ids' holds the id {outside}; expected -300 to 299"
        ):
            session.submit({"input_ids": ids})
        ids[1, 3] = support.VOCAB - 1
        found = session.run({"input_ids": ids})["text_embeds"]
    np.testing.assert_allclose(found, support.embed_tokens(ids), atol=1e-6)


@needs_openvino
def test_failure_of_the_runtime_is_told_by_its_last_line(bundle: CompiledBundle) -> None:
    with (
        _open(bundle) as session,
        pytest.raises(SessionError, match=r"image tower\): openvino failed: .*\w$") as caught,
    ):
        session.run({"pixel_values": _pixels(0)})
    assert "\n" not in str(caught.value)


class _SlowRequest:
    """An infer request that computes until it is cancelled, as OpenVINO's looks for a cancellation between its nodes."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self._cancelled = threading.Event()

    def start_async(self, _feeds: Any, **_sharing: bool) -> None:
        self.began.set()

    def wait(self) -> None:
        assert self._cancelled.wait(20)
        raise RuntimeError("Infer Request was canceled")

    def cancel(self) -> None:
        self._cancelled.set()


@needs_openvino
def test_closing_cancels_what_runs_and_what_waits(bundle: CompiledBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    session = _open(bundle)
    slow = _SlowRequest()
    monkeypatch.setattr(session, "_request", slow)
    running = session.submit({"pixel_values": _pixels(1)})
    waiting = session.submit({"pixel_values": _pixels(1)})
    assert slow.began.wait(20)
    session.close()
    with pytest.raises(SessionError, match="the session was closed before the batch began"):
        waiting.result()
    with pytest.raises(SessionError, match="was closed while the batch ran"):
        running.result()


def _long_graph(path: Path) -> Tower:
    """300 products of (4096, 512) and (512, 512): 640 billion multiply-accumulates for one batch."""
    nodes = []
    for number in range(300):
        nodes.append(helper.make_node("MatMul", [f"x{number}", "weight"], [f"product{number}"]))
        nodes.append(helper.make_node("Tanh", [f"product{number}"], [f"x{number + 1}"]))
    shape = [4096, 512]
    graph = helper.make_graph(
        nodes,
        "long",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("x300", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.full((512, 512), 0.01, np.float32), "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    tensors = [TensorSpec(name=name, dtype="float32", shape=(4096, 512)) for name in ("x0", "x300")]
    return Tower(file=path.name, inputs=(tensors[0],), outputs=(tensors[1],))


@needs_openvino
def test_closing_cancels_a_batch_of_openvino_itself(tmp_path: Path) -> None:
    """What ``_SlowRequest`` imitates."""
    path = tmp_path / "long.onnx"
    session = OpenVinoSession(_long_graph(path), path, "test", SessionOptions(threads=1))
    running = session.submit({"x0": np.ones((4096, 512), np.float32)})
    time.sleep(0.1)
    session.close()
    with pytest.raises(
        SessionError, match=r"test: the session was closed (while the batch ran|before the batch began)"
    ):
        running.result()


# ---- precisions ------------------------------------------------------------------------------------------------------


def test_the_other_backends_offer_the_vendors_modes_and_no_more() -> None:
    assert [precision.value for precision in VENDOR_PRECISIONS] == [
        "force_float32",
        "force_float16",
        "qint8_mixed_float16",
        "qint8_mixed_float32",
        "qint16_mixed_float16",
        "qint16_mixed_float32",
    ]
    for name in ("onnxruntime", "magicmind", "magicmind-emulated"):
        assert get_backend(name).precisions == VENDOR_PRECISIONS
    assert Precision.FORCE_BFLOAT16.float_type == "float32"
    assert Precision.FORCE_BFLOAT16.bits is None


@needs_openvino
def test_small_integer_products_are_exact_and_the_largest_where_it_says_so() -> None:
    generator = np.random.default_rng(0)
    for limit, always in ((10, True), (127, openvino_runtime.int8_is_exact())):
        rows = generator.integers(limit - 3, limit + 1, (48, 256)).astype(np.int8)
        weights = generator.integers(limit - 3, limit + 1, (256, 32)).astype(np.int8)
        expected = rows.astype(np.int64) @ weights.astype(np.int64)
        assert np.array_equal(openvino_runtime.int8_products(rows, weights), expected) is always


@pytest.mark.parametrize("faulty", [False, True])
def test_products_decide_whether_8_bits_are_exact(faulty: bool) -> None:
    multiply = functools.partial(fake_packages.multiply_bytes, saturates=faulty)
    assert products_are_exact(multiply) is not faulty


@needs_openvino
def test_8_bits_are_offered_where_they_are_exact(
    really_exact: bool, exact: bool, exported: ExportedBundle, tmp_path: Path, folder: Path
) -> None:
    options = _quantised("openvino", folder)
    if not exact:
        with pytest.raises(
            PrecisionError,
            match=r"'openvino' does not offer the precision 'qint8_mixed_float32' yet.*force_float32.*saturate.*--target cpu",
        ):
            compile_bundle(exported, tmp_path / "out", options)
        return
    compiled = compile_bundle(exported, tmp_path / "out", options)
    reference = compile_bundle(exported, tmp_path / "cpu", _quantised("cpu", folder))
    for tower in ("image", "text"):
        assert compiled.tower_path(tower).read_bytes() == reference.tower_path(tower).read_bytes()
    assert compiled.compilation.quantised == reference.compilation.quantised
    with Model(compiled) as own, Model(reference) as other:
        atol = 2e-6 if really_exact else 0.05  # told that they are exact, OpenVINO's sums may saturate here
        np.testing.assert_allclose(own.encode_images(_pixels(8)), other.encode_images(_pixels(8)), atol=atol)


@needs_openvino
def test_bundle_in_8_bits_from_another_machine_is_refused_here(
    exported: ExportedBundle, tmp_path: Path, folder: Path, on_cpu: OnCpu
) -> None:
    on_cpu(exact=True)
    compiled = compile_bundle(exported, tmp_path / "out", _quantised("openvino", folder))
    on_cpu(exact=False)
    with pytest.raises(BackendUnavailableError, match=r"in qint8_mixed_float32, which cannot run here.*--target cpu"):
        _open(compiled)


@needs_openvino
def test_bfloat16_is_refused_where_the_cpu_has_none(on_cpu: OnCpu, exported: ExportedBundle, tmp_path: Path) -> None:
    on_cpu(bfloat16=False)
    options = CompileOptions(target="openvino", precision=Precision.FORCE_BFLOAT16)
    with pytest.raises(PrecisionError, match=r"It offers: force_float32.*This CPU has no bfloat16 instructions"):
        compile_bundle(exported, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def _takes_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 here when it is told to: with instructions for it, or simulated with AVX-512."""
    graph = integer_product_graph(np.ones((8, 8), np.int8))
    core = openvino_runtime.core()
    compiled = core.compile_model(core.read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    return bool(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "bf16")


@needs_openvino
def test_bfloat16_runs_where_the_cpu_has_it_and_is_never_replaced(
    exported: ExportedBundle, tmp_path: Path, on_cpu: OnCpu
) -> None:
    takes_bfloat16 = _takes_bfloat16()
    on_cpu(bfloat16=True)
    options = CompileOptions(target="openvino", precision=Precision.FORCE_BFLOAT16, batch_size=4)
    if not takes_bfloat16:  # told that there are instructions for it, OpenVINO computes in float32, and is found out
        with pytest.raises(BackendUnavailableError, match=r"compute in bf16 for force_bfloat16, and computes in f32"):
            compile_bundle(exported, tmp_path / "out", options)
        assert not (tmp_path / "out").exists()
        return
    compiled = compile_bundle(exported, tmp_path / "out", options)
    pixels = _pixels(8)
    with Model(compiled) as encoder:
        cosines = (encoder.encode_images(pixels) * support.embed_images(pixels)).sum(axis=1)
    assert cosines.min() > 0.99
    with _open(compiled) as session:
        assert session.read_property("INFERENCE_PRECISION_HINT").get_type_name() == "bf16"


# ---- auto ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an SDK nor a worker of Cambricon's."""
    monkeypatch.setitem(sys.modules, "magicmind", None)
    for variable in ("CLIPMLU_MLU_PYTHON", "CLIPMLU_MLU_WORKER"):
        monkeypatch.delenv(variable, raising=False)


Offer = Callable[..., None]


@pytest.fixture
def offer(no_card: None, other_cpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Offer:
    """``offer(bfloat16=..., exact=..., speed=...)``: OpenVINO is installed, on a CPU that can do this."""

    def install(*, bfloat16: bool, exact: bool, speed: float = 2.0) -> None:
        facts = f"bfloat16={bfloat16}, exact={exact}, speed={speed}"
        code = f"import fake_packages\ndef Core():\n    return fake_packages.Core({facts})\n"
        fake_packages.install_openvino(monkeypatch, tmp_path, code)

    return install


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        (None, "openvino"),
        (Precision.FORCE_FLOAT32, "openvino"),
        (Precision.QINT8_MIXED_FLOAT32, "cpu"),
        (Precision.FORCE_FLOAT16, "cpu"),
    ],
)
def test_auto_takes_the_first_target_that_offers_the_precision(
    offer: Offer, precision: Precision | None, expected: str
) -> None:
    offer(bfloat16=False, exact=False)
    assert backend_for_target("auto", precision)[0] == expected


def test_auto_prefers_openvino_for_what_it_offers(offer: Offer) -> None:
    offer(bfloat16=True, exact=True)
    assert backend_for_target("auto", Precision.FORCE_BFLOAT16)[0] == "openvino"
    assert backend_for_target("auto", Precision.QINT8_MIXED_FLOAT32)[0] == "openvino"


def test_auto_without_a_target_for_the_precision_says_why(offer: Offer) -> None:
    offer(bfloat16=False, exact=False)
    message = (
        r"No target .* offers the precision 'force_bfloat16' "
        r"\(mlu: the package 'magicmind' is not importable.*; openvino: This CPU has no bfloat16.*; cpu: "
    )
    with pytest.raises(PrecisionError, match=message):
        backend_for_target("auto", Precision.FORCE_BFLOAT16)


def test_auto_without_openvino_takes_onnxruntime(no_card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert backend_for_target("auto")[0] == "cpu"
    with pytest.raises(
        BackendUnavailableError, match=r"Target 'openvino' cannot be used here .*'openvino' is not installed"
    ):
        backend_for_target("openvino")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message = (
        r"'auto' .*mlu: the package 'magicmind' is not .*; openvino: the package 'openvino' is not installed.*; "
        r"cpu: the package 'onnxruntime' is not installed"
    )
    with pytest.raises(BackendUnavailableError, match=message):
        backend_for_target("auto", Precision.FORCE_FLOAT32)


def test_broken_openvino_is_passed_over_by_auto_and_told_to_who_names_it(
    no_card: None, other_cpu: None, monkeypatch: pytest.MonkeyPatch, exported: ExportedBundle, tmp_path: Path
) -> None:
    code = "raise ImportError('libopenvino.so: cannot open shared object file')\n"
    fake_packages.install_openvino(monkeypatch, tmp_path, code)
    assert backend_for_target("auto", Precision.FORCE_FLOAT32)[0] == "cpu"
    with pytest.raises(BackendUnavailableError, match=r"OpenVINO cannot be loaded here: libopenvino\.so"):
        compile_bundle(exported, tmp_path / "out", CompileOptions(target="openvino"))


@pytest.mark.parametrize(
    ("version", "reason"), [(None, "not installed; pip install 'clipmlu"), ("2025.2.0", "2025.2.0 is too old")]
)
def test_absent_or_old_package_is_no_runtime(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str | None, reason: str
) -> None:
    if version is None:
        monkeypatch.setitem(sys.modules, "openvino", None)
    else:
        fake_packages.install_openvino(monkeypatch, tmp_path, "", version)
    availability = OpenVinoBackend().probe()
    assert not availability.ok
    assert reason in availability.reason


@needs_openvino
def test_text_tower_runs_in_float32_on_the_cpu_target_that_is_named(exported: ExportedBundle, tmp_path: Path) -> None:
    options = CompileOptions(
        target="cpu", precision=Precision.FORCE_FLOAT16, text_target="openvino", batch_size=4, min_agreement=0
    )
    compiled = compile_bundle(exported, tmp_path / "out", options)
    place = compiled.compilation.placement("text")
    assert (place.target, place.backend, place.precision) == ("openvino", "openvino", Precision.FORCE_FLOAT32)
    ids = np.random.default_rng(2).integers(0, 256, (3, support.CONTEXT))
    with Model(compiled) as encoder:
        np.testing.assert_allclose(encoder.encode_tokens(ids), support.embed_tokens(ids), atol=1e-6)


# ---- search ----------------------------------------------------------------------------------------------------------


@needs_openvino
def test_search_runs_where_8_bits_are_exact_and_is_refused_elsewhere(
    exact: bool, exported: ExportedBundle, tmp_path: Path, folder: Path
) -> None:
    calibration = CalibrationOptions(dataset=f"imagefolder:{folder}", samples=8)
    options = CompileOptions(target="openvino", batch_size=8, calibration=calibration)
    wanted = SearchOptions(max_drop=0.9, samples=8)
    if not exact:
        with pytest.raises(CompileError, match=r"'openvino' does not offer the precision 'qint8_mixed_float32'"):
            search_bundle(exported, tmp_path / "out", options, wanted)
        return
    bundle, report = search_bundle(exported, tmp_path / "out", options, wanted)
    assert (report.provenance.target, bundle.compilation.backend) == ("openvino", "openvino")
    assert report.trials[0].precision is Precision.QINT8_MIXED_FLOAT32


@pytest.mark.parametrize(
    ("target", "modes"),
    [
        ("cpu", ["qint8_mixed_float32", "force_float32"]),
        ("openvino", ["qint8_mixed_float32", "force_bfloat16", "force_float32"]),
    ],
)
def test_search_tries_the_modes_that_the_target_offers(
    offer: Offer, tmp_path: Path, target: str, modes: list[str]
) -> None:
    offer(bfloat16=True, exact=True)
    plan = plan_compilation(_quantised(target, tmp_path))
    assert [mode.value for mode in modes_of(plan)] == modes


def test_bfloat16_that_is_slower_than_float32_is_not_advised_but_available_by_name(
    offer: Offer, tmp_path: Path
) -> None:
    offer(bfloat16=True, exact=True, speed=0.6)
    searched = modes_of(plan_compilation(_quantised("openvino", tmp_path)))
    assert searched == (Precision.QINT8_MIXED_FLOAT32, Precision.FORCE_FLOAT32)
    asked = plan_compilation(CompileOptions(target="openvino", precision=Precision.FORCE_BFLOAT16))
    assert asked.main.precision is Precision.FORCE_BFLOAT16
    (finding,) = [each for each in examine(root=tmp_path) if each.check == "target openvino"]
    assert re.search(
        r"force_bfloat16.*; products in bfloat16 have 0\.[4-8]\d times the speed of float32 on this CPU, so force_float32 is",
        finding.found,
    )


def test_bfloat16_that_is_faster_is_reported_with_its_speed(offer: Offer, tmp_path: Path) -> None:
    offer(bfloat16=True, exact=True, speed=2.0)
    (finding,) = [each for each in examine(root=tmp_path) if each.check == "target openvino"]
    assert re.search(
        r"products in bfloat16 have (1\.[3-9]|2\.\d)\d times the speed of float32 on this CPU$", finding.found
    )


# ---- telemetry -------------------------------------------------------------------------------------------------------

_WATCH = """
import multiprocessing, socket, sys, threading
begun = []
class Watched(socket.socket):
    def connect(self, address):
        begun.append(address)
        raise OSError("no network here")
socket.socket = Watched
def look_up(*given, **named):
    begun.append(given)
    raise OSError("no network here")
socket.getaddrinfo = look_up
multiprocessing.Process.start = lambda process: begun.append(process)
"""

_USE = """
import numpy as np
from clipmlu.bundle.directory import open_compiled
from clipmlu.model import Model
with Model(open_compiled({path!r})) as encoder:
    encoder.encode_tokens(np.zeros((1, {context}), np.int64))
assert "openvino" in sys.modules
loaded = [name for name in sys.modules if name.split(".")[0] == "openvino_telemetry"]
assert not loaded, loaded
assert not begun, begun
assert [thread.name for thread in threading.enumerate()] == ["MainThread"], threading.enumerate()
"""


def _run(code: str, home: Path) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    return subprocess.run(
        [sys.executable, "-c", code], env={**kept, "HOME": str(home)}, capture_output=True, text=True, check=False
    )


@needs_openvino
def test_nothing_is_sent_and_nothing_is_kept_in_the_home(bundle: CompiledBundle, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    code = _WATCH + _USE.format(path=str(bundle.path), context=support.CONTEXT)
    result = _run(code, home)
    assert result.returncode == 0, result.stderr
    assert list(home.rglob("*")) == []


@needs_openvino
def test_plain_import_would_send_and_keep_an_id(tmp_path: Path) -> None:
    """What the test above looks for is there to be found: OpenVINO on its own starts its telemetry."""
    if util.find_spec("openvino_telemetry") is None:
        pytest.skip("openvino is installed without openvino_telemetry")
    sent = "import openvino, openvino_telemetry as given\ngiven.Telemetry().sender.executor.shutdown()\nassert begun, given.Telemetry().__dict__"
    result = _run(_WATCH + sent, tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "intel").is_dir()


def test_hidden_telemetry_comes_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = type(sys)("openvino_telemetry")
    monkeypatch.setitem(sys.modules, "openvino_telemetry", given)
    fake_packages.install_openvino(monkeypatch, tmp_path, "import sys\nseen = [sys.modules['openvino_telemetry']]\n")
    assert openvino_runtime.import_openvino().seen == [None]
    assert sys.modules["openvino_telemetry"] is given


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixteen pictures in two classes."""
    for number in range(16):
        place = tmp_path / "pictures" / "train" / ("red", "blue")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        support.picture(number).save(place / f"{number}.png")
    return tmp_path / "pictures"


def _quantised(target: str, folder: Path) -> CompileOptions:
    return CompileOptions(
        target=target,
        precision=Precision.QINT8_MIXED_FLOAT32,
        batch_size=4,
        calibration=CalibrationOptions(dataset=f"imagefolder:{folder}", samples=8),
        min_cosine=-1.0,
        min_agreement=0.0,
    )
