"""The gate at the end of a compilation: which classes are chosen, and what is demanded of that."""

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
from clipmlu.compile import checks
from clipmlu.compile.checks import Thresholds, check_agreement
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.errors import BundleCorruptError, GateError
from clipmlu.specs import Precision

IMAGES = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], np.float32)
TEXTS = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)


def test_a_flip_is_counted_and_a_tie_is_not() -> None:
    flipped = IMAGES.copy()
    flipped[2] = (0.8, 0.6)
    assert checks._same_best_class(IMAGES @ TEXTS.T, flipped @ TEXTS.T) == pytest.approx(2 / 3)
    tied = np.array([[0.70711, 0.7071]], np.float32), np.array([[0.7071, 0.70711]], np.float32)
    assert checks._same_best_class(*(rows @ TEXTS.T for rows in tied)) == 1.0
    alike = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
    assert checks._same_best_class(IMAGES @ alike.T, IMAGES @ alike[::-1].T) == 1.0


def test_agreement_is_in_the_manifest_and_on_images_of_real_statistics(compiled: CompiledBundle) -> None:
    assert compiled.compilation.agreement == 1.0
    image, text = compiled.compilation.parity
    assert (image.batch_size, text.batch_size) == (64, 68), "64 drawn pictures; 64 names and '' in batches of four"


def test_a_trained_model_that_chooses_other_classes_is_refused(
    exported: ExportedBundle, compiled: CompiledBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights demand nothing unless a threshold is given."""
    monkeypatch.setattr(checks, "_same_best_class", lambda _images, _texts: 0.5)
    trained = ExportedBundle(
        exported.path,
        msgspec.structs.replace(
            exported.manifest, model=msgspec.structs.replace(exported.manifest.model, random_seed=None)
        ),
        exported.digest,
    )
    precisions = {"image": Precision.FORCE_FLOAT32, "text": Precision.FORCE_FLOAT32}

    def check(bundle: ExportedBundle, floor: float | None = None) -> float | None:
        from clipmlu.backends import SessionOptions, get_backend

        backend = get_backend("onnxruntime")
        return check_agreement(
            bundle,
            compiled.runnable,
            lambda name: backend.open(compiled.runnable, name, SessionOptions()),
            precisions,  # type: ignore[arg-type]
            None,
            Thresholds(min_agreement=floor),
        ).agreement

    with pytest.raises(GateError, match=r"same class as the exported ones for 0\.500 .*required: 0\.98"):
        check(trained)
    assert check(trained, 0.4) == 0.5
    assert check(exported) == 0.5
    with pytest.raises(GateError, match=r"required: 0\.6"):
        check(exported, 0.6)


def _write_graph(bundle: ExportedBundle, file: str, name: str, value: np.ndarray) -> None:
    path = bundle.path / file
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(value, name))
    onnx.save(model, path)
    files = {**bundle.manifest.files, file: file_record(path)}
    support.edit_manifest(bundle.path, files=msgspec.to_builtins(files))


@pytest.mark.parametrize("target", ["cpu", "emulated-mlu"])
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("scale", np.nan, "with NaN or infinity"),
        ("scale", np.inf, "with NaN or infinity"),
        ("scale", 0.0, "logits from 0 to 0"),
        ("scale", 1e30, "the logit scale 20"),
        ("bias", 500.0, "the logit scale 20"),
        ("bias", np.nan, "with NaN or infinity"),
    ],
)
def test_fused_graph_with_absurd_logits_is_refused(
    target: str, name: str, value: float, words: str, tmp_path: Path
) -> None:
    exported = support.write_exported(tmp_path / "joint", layout="joint")
    _write_graph(exported, "joint.onnx", name, np.array(value, np.float32))
    with pytest.raises(BundleCorruptError, match=rf"^Graph 'joint\.onnx' of bundle '.*joint' gives .*{words}"):
        compile_bundle(exported.path, tmp_path / "out", CompileOptions(target=target))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_tower_that_gives_no_numbers_is_refused_whatever_the_thresholds(value: float, tmp_path: Path) -> None:
    exported = support.write_exported(tmp_path / "tiny")
    weight = support.weights()[0]
    weight[0, 0] = value
    _write_graph(exported, "image.onnx", "weight", weight)
    options = CompileOptions(target="cpu", min_cosine=-1.0, min_agreement=0.0)
    with pytest.raises(BundleCorruptError, match=r"^Graph 'image\.onnx' of bundle .* with NaN or infinity"):
        compile_bundle(exported.path, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()
