"""What is no number is an error that says where: it never becomes an embedding, a prediction or JSON."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import support
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.bundle.verify import file_record
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.errors import BundleCorruptError, InputError, SessionError
from clipmlu.model import load

BAD = [np.nan, np.inf, -np.inf]


def _spoil(bundle: Path, graph: str, weight: str, value: float | support.FloatArray) -> None:
    """Write a value, or an array, into a weight, and make the digests right."""
    model = onnx.load(bundle / f"{graph}.onnx")
    (tensor,) = (each for each in model.graph.initializer if each.name == weight)
    array = numpy_helper.to_array(tensor).copy()
    array[...] = value
    tensor.CopyFrom(numpy_helper.from_array(array, weight))
    onnx.save(model, bundle / f"{graph}.onnx")
    manifest = msgspec.json.decode((bundle / "manifest.json").read_bytes())
    files = {**manifest["files"], f"{graph}.onnx": msgspec.to_builtins(file_record(bundle / f"{graph}.onnx"))}
    support.edit_manifest(bundle, files=files)


@pytest.mark.parametrize("value", [*BAD, 0.0])
def test_image_tower_that_gives_no_unit_vectors_is_named(compiled: CompiledBundle, value: float) -> None:
    _spoil(compiled.path, "image", "weight", value)
    with load(compiled.path) as encoder:
        for run in (
            lambda: encoder.embed_images(support.picture(0)),
            lambda: encoder.encode_images(np.ones((3, 3, 8, 8), np.float32)),
            lambda: encoder.classifier(["cat", "dog"], cache=False).predict(support.picture(0)),
        ):
            with pytest.raises(
                SessionError, match=r"Bundle '.*' \(image tower\) gives no unit vector .* first one at 0"
            ):
                run()


def test_the_first_row_that_is_none_is_named(compiled: CompiledBundle) -> None:
    with load(compiled.path) as encoder:
        pixels = np.stack([support.preprocess(support.picture(seed)) for seed in range(4)])
        assert np.isfinite(encoder.encode_images(pixels)).all()
        pixels[2] = 0.0  # the mean of every quarter is 0, and so is the vector
        with pytest.raises(SessionError, match="for 1 of 4 inputs of a batch, the first one at 2"):
            encoder.encode_images(pixels)


@pytest.mark.parametrize("value", BAD)
def test_text_tower_that_gives_no_unit_vectors_is_named(compiled: CompiledBundle, value: float) -> None:
    _spoil(compiled.path, "text", "table", value)
    with load(compiled.path) as encoder:
        for run in (lambda: encoder.embed_texts(["a"]), lambda: encoder.classifier(["cat"])):
            with pytest.raises(SessionError, match=r"\(text tower\) gives no unit vector"):
                run()


@pytest.mark.parametrize("value", BAD)
def test_pixels_that_are_no_numbers_are_refused(compiled: CompiledBundle, value: float) -> None:
    pixels = np.ones((3, 3, 8, 8), np.float32)
    pixels[1, 2, 3, 4] = value
    with load(compiled.path) as encoder, pytest.raises(InputError, match=r"pixel_values\[1\] holds NaN or infinity"):
        encoder.encode_images(pixels)


@pytest.mark.parametrize("value", BAD)
def test_model_without_numbers_is_not_compiled(exported: ExportedBundle, tmp_path: Path, value: float) -> None:
    _spoil(exported.path, "image", "weight", value)
    with pytest.raises(BundleCorruptError, match=r"Graph 'image\.onnx'.* gives 'image_embeds' with NaN or infinity"):
        compile_bundle(exported.path, tmp_path / "out", CompileOptions(target="cpu"))
    assert not (tmp_path / "out").exists()


def test_prompts_that_cancel_out_are_named(compiled: CompiledBundle) -> None:
    templates = ["a {}", "no {}"]
    with load(compiled.path) as encoder:
        a, n, c = encoder.tokenizer("anc")[0, 1:4]  # after the token of the start
    table = np.zeros((support.VOCAB, support.DIM), np.float32)
    table[[a, n, c], 0] = (1, -1, 3)  # a row of the text tower is the sum over its tokens, scaled to 1
    _spoil(compiled.path, "text", "table", table)
    with load(compiled.path) as encoder:
        embeddings = encoder.embed_texts(["a dog", "no dog", "a cat", "no cat"])
        np.testing.assert_array_equal(embeddings, np.outer([1, -1, 1, 1], np.eye(1, support.DIM)))
        with pytest.raises(InputError, match="prompts of class 'dog' have embeddings that cancel"):
            encoder.classifier(["cat", "dog"], templates, cache=False)
