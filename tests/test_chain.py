"""The whole chain on the demo model: made once, reused while it matches, made again when it does not."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import support
from clipmlu.bundle.directory import ExportedBundle, open_exported
from clipmlu.chain import RunOptions, export_key, run_chain
from clipmlu.cli import main
from clipmlu.compile.plan import CompileOptions
from clipmlu.data.datasets.choice import DatasetChoice
from clipmlu.export.exporter import ExportOptions
from clipmlu.measure.accuracy.evaluate import EvalOptions
from clipmlu.tune.resume import ResultStore
from support import put_export

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
    demo_bundle: ExportedBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_export(demo_bundle, tmp_path / "demo")
    steps, first, made = _run(capsys, tmp_path)
    assert f"Next: clipmlu bench {tmp_path}" in made
    assert (steps["export"], steps["compile"]) == ("reused", "made")
    assert first["images"] == 48
    assert json.loads((tmp_path / "demo" / "report.json").read_text())["accuracy"]["top1"] == first["top1"]
    page = tmp_path / "demo" / "report.html"
    assert f"report: {page} (" in made
    assert f"{first['top1']:.4f}" in page.read_text(encoding="utf-8")
    assert f"clipmlu run demo -o {tmp_path}" in page.with_suffix(".md").read_text(encoding="utf-8")

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

    monkeypatch.setitem(sys.modules, "jinja2", None)
    page.unlink()
    steps, fourth, err = _run(capsys, tmp_path, "--static-shape", "--batch-size", "7")
    assert "no HTML report: Writing a report needs 'jinja2', which is not installed" in err
    assert "clipmlu[report]" in err
    assert not page.exists()
    assert (steps["export"], steps["compile"]) == ("reused", "made")
    assert (fourth["images"], fourth["top1"]) == (48, first["top1"])


@pytest.mark.slow
def test_a_damaged_export_is_made_again_and_has_the_same_digest(
    demo_bundle: ExportedBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_export(demo_bundle, tmp_path / "demo")
    _run(capsys, tmp_path)
    damage_tokenizer(tmp_path)
    steps, _, _ = _run(capsys, tmp_path)
    assert (steps["export"], steps["compile"]) == ("made", "reused")


def damage_tokenizer(folder: Path) -> None:
    tokenizer = folder / "demo" / "exported" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")


class _StopError(Exception):
    pass


def notes_before_the_first_step(output: Path, model: str = "demo", **changes: Any) -> list[str]:
    """Notes of a run up to the first bundle that is made."""
    notes: list[str] = []

    def stop(note: str) -> None:
        notes.append(note)
        if note.startswith(("exporting", "compiling")):
            raise _StopError

    with pytest.raises(_StopError):
        run_chain(model, output, chain_options(**changes), on_note=stop)
    return notes


def chain_options(**changes: Any) -> RunOptions:
    parts = {
        "export": ExportOptions(overwrite=True),
        "compile": CompileOptions(target="cpu", overwrite=True),
        "evaluate": EvalOptions(samples=12),
    }
    changed = {name: dataclasses.replace(part, **changes.get(name, {})) for name, part in parts.items()}
    return RunOptions(dataset=DatasetChoice(name="demo", size=12), **changed)  # type: ignore[arg-type]


CHANGED: dict[str, Any] = {
    "random_weights": True,
    "seed": 1,
    "layout": "joint",
    "opset": 18,
    "tokenizer": "",
    "max_abs_diff": 1e-3,
    "min_cosine": 0.9,
    "external_data_bytes": 1000,
    "pretrained": "tag",
}
NO_RESULT = {"overwrite", "offline", "cache_dir"}


def test_every_option_of_the_export_decides_it() -> None:
    names = {field.name for field in dataclasses.fields(ExportOptions)} - NO_RESULT
    assert export_key("demo", ExportOptions()).keys() == {
        "model",
        "source_files",
        *(f"export.{name}" for name in names),
    }
    assert names == CHANGED.keys(), "each is changed below"


@pytest.mark.parametrize("name", sorted(CHANGED.keys() - {"pretrained", "random_weights", "layout"}))
def test_an_export_made_otherwise_is_not_reused(demo_bundle: ExportedBundle, tmp_path: Path, name: str) -> None:
    put_export(demo_bundle, tmp_path / "demo")
    assert notes_before_the_first_step(tmp_path)[0] == f"reusing {tmp_path / 'demo' / 'exported'}: its content matches"
    value = demo_bundle.tokenizer_path if name == "tokenizer" else CHANGED[name]
    notes = notes_before_the_first_step(tmp_path, export={name: value})
    reason, _, parts = notes[0].partition(" it was made with other ")
    assert reason == f"not reusing {tmp_path / 'demo' / 'results' / 'exported.json'}:"
    assert f"export.{name.replace('_', ' ')}" in parts.split(", ")
    assert notes[-1].startswith("exporting demo")


@pytest.mark.parametrize(
    ("name", "model"), [("random_weights", "demo"), ("pretrained", "ViT-B-32"), ("layout", "demo")]
)
def test_an_export_of_another_name_has_another_folder(tmp_path: Path, name: str, model: str) -> None:
    given = {name: "laion2b_s34b_b79k" if name == "pretrained" else CHANGED[name]}
    keys = {name: export_key(model, ExportOptions(**given))[f"export.{name}"]}
    assert keys[name] != export_key("demo", ExportOptions())[f"export.{name}"]
    notes = notes_before_the_first_step(tmp_path, model, export=given)
    assert notes[0].startswith(f"exporting {model} to {tmp_path / model}-")


def test_a_damaged_export_is_not_reused(demo_bundle: ExportedBundle, tmp_path: Path) -> None:
    put_export(demo_bundle, tmp_path / "demo")
    damage_tokenizer(tmp_path)
    notes = notes_before_the_first_step(tmp_path)
    assert notes[0].startswith("not reusing ")
    assert "tokenizer.json" in notes[0]
    assert notes[-1].startswith("exporting demo")


@pytest.mark.parametrize("tool", ["torch", "open_clip_torch", "onnxscript"])
def test_an_export_by_another_version_is_not_reused(demo_bundle: ExportedBundle, tmp_path: Path, tool: str) -> None:
    store = put_export(demo_bundle, tmp_path / "demo")
    other = tmp_path / "demo" / "exported"
    support.edit_manifest(other, tool_versions={**demo_bundle.manifest.tool_versions, tool: "0.0.1"})
    store.save("exported", export_key("demo", ExportOptions()), open_exported(other).digest)
    notes = notes_before_the_first_step(tmp_path)
    assert notes[0].startswith(f"not reusing {other}: it was exported by other versions")
    assert notes[-1].startswith("exporting demo")


def test_a_source_that_changed_is_another_source(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model("vit"), tmp_path / "model")
    key = export_key(f"local-dir:{model}", ExportOptions())
    config = model / "open_clip_config.json"
    config.write_text(config.read_text() + " ")
    changed = export_key(f"local-dir:{model}", ExportOptions())
    assert [part for part in key if key[part] != changed[part]] == ["source_files"]


def test_a_run_waits_for_another_one_of_the_same_model(demo_bundle: ExportedBundle, tmp_path: Path) -> None:
    put_export(demo_bundle, tmp_path / "demo")
    notes, take_note = support.hold_until_waited_for(tmp_path / "demo" / "results")
    run_chain("demo", tmp_path, chain_options(), on_note=take_note)
    assert "waiting for another process" in notes[0]


def test_an_interrupted_run_goes_on(demo_bundle: ExportedBundle, tmp_path: Path) -> None:
    for name in ("out", "whole"):
        put_export(demo_bundle, tmp_path / name / "demo")

    def stop(name: str) -> None:
        raise _StopError(name)

    with pytest.raises(_StopError, match="cpu-force_float32-1-64"):
        run_chain("demo", tmp_path / "out", chain_options(), on_result=stop)
    assert not (tmp_path / "out" / "demo" / "report.json").exists()
    stored: list[str] = []
    report = run_chain("demo", tmp_path / "out", chain_options(), on_result=stored.append)
    assert stored == []
    assert [step.result for step in report.steps[:2]] == ["reused", "reused"]
    whole = run_chain("demo", tmp_path / "whole", chain_options())
    times = {"elapsed_s": 1.0, "images_per_second": 1.0}
    assert msgspec.structs.replace(report.accuracy, **times) == msgspec.structs.replace(whole.accuracy, **times)


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
    # The name of the model is wrong before a data set is downloaded for it.
    assert main(["run", "nosuch", "-o", str(tmp_path / "out"), "--dataset", "cifar100", "--offline"]) == 2
    assert "exporting" not in capsys.readouterr().err


def test_what_an_export_assumed_is_a_warning(
    demo_bundle: ExportedBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_export(demo_bundle, tmp_path / "demo")
    manifest = tmp_path / "demo" / "exported" / "manifest.json"
    described = json.loads(manifest.read_bytes())
    described["export"]["notes"] = ["the preprocessing is assumed"]
    manifest.write_text(json.dumps(described))
    store = ResultStore(tmp_path / "demo" / "results", lambda _note: None)
    store.save("exported", export_key("demo", ExportOptions()), open_exported(manifest.parent).digest)
    err = _run(capsys, tmp_path, "--quiet")[2]
    assert err == "the preprocessing is assumed\n"


def test_a_compiled_demo_model_leads_to_its_samples(
    demo_bundle: ExportedBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compile", str(demo_bundle.path), "--target", "cpu", "--no-check", "-o", "fast"]) == 0
    err = capsys.readouterr().err
    commands = [line.split()[1:] for line in err.partition("Next: ")[2].splitlines()]
    assert commands == [
        ["eval", "fast", "--dataset", "demo"],
        ["bench", "fast"],
        ["datasets", "--write-samples", "."],
    ]
