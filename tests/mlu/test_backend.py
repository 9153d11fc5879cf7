"""The backend: requests to the driver, the record beside a model, and the real SDK never taken for the emulated one."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

import support
from clipmlu.backends import SessionOptions, get_backend
from clipmlu.backends.base import GraphOptions
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.bundle.manifest import Tower
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.data.feeds import CalibrationData
from clipmlu.errors import BackendUnavailableError, BundleCorruptError, CalibrationError, DeviceError, OptionError
from clipmlu.magicmind.backend import MagicMindBackend, emulated_worker
from clipmlu.magicmind.build import build_request, check_sdk, read_record, shapes_of
from clipmlu.magicmind.emulator import faults
from clipmlu.model import Model
from clipmlu.specs import MluBuild, Precision, QuantisationOptions, TensorSpec

IMAGES = TensorSpec(name="pixel_values", dtype="float32", shape=("image_batch", 3, 8, 8))
TEXTS = TensorSpec(name="input_ids", dtype="int64", shape=("text_batch", 32))


def graph_options(**changes: object) -> GraphOptions:
    given = {"precision": Precision.FORCE_FLOAT16, "dynamic_shape": True, "batch_size": 4, "max_batch": 64, **changes}
    return GraphOptions(**given)  # type: ignore[arg-type]


def test_dynamic_shapes_run_from_one_to_the_largest_batch_and_texts_are_fixed() -> None:
    options = graph_options(mlu=MluBuild(text_rows=100))
    assert shapes_of(IMAGES, options) == ((1, 3, 8, 8), (4, 3, 8, 8), (64, 3, 8, 8))
    assert shapes_of(TEXTS, options) == ((100, 32),) * 3
    static = graph_options(dynamic_shape=False, max_batch=4)
    assert shapes_of(IMAGES, static) == ((4, 3, 8, 8),) * 3


def test_request_holds_what_was_asked_for() -> None:
    mlu = MluBuild(
        archs={"mtp_592": (4,)},
        computation_preference="fast",
        conv_scale_fold=False,
        node_types={"a/MatMul": "float32"},
        build_config={"compute_determinism": True},
        toolchain="/gcc",
    )
    how = QuantisationOptions(granularity="per_axis", activation="asymmetric")
    options = graph_options(mlu=mlu, quantisation=how)
    request = build_request(
        Tower(file="x", inputs=(IMAGES, TEXTS), outputs=()),
        [shapes_of(each, options) for each in (IMAGES, TEXTS)],
        options,
    )
    assert request == {
        "label": "clipmlu",
        "precision": "force_float16",
        "granularity": "per_axis",
        "activation": "asymmetric",
        "archs": {"mtp_592": [4]},
        "mutable": True,
        "inputs": [
            {"shape": [4, 3, 8, 8], "min": [1, 3, 8, 8], "max": [64, 3, 8, 8]},
            {"shape": [100, 32], "min": [100, 32], "max": [100, 32]},
        ],
        "type64to32": True,
        "conv_scale_fold": False,
        "computation_preference": "fast",
        "toolchain": "/gcc",
        "nodes": {"a/MatMul": "float32"},
        "extra": {"compute_determinism": True},
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"archs": {}}, "MLU architecture is 'none'"),
        ({"archs": {"mtp_270": ()}}, "MLU architecture is 'mtp_270'; expected one or more of mtp_372"),
        ({"archs": {"mtp_372": (0,)}}, "archs is .*expected .*1 or more"),
    ],
)
def test_builds_that_the_sdk_cannot_do_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        MluBuild(**changes)  # type: ignore[arg-type]


def test_least_noise_and_asymmetric_activations_exclude_one_another() -> None:
    with pytest.raises(OptionError, match="eqnm works with symmetric activations only"):
        QuantisationOptions(algorithm="eqnm", activation="asymmetric")


def test_each_sdk_is_refused_in_the_place_of_the_other() -> None:
    check_sdk(True, True)
    check_sdk(False, False)
    with pytest.raises(BackendUnavailableError, match="is the emulated one, which is no card"):
        check_sdk(True, False)
    with pytest.raises(BackendUnavailableError, match="another 'magicmind' than the emulated one"):
        check_sdk(False, True)


def test_worker_with_the_emulated_sdk_builds_nothing_for_a_card(
    exported: ExportedBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPMLU_MLU_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(emulated_worker().environment["PYTHONPATH"]))  # type: ignore[index]
    options = CompileOptions(target="mlu", check=False)
    with pytest.raises(BackendUnavailableError, match="is the emulated one, which is no card"):
        compile_bundle(exported, tmp_path / "card", options)
    assert not (tmp_path / "card").exists()


@pytest.fixture
def card(exported: ExportedBundle, tmp_path: Path) -> CompiledBundle:
    return compile_bundle(exported, tmp_path / "card", CompileOptions(target="emulated-mlu", batch_size=4, max_batch=8))


def test_record_says_what_the_sdk_does_not_tell_again(card: CompiledBundle) -> None:
    record = read_record(card.tower_path("image"))
    assert record.emulated
    assert record.ranges() == (((1, 3, 8, 8), (8, 3, 8, 8)),)
    assert (record.inputs[0].shape, record.inputs[0].dtype) == ((-1, 3, 8, 8), "float32")
    assert read_record(card.tower_path("text")).inputs[0].dtype == "int32", "int64 is converted"


@pytest.mark.parametrize("content", [None, b"{", b"{}"])
def test_missing_or_damaged_record_is_corrupt(card: CompiledBundle, content: bytes | None) -> None:
    path = card.path / "image.mm.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with Model(card) as encoder, pytest.raises(BundleCorruptError, match=r"Build record '.*image\.mm\.json'"):
        encoder.encode_images(np.zeros((1, 3, 8, 8), np.float32))


def test_failing_call_is_named_with_what_the_sdk_said(
    card: CompiledBundle, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLIPMLU_EMULATOR_FAULTS", "enqueue:2:oom")
    faults.reset()
    pixels = np.ones((1, 3, 8, 8), np.float32)
    with Model(card) as encoder:
        encoder.encode_images(pixels)
        with pytest.raises(DeviceError, match=r"card' \(image tower\): MagicMind failed: enqueue") as caught:
            encoder.encode_images(pixels)
        assert (caught.value.call, caught.value.kind) == ("enqueue", "out_of_memory")
        assert capfd.readouterr().err == ""  # the error says it already, so the emulated SDK's log does not
        np.testing.assert_allclose(encoder.encode_images(pixels), support.embed_images(pixels), atol=1e-6)


def test_results_that_are_never_finite_are_told_and_not_tried_for_ever(card: CompiledBundle) -> None:
    """The tiny model divides a black picture's embedding by its norm, 0; a graph that overflows does the like."""
    with Model(card, SessionOptions(worker=emulated_worker())) as encoder:
        with pytest.raises(DeviceError, match="NaN or infinity, twice in a row"):
            encoder.encode_images(np.zeros((1, 3, 8, 8), np.float32))
        pixels = np.ones((1, 3, 8, 8), np.float32)
        np.testing.assert_allclose(encoder.encode_images(pixels), support.embed_images(pixels), atol=1e-6)


