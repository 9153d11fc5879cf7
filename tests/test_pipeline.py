"""The whole chain on the demo model: made once, reused while it matches, made again when it does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import support
from clipmlu.bundle.directory import ExportedBundle
from clipmlu.cli import main
from clipmlu.export.exporter import ExportOptions
from clipmlu.pipeline import _reusable_export

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def _needs_export_extra() -> None:
    pytest.importorskip("open_clip", reason="needs the export extra")


def _run(
    capsys: pytest.CaptureFixture[str], output: Path, *arguments: str
) -> tuple[dict[str, str], dict[str, object], str]:
    code = main(["run", "demo", "-o", str(output), "--target", "cpu", "--samples", "48", "--json", *arguments])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    report = json.loads(captured.out)
    return {step["name"]: step["result"] for step in report["steps"]}, report["accuracy"], captured.err


def test_second_run_reuses_and_a_changed_one_makes_again(
    demo_bundle: ExportedBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(demo_bundle.path, tmp_path / "demo" / "exported")
    steps, first, _ = _run(capsys, tmp_path)
    assert (steps["export"], steps["compile"]) == ("reused", "made")
    assert first["images"] == 48
    assert json.loads((tmp_path / "demo" / "report.json").read_text())["accuracy"]["top1"] == first["top1"]

    steps, second, err = _run(capsys, tmp_path)
    assert (steps["export"], steps["compile"]) == ("reused", "reused")
    assert "its content matches" in err
    assert second["top1"] == first["top1"]
    assert second["provenance"] == first["provenance"]

    compiled = tmp_path / "demo" / "cpu-force_float32-1-64"
    damaged = compiled / "image.onnx"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    steps, third, err = _run(capsys, tmp_path)
    assert (steps["export"], steps["compile"]) == ("reused", "made")
    assert "not reusing" in err
    assert third["provenance"] == first["provenance"]

    steps, fourth, _ = _run(capsys, tmp_path, "--static-shape", "--batch-size", "7")
    assert (steps["export"], steps["compile"]) == ("reused", "made")
    assert (fourth["images"], fourth["top1"]) == (48, first["top1"])

    tokenizer = tmp_path / "demo" / "exported" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    steps, _, _ = _run(capsys, tmp_path)
    assert (steps["export"], steps["compile"]) == (
        "made",
        "reused",
    )  # the export is reproducible, so its digest is the same


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"opset": 18}, False),
        ({"max_abs_diff": 1e-9}, False),
        ({"max_abs_diff": 1e-3}, True),
        ({"min_cosine": 1.0}, False),
        ({"external_data_bytes": 1000}, False),
        ({"layout": "joint"}, False),
        ({"tokenizer": "of its own"}, False),
    ],
)
def test_an_export_made_otherwise_is_not_reused(
    demo_bundle: ExportedBundle, changes: dict[str, Any], same: bool
) -> None:
    given = {**changes, "tokenizer": demo_bundle.tokenizer_path} if "tokenizer" in changes else changes
    if "min_cosine" in changes:
        assert min(record.min_cosine or 0.0 for record in demo_bundle.manifest.export.parity) < 1.0
    notes: list[str] = []
    assert (_reusable_export("demo", demo_bundle.path, ExportOptions(**given), notes.append) is not None) is same
    assert any("other options" in note for note in notes) is not same


@pytest.mark.parametrize("tool", ["torch", "open_clip_torch", "onnxscript"])
def test_an_export_by_another_version_is_not_reused(demo_bundle: ExportedBundle, tmp_path: Path, tool: str) -> None:
    other = shutil.copytree(demo_bundle.path, tmp_path / "exported")
    support.edit_manifest(other, tool_versions={**demo_bundle.manifest.tool_versions, tool: "0.0.1"})
    assert _reusable_export("demo", other, ExportOptions(), lambda _note: None) is None


def test_mistakes_are_found_before_the_export_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["--dataset", "cifar1000"],
        ["--target", "gpu"],
        ["--split", "val"],
        ["--batch-size", "9", "--max-batch", "8"],
        ["--dataset", "cifar100", "--offline"],
    ):
        assert main(["run", "demo", "-o", str(tmp_path / "out"), *arguments]) in (1, 2)
        assert not (tmp_path / "out").exists()
    assert "exporting" not in capsys.readouterr().err
