"""What every backend must do, one suite for all of them: the CPU runtime, the emulated SDK in this process and in a worker,
and the real SDK where there is one.

The tiny model's towers in NumPy are the reference.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fake_packages
import support
from clipmlu.backends import (
    AUTO_ORDER,
    BACKENDS,
    TARGETS,
    SessionOptions,
    backend_for_target,
    choose_target,
    get_backend,
)
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle, open_compiled
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.embed.encoder import Encoder
from clipmlu.errors import (
    BackendUnavailableError,
    BundleCorruptError,
    InputError,
    OptionError,
    ShapeError,
    UnknownNameError,
)
from clipmlu.magicmind.backend import MagicMindBackend, emulated_worker
from clipmlu.model import Model, load
from clipmlu.specs import Precision

TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class Place:
    """A target, and where its runtime is."""

    target: str
    session: Callable[[], SessionOptions] = SessionOptions

    def encoder(self, bundle: CompiledBundle) -> Encoder:
        return Model(bundle, self.session())

    def connected(self) -> contextlib.AbstractContextManager[object]:
        """A block in which one worker serves all tests."""
        return get_backend(TARGETS[self.target]).connected(self.session())

    def compile(self, exported: ExportedBundle, path: Path, **options: Any) -> CompiledBundle:
        return compile_bundle(exported, path, CompileOptions(target=self.target, session=self.session(), **options))


@functools.cache
def _worker() -> SessionOptions:
    """The same worker for all tests: its environment is that of the first."""
    return SessionOptions(worker=emulated_worker())


PLACES = {
    "cpu": Place("cpu"),
    "openvino": Place("openvino"),
    "emulator": Place("emulated-mlu"),
    "emulator-in-worker": Place("emulated-mlu", _worker),
    "card": Place("mlu"),
}


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.mlu if name == "card" else ()) for name in PLACES]
)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    place = PLACES[request.param]
    availability = get_backend(TARGETS[place.target]).probe()
    if not availability.ok:
        pytest.skip(f"target {place.target} cannot be used here: {availability.reason}")
    with place.connected():
        yield place


@pytest.fixture(scope="module")
def compiled_for(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], CompiledBundle]:
    """``compiled_for("dynamic" or "static")``: the tiny model with batches of 4 or 1..6; made once, not to be changed."""
    folder = tmp_path_factory.mktemp("contract")
    exported = support.write_exported(folder / "exported")

    @functools.cache
    def build(shape: str) -> CompiledBundle:
        given = {"max_batch": 6} if shape == "dynamic" else {"dynamic_shape": False}
        return place.compile(exported, folder / shape, batch_size=4, **given)

    return build


@pytest.fixture(params=["dynamic", "static"])
def bundle(request: pytest.FixtureRequest, compiled_for: Callable[[str], CompiledBundle]) -> CompiledBundle:
    return compiled_for(request.param)


@pytest.fixture
def dynamic(compiled_for: Callable[[str], CompiledBundle]) -> CompiledBundle:
    return compiled_for("dynamic")


@pytest.fixture
def static(compiled_for: Callable[[str], CompiledBundle]) -> CompiledBundle:
    return compiled_for("static")


def test_every_target_is_in_the_suite() -> None:
    assert {place.target for place in PLACES.values()} == set(TARGETS)
    assert set(TARGETS.values()) == set(BACKENDS)
    assert "emulated-mlu" not in AUTO_ORDER


def _pixels(rows: int, seed: int = 1) -> support.FloatArray:
    return np.random.default_rng(seed).standard_normal((rows, 3, support.SIDE, support.SIDE), dtype=np.float32)


def test_embeddings_equal_the_reference_for_any_number_of_rows(place: Place, bundle: CompiledBundle) -> None:
    with place.encoder(bundle) as encoder:
        for rows in (0, 1, 3, 4, 5, 13):
            pixels = _pixels(rows)
            embeddings = encoder.encode_images(pixels)
            assert embeddings.dtype == np.float32
            assert embeddings.shape == (rows, support.DIM)
            np.testing.assert_allclose(embeddings, support.embed_images(pixels), atol=TOLERANCE)
        for rows in (0, 1, 5):
            ids = np.random.default_rng(2).integers(0, encoder.tokenizer.largest_id + 1, (rows, support.CONTEXT))
            embeddings = encoder.encode_tokens(ids)
            assert embeddings.shape == (rows, support.DIM)
            np.testing.assert_allclose(embeddings, support.embed_tokens(ids).reshape(rows, support.DIM), atol=TOLERANCE)


@pytest.mark.parametrize("shape", ["dynamic", "static"])
def test_no_rows_need_no_session(place: Place, compiled_for: Callable[[str], CompiledBundle], shape: str) -> None:
    with place.encoder(compiled_for(shape)) as encoder:
        assert encoder.encode_images(_pixels(0)).shape == (0, support.DIM)
        assert encoder.encode_tokens(np.zeros((0, support.CONTEXT), np.int64)).shape == (0, support.DIM)


def test_batches_in_flight_finish_in_order_and_are_owned_by_the_caller(place: Place, bundle: CompiledBundle) -> None:
    batches = [_pixels(4, seed) for seed in range(6)]
    with place.encoder(bundle) as encoder:
        pending = [encoder.submit_images(batch) for batch in batches]
        results = [each.result() for each in pending]
    for batch, result in zip(batches, results, strict=True):
        np.testing.assert_allclose(result, support.embed_images(batch), atol=TOLERANCE)
        result[:] = 0  # writable, and no view of what the next batch will need
    np.testing.assert_allclose(pending[0].result(), results[0])


def test_static_bundle_declares_its_batch(place: Place, static: CompiledBundle) -> None:
    with get_backend(static.compilation.backend).open(static.runnable, "image", place.session()) as session:
        assert session.inputs["pixel_values"].shape == (4, 3, support.SIDE, support.SIDE)
        with pytest.raises(
            ShapeError, match=r"takes 'pixel_values' as float32 \(4, 3, 8, 8\); got float32 \(3, 3, 8, 8\)"
        ):
            session.run({"pixel_values": _pixels(3)})
    with place.encoder(static) as encoder, pytest.raises(ShapeError, match="static batch size 4"):
        encoder.check_batch_size(3)


def test_dynamic_bundle_refuses_what_is_out_of_range(place: Place, dynamic: CompiledBundle) -> None:
    with place.encoder(dynamic) as encoder:
        assert encoder.check_batch_size(6) == 6
        with pytest.raises(ShapeError, match=r"Batch of 7 is outside 1\.\.6.*--max-batch"):
            encoder.check_batch_size(7)
        with pytest.raises(ShapeError, match=r"Batch of 7 is outside 1\.\.6"):
            encoder.submit_images(_pixels(7))
        with pytest.raises(ShapeError, match=r"Batch of 0 is outside 1\.\.6"):
            encoder.submit_images(_pixels(0))
        with pytest.raises(OptionError, match="batch size is 0"):
            encoder.check_batch_size(0)


def test_feeds_that_do_not_fit_are_refused_before_they_run(place: Place, dynamic: CompiledBundle) -> None:
    with get_backend(dynamic.compilation.backend).open(dynamic.runnable, "image", place.session()) as session:
        for feeds in (
            {"pixel_values": np.zeros((1, 3, 8, 8), np.float64)},
            {"pixel_values": np.zeros((1, 3, 8, 9), np.float32)},
            {"pixel_values": np.zeros((3, 8, 8), np.float32)},
            {"wrong": np.zeros((1, 3, 8, 8), np.float32)},
            {},
        ):
            with pytest.raises(ShapeError, match="takes"):
                session.run(feeds)


def test_uint8_pixels_are_normalised_in_the_graph(place: Place, exported: ExportedBundle, tmp_path: Path) -> None:
    clip = support.with_clips_normalisation(exported)
    pixels = np.random.default_rng(3).integers(0, 256, (13, 3, support.SIDE, support.SIDE), np.uint8)
    expected = support.embed_images(support.normalise_as_clip(pixels))
    for dynamic in (True, False):
        given = {"batch_size": 4, "dynamic_shape": dynamic, "uint8_input": True, "check": dynamic}
        compiled = place.compile(clip, tmp_path / f"uint8-{dynamic}", **given)
        assert compiled.tower("image").inputs[0].dtype == "uint8"
        with place.encoder(compiled) as encoder:
            assert encoder.pixel_dtype == np.uint8
            for rows in (1, 4, 13):
                found = encoder.encode_images(pixels[:rows])
                np.testing.assert_allclose(found, expected[:rows], atol=1e-5)
            with pytest.raises(ShapeError, match=r"takes 'pixel_values' as uint8 \((batch|4), 3, 8, 8\); got float32"):
                encoder.encode_images(_pixels(1))


def test_token_outside_the_vocabulary_is_refused(place: Place, bundle: CompiledBundle) -> None:
    ids = np.full((1, support.CONTEXT), support.VOCAB + 5, np.int64)
    with place.encoder(bundle) as encoder, pytest.raises(InputError, match="holds the token 305"):
        encoder.encode_tokens(ids)


def test_graph_that_the_runtime_cannot_read_is_corrupt(place: Place, dynamic: CompiledBundle, tmp_path: Path) -> None:
    compiled = open_compiled(shutil.copytree(dynamic.path, tmp_path / "compiled"))
    compiled.tower_path("image").write_bytes(b"not a graph")
    with place.encoder(compiled) as encoder, pytest.raises(BundleCorruptError, match=r"cannot load '.*image\.\w+'"):
        encoder.encode_images(_pixels(1))


def test_closing_twice_is_closing_once(place: Place, dynamic: CompiledBundle) -> None:
    session = get_backend(dynamic.compilation.backend).open(dynamic.runnable, "image", place.session())
    session.run({"pixel_values": _pixels(2)})
    session.close()
    session.close()


def test_bundle_says_whether_it_is_emulated(bundle: CompiledBundle, place: Place) -> None:
    assert bundle.compilation.emulated is (place.target == "emulated-mlu")
    assert ("emulated" in repr(bundle)) is (place.target == "emulated-mlu")


def test_unknown_target_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown target 'gpu'.*cpu"):
        backend_for_target("gpu")


def test_absent_runtime_is_reported_and_never_replaced(
    monkeypatch: pytest.MonkeyPatch, compiled: CompiledBundle
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        BackendUnavailableError, match=r"Target 'cpu' cannot be used here .*'onnxruntime' is not installed"
    ):
        backend_for_target("cpu")
    with load(compiled.path) as encoder, pytest.raises(BackendUnavailableError, match="runs on onnxruntime"):
        encoder.encode_images(_pixels(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"threads": -1}, "threads is -1"), ({"device": -1}, "device is -1"), ({"in_flight": 0}, "in flight is 0")],
)
def test_session_options_out_of_range_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SessionOptions(**options)


def test_device_of_a_bundle_for_the_cpu_is_refused(compiled: CompiledBundle) -> None:
    with Model(compiled, SessionOptions(device=1)) as encoder, pytest.raises(OptionError, match="runs on the CPU"):
        encoder.encode_images(_pixels(1))


def _devices_in_current_folder() -> MagicMindBackend:
    return MagicMindBackend(devices=Path())


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The vendor's SDK is importable, and the driver's device files are in this folder."""
    fake_packages.install_sdk(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(BACKENDS, "magicmind", (__name__, "_devices_in_current_folder"))
    get_backend.cache_clear()
    yield tmp_path
    get_backend.cache_clear()


def test_auto_says_what_it_took_and_why_not_an_earlier_one() -> None:
    name, _backend, why = choose_target("auto", Precision.FORCE_FLOAT32)
    not_mlu = "not mlu: the package 'magicmind' is not importable here and no worker is named"
    assert why == f"target auto: {name} for force_float32; {not_mlu}"
    assert choose_target("cpu", Precision.FORCE_FLOAT32)[2] == ""


def test_auto_takes_a_card_only_where_there_is_one(devices: Path) -> None:
    assert backend_for_target("auto")[0] in ("openvino", "cpu")
    assert backend_for_target("mlu")[0] == "mlu", "asked for by name, to build without a card"
    (devices / "cambricon_dev0").touch()
    assert backend_for_target("auto")[0] == "mlu"


def test_emulated_sdk_on_the_path_is_not_taken_for_the_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from clipmlu.magicmind.emulator import site_path

    monkeypatch.syspath_prepend(str(site_path()))
    with pytest.raises(BackendUnavailableError, match="'magicmind' is not importable here"):
        backend_for_target("mlu")
    assert backend_for_target("auto")[0] in ("openvino", "cpu")
