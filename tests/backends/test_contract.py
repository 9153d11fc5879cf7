"""What every backend must do, one suite for all of them.

A target joins by being listed in ``TARGETS``; the tiny model's towers in NumPy are the reference.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import support
from clipmlu.backends import TARGETS, SessionOptions, backend_for_target, get_backend
from clipmlu.bundle import CompiledBundle, ExportedBundle
from clipmlu.classify.encoder import Encoder, load
from clipmlu.compile.compiler import CompileOptions, compile_bundle
from clipmlu.errors import (
    BackendUnavailableError,
    BundleCorruptError,
    OptionError,
    SessionError,
    ShapeError,
    UnknownNameError,
)

TOLERANCE = 1e-6


@pytest.fixture(params=sorted(TARGETS))
def target(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    availability = get_backend(TARGETS[name]).probe()
    if not availability.ok:
        pytest.skip(f"target {name} cannot be used here: {availability.reason}")
    return name


@pytest.fixture(params=["dynamic", "static"])
def bundle(request: pytest.FixtureRequest, target: str, exported: ExportedBundle, tmp_path: Path) -> CompiledBundle:
    options = CompileOptions(target=target, batch_size=4, dynamic_shape=request.param == "dynamic")
    return compile_bundle(exported, tmp_path / "compiled", options)


def _pixels(rows: int, seed: int = 1) -> support.FloatArray:
    return np.random.default_rng(seed).standard_normal((rows, 3, support.SIDE, support.SIDE), dtype=np.float32)


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 5, 13])
def test_image_embeddings_equal_the_reference_for_any_number_of_rows(bundle: CompiledBundle, rows: int) -> None:
    pixels = _pixels(rows)
    with Encoder(bundle) as encoder:
        embeddings = encoder.encode_images(pixels)
    assert embeddings.dtype == np.float32
    assert embeddings.shape == (rows, support.DIM)
    np.testing.assert_allclose(embeddings, support.embed_images(pixels), atol=TOLERANCE)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_text_embeddings_equal_the_reference(bundle: CompiledBundle, rows: int) -> None:
    ids = np.random.default_rng(2).integers(0, support.VOCAB, (rows, support.CONTEXT))
    with Encoder(bundle) as encoder:
        embeddings = encoder.encode_tokens(ids)
    np.testing.assert_allclose(embeddings, support.embed_tokens(ids).reshape(rows, support.DIM), atol=TOLERANCE)


def test_batches_in_flight_finish_in_order_and_are_owned_by_the_caller(bundle: CompiledBundle) -> None:
    batches = [_pixels(4, seed) for seed in range(6)]
    with Encoder(bundle) as encoder:
        pending = [encoder.submit_images(batch) for batch in batches]
        results = [each.result() for each in pending]
    for batch, result in zip(batches, results, strict=True):
        np.testing.assert_allclose(result, support.embed_images(batch), atol=TOLERANCE)
        result[:] = 0  # writable, and no view of what the next batch will need
    np.testing.assert_allclose(pending[0].result(), results[0])


def test_static_bundle_trims_its_padding_and_declares_its_batch(
    target: str, exported: ExportedBundle, tmp_path: Path
) -> None:
    compiled = compile_bundle(
        exported, tmp_path / "static", CompileOptions(target=target, batch_size=4, dynamic_shape=False)
    )
    with get_backend(compiled.compilation.backend).open(compiled, "image", SessionOptions()) as session:
        assert session.inputs["pixel_values"].shape == (4, 3, support.SIDE, support.SIDE)
        with pytest.raises(
            ShapeError, match=r"takes 'pixel_values' as float32 \(4, 3, 8, 8\); got float32 \(3, 3, 8, 8\)"
        ):
            session.run({"pixel_values": _pixels(3)})
    with load(compiled.path) as encoder, pytest.raises(ShapeError, match="static batch size 4"):
        encoder.check_batch_size(3)


def test_dynamic_bundle_refuses_what_is_out_of_range(target: str, exported: ExportedBundle, tmp_path: Path) -> None:
    compiled = compile_bundle(exported, tmp_path / "dynamic", CompileOptions(target=target, batch_size=4, max_batch=6))
    with load(compiled.path) as encoder:
        assert encoder.check_batch_size(6) == 6
        with pytest.raises(ShapeError, match=r"Batch of 7 is outside 1\.\.6.*--max-batch"):
            encoder.check_batch_size(7)
        with pytest.raises(ShapeError, match=r"Batch of 7 is outside 1\.\.6"):
            encoder.submit_images(_pixels(7))
        with pytest.raises(ShapeError, match=r"Batch of 0 is outside 1\.\.6"):
            encoder.submit_images(_pixels(0))
        with pytest.raises(OptionError, match="batch size is 0"):
            encoder.check_batch_size(0)


@pytest.mark.parametrize(
    "feeds",
    [
        {"pixel_values": np.zeros((1, 3, 8, 8), np.float64)},
        {"pixel_values": np.zeros((1, 3, 8, 9), np.float32)},
        {"pixel_values": np.zeros((3, 8, 8), np.float32)},
        {"wrong": np.zeros((1, 3, 8, 8), np.float32)},
        {},
    ],
)
def test_feeds_that_do_not_fit_are_refused_before_they_run(
    compiled: CompiledBundle, feeds: dict[str, support.FloatArray]
) -> None:
    backend = get_backend(compiled.compilation.backend)
    with backend.open(compiled, "image", SessionOptions()) as session, pytest.raises(ShapeError, match="takes"):
        session.run(feeds)


def test_token_outside_the_vocabulary_is_a_session_error(bundle: CompiledBundle) -> None:
    ids = np.full((1, support.CONTEXT), support.VOCAB + 5, np.int64)
    with Encoder(bundle) as encoder, pytest.raises(SessionError, match="text tower"):
        encoder.encode_tokens(ids)


def test_graph_that_the_runtime_cannot_read_is_corrupt(compiled: CompiledBundle) -> None:
    (compiled.path / "image.onnx").write_bytes(b"not a graph")
    with Encoder(compiled) as encoder, pytest.raises(BundleCorruptError, match=r"cannot load '.*image\.onnx'"):
        encoder.encode_images(_pixels(1))


def test_unknown_target_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown target 'gpu'.*cpu"):
        backend_for_target("gpu")


def test_absent_runtime_is_reported_and_never_replaced(
    monkeypatch: pytest.MonkeyPatch, compiled: CompiledBundle
) -> None:
    monkeypatch.setattr("clipmlu.backends.onnxruntime.util.find_spec", lambda _name: None)
    with pytest.raises(
        BackendUnavailableError, match=r"Target 'cpu' cannot be used here .*'onnxruntime' is not installed"
    ):
        backend_for_target("cpu")
    with load(compiled.path) as encoder, pytest.raises(BackendUnavailableError, match="runs on onnxruntime"):
        encoder.encode_images(_pixels(1))


def test_negative_thread_count_is_refused() -> None:
    with pytest.raises(OptionError, match="threads is -1"):
        SessionOptions(threads=-1)