def test_two_towers_share_one_worker(card: CompiledBundle) -> None:
    backend = get_backend("magicmind-emulated")
    assert isinstance(backend, MagicMindBackend)
    with Model(card, SessionOptions(worker=emulated_worker())) as encoder:
        encoder.encode_images(np.ones((1, 3, 8, 8), np.float32))
        encoder.encode_tokens(np.zeros((1, support.CONTEXT), np.int64))
        assert len(backend._peers._peers) == 1
    assert backend._peers._peers == {}


def test_a_compilation_starts_one_worker(exported: ExportedBundle, tmp_path: Path) -> None:
    """Each imports the SDK: to build either tower, and to check it."""
    python, starts = tmp_path / "python", tmp_path / "starts"
    python.write_text(f'#!/bin/sh\necho started >> {starts}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    session = SessionOptions(worker=dataclasses.replace(emulated_worker(), python=str(python)))
    compile_bundle(exported, tmp_path / "card", CompileOptions(target="emulated-mlu", session=session))
    assert starts.read_text().count("started") == 1


def test_missing_calibration_names_the_input(exported: ExportedBundle, tmp_path: Path) -> None:
    from clipmlu.backends.base import SourceGraph

    backend = get_backend("magicmind-emulated")
    tower = exported.tower("image")
    graph = SourceGraph(name="image", path=exported.tower_path("image"), tower=tower)
    options = graph_options(precision=Precision.QINT8_MIXED_FLOAT16)
    with pytest.raises(CalibrationError, match="needs calibration data for 'pixel_values'"):
        backend.compile_tower(graph, options, tmp_path)
    with pytest.raises(OptionError, match="0 calibration batches"):
        CalibrationData(batches=[])
