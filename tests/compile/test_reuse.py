"""What is there already is taken only for what would be made now: every option that decides it is looked at."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import pytest

import support
from clipmlu.backends.onnxruntime import OnnxRuntimeBackend
from clipmlu.bundle.directory import ExportedBundle
from clipmlu.compile.compiler import CompileOptions, compile_bundle, plan_compilation
from clipmlu.compile.reuse import reusable_compilation
from clipmlu.data.calibration import CalibrationOptions
from clipmlu.specs import Precision

INT8 = CompileOptions(
    target="cpu",
    precision=Precision.QINT8_MIXED_FLOAT32,
    calibration=CalibrationOptions(dataset="demo", samples=8),
    min_agreement=0.0,
)


def reused(exported: ExportedBundle, path: Path, options: CompileOptions) -> bool:
    """Whether it is, and that the reason is said where it is not."""
    notes: list[str] = []
    same = reusable_compilation(exported, path, plan_compilation(options), options, notes.append) is not None
    assert [note.partition(":")[0] for note in notes] == ([] if same else [f"not reusing {path}"])
    return same


@pytest.mark.parametrize(
    ("made", "asked", "same"),
    [
        ({}, {}, True),
        ({"check": False}, {}, False),
        ({"check": False}, {"check": False}, True),
        ({}, {"check": False}, True),
        ({}, {"batch_size": 4}, False),
        ({}, {"uint8_input": True}, False),
        ({}, {"min_cosine": 1.0}, False),
        ({}, {"min_cosine": -1.0}, True),
        ({}, {"calibration_digest": "0" * 64}, False),
        ({}, {"seen_images": ("0" * 64,)}, False),
        ({"seen_images": ("0" * 64,)}, {}, False),
        ({}, {"calibration": CalibrationOptions(dataset="demo", samples=9)}, False),
    ],
)
def test_a_bundle_made_otherwise_is_not_reused(
    exported: ExportedBundle, tmp_path: Path, made: dict[str, Any], asked: dict[str, Any], same: bool
) -> None:
    path = tmp_path / "out"
    compile_bundle(exported, path, dataclasses.replace(INT8, **made))
    assert reused(exported, path, dataclasses.replace(INT8, **asked)) is same


def test_a_bundle_below_the_agreement_that_is_asked_for_now_is_not_reused(
    exported: ExportedBundle, tmp_path: Path
) -> None:
    path = tmp_path / "out"
    bundle = compile_bundle(exported, path, INT8)
    facts = msgspec.to_builtins(msgspec.structs.replace(bundle.compilation, agreement=0.7))
    support.edit_manifest(bundle.path, compilation=facts)
    assert reused(exported, path, dataclasses.replace(INT8, min_agreement=0.7))
    assert not reused(exported, path, dataclasses.replace(INT8, min_agreement=0.71))


def test_other_names_of_the_calibration_classes_are_other_data(exported: ExportedBundle, tmp_path: Path) -> None:
    path, folder = tmp_path / "out", tmp_path / "folder"
    for number, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        support.picture(number).save(folder / name / "a.png")
    plain = CalibrationOptions(dataset=f"imagefolder:{folder}", samples=2)
    renamed = dataclasses.replace(plain, class_names={"cat": "lion", "dog": "wolf"})
    compile_bundle(exported, path, dataclasses.replace(INT8, calibration=plain))
    assert reused(exported, path, dataclasses.replace(INT8, calibration=plain))
    assert not reused(exported, path, dataclasses.replace(INT8, calibration=renamed))
    support.picture(7).save(folder / "cat" / "a.png")
    assert not reused(exported, path, dataclasses.replace(INT8, calibration=plain)), "an image has changed"


def test_a_text_tower_by_another_version_is_not_reused(
    exported: ExportedBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    options = CompileOptions(target="openvino", text_target="cpu")
    compile_bundle(exported, tmp_path / "out", options)
    assert reused(exported, tmp_path / "out", options)
    monkeypatch.setattr(OnnxRuntimeBackend, "packages", ("onnxruntime", "msgspec"))  # as if it were another one
    assert not reused(exported, tmp_path / "out", options)


def test_a_bundle_by_another_sdk_is_not_reused(
    exported: ExportedBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = CompileOptions(target="emulated-mlu")
    bundle = compile_bundle(exported, tmp_path / "out", options)
    assert set(bundle.manifest.tool_versions) >= {"magicmind", "magicmind driver"}
    assert reused(exported, tmp_path / "out", options)
    monkeypatch.setenv("CLIPMLU_EMULATOR_FAULT_LOG", str(tmp_path / "log"))
    assert reused(exported, tmp_path / "out", options), "it decides nothing"
    monkeypatch.setenv("CLIPMLU_EMULATOR_SWITCHES", "refuse_overflow=0")
    assert not reused(exported, tmp_path / "out", options)


def test_a_joint_bundle_is_reused(tmp_path: Path) -> None:
    joint = support.write_exported(tmp_path / "joint", layout="joint")
    options = CompileOptions(target="cpu")
    compile_bundle(joint, tmp_path / "out", options)
    assert reused(joint, tmp_path / "out", options)
