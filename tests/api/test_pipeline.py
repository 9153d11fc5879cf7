"""``clipmlu.pipeline``: from a name or a bundle to a classifier, with all bundles in the cache directory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

import clipmlu
from clipmlu.api.pipeline import kept_name
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.bundle.verify import file_record
from clipmlu.errors import BundleError, BundleNotFoundError, MissingDependencyError, OptionError
from clipmlu.export import catalog
from clipmlu.export.options import ExportOptions
from support import edit_manifest, hold_until_waited_for, keep_export, write_exported

LABELS = ["a red circle", "a blue square"]


@pytest.fixture
def cache(demo_bundle: ExportedBundle, tmp_path: Path) -> Path:
    """A cache that holds the export of the demo model."""
    keep_export(demo_bundle, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "open_clip"):
        monkeypatch.setitem(sys.modules, name, None)


def red_circle() -> np.ndarray:
    pixels = np.full((64, 64, 3), 255, np.uint8)
    rows, columns = np.mgrid[:64, :64]
    pixels[(rows - 32) ** 2 + (columns - 32) ** 2 < 20**2] = (220, 30, 30)
    return pixels


@pytest.mark.torch
@pytest.mark.usefixtures("no_torch")
def test_a_name_gives_a_classifier_that_is_called_and_the_second_time_nothing_is_made(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with clipmlu.pipeline("demo", target="cpu", cache_dir=cache) as model:
        assert isinstance(model, clipmlu.Model)
        assert (model.bundle.compilation.target, str(model.bundle.manifest.model)) == ("cpu", "demo")
    first = capsys.readouterr().err.splitlines()
    classifier = clipmlu.pipeline("demo", LABELS, target="cpu", cache_dir=str(cache))
    second = capsys.readouterr().err.splitlines()
    with classifier.encoder:
        assert classifier(red_circle()).class_name == "a red circle"
        assert classifier([red_circle()]) == classifier.predict([red_circle()])
    assert [line.split()[:2] for line in first] == [["clipmlu:", "reusing"], ["clipmlu:", "compiling"]]
    assert [line.split()[:2] for line in second] == [["clipmlu:", "reusing"], ["clipmlu:", "reusing"]]


@pytest.mark.torch
def test_every_option_that_decides_the_result_has_a_bundle_of_its_own(cache: Path) -> None:
    paths = set()
    for keywords in ({}, {"batch_size": 8}, {"uint8_input": True}, {"min_cosine": 0.5}):
        with clipmlu.pipeline("demo", target="cpu", cache_dir=cache, quiet=True, check=False, **keywords) as model:
            paths.add(model.bundle.path)
    assert len(paths) == 4


@pytest.mark.torch
def test_a_second_process_waits_for_the_first(cache: Path, demo_bundle: ExportedBundle) -> None:
    folder = next((cache / "models").iterdir())
    notes, take_note = hold_until_waited_for(folder / "results")
    clipmlu.pipeline("demo", target="cpu", cache_dir=cache, on_note=take_note, check=False).close()
    assert notes[0].startswith("waiting for another process")
    assert len(notes) == 3


def test_bundles_are_taken_as_they_are(
    exported: ExportedBundle, compiled: CompiledBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given in (str(exported.path), exported.path, exported):
        with clipmlu.pipeline(given, target="cpu", cache_dir=tmp_path, quiet=True) as model:
            assert model.bundle.manifest.compilation is not None
            assert model.bundle.path.is_relative_to(tmp_path / "models")
    assert len(list((tmp_path / "models").iterdir())) == 1, "by content, not by path"
    for ready in (str(compiled.path), compiled):
        with clipmlu.pipeline(ready, cache_dir=tmp_path) as model:
            assert model.bundle.path == compiled.path
    assert capsys.readouterr().err == ""


def test_the_same_data_offline_give_the_same_bundle(exported: ExportedBundle, tmp_path: Path) -> None:
    paths, notes = set(), list[str]()
    for offline in (False, True):
        with clipmlu.pipeline(
            exported,
            target="cpu",
            precision="int8",
            calib="demo",
            calib_samples=4,
            check=False,
            offline=offline,
            cache_dir=tmp_path / "cache",
            on_note=notes.append,
        ) as model:
            paths.add(model.bundle.path)
    assert len(paths) == 1
    assert sum(note.startswith("compiling") for note in notes) == 1


def test_a_damaged_bundle_of_the_cache_is_made_again(exported: ExportedBundle, tmp_path: Path) -> None:
    notes: list[str] = []

    def call() -> list[str]:
        notes.clear()
        with clipmlu.pipeline(exported, ["ant", "bee"], target="cpu", cache_dir=tmp_path, on_note=notes.append).encoder:
            return [note.split()[0] for note in notes]

    assert call() == ["compiling"]
    graph = next((tmp_path / "models").rglob("image*.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    assert call() == ["not", "compiling"]
    assert "image" in notes[0]
    assert call() == ["reusing"]


def test_contradictions_are_refused(compiled: CompiledBundle, exported: ExportedBundle) -> None:
    with pytest.raises(OptionError, match=r"^batch size is 8, but bundle '.*' is compiled already; leave it out$"):
        clipmlu.pipeline(compiled, batch_size=8)
    with pytest.raises(OptionError, match=r"^pretrained is 'openai', but the model is exported already; leave it out$"):
        clipmlu.pipeline(exported, pretrained="openai")
    with pytest.raises(OptionError, match=r"^templates is 'a \{\}', but there are no labels"):
        clipmlu.pipeline(compiled, templates="a {}")  # type: ignore[call-overload]
    with pytest.raises(OptionError, match=r"^quiet is True, and on_note takes the lines"):
        clipmlu.pipeline(compiled, quiet=True, on_note=print)


@pytest.mark.torch
def test_without_torch_the_message_says_what_to_install(tmp_path: Path, no_torch: None) -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install 'clipmlu\[export\]'"):
        clipmlu.pipeline("demo", cache_dir=tmp_path, quiet=True)


@pytest.mark.torch
def test_load_points_from_the_name_of_a_model_to_the_pipeline() -> None:
    for name, suggested in (
        ("ViT-B-32", "ViT-B-32::openai"),
        ("ViT-B/32", "ViT-B/32::openai"),
        ("RN50::openai", "RN50::openai"),
        ("demo", "demo"),
    ):
        with pytest.raises(BundleNotFoundError) as caught:
            clipmlu.load(name)
        assert str(caught.value) == (
            f"'{name}' is the name of a model; expected the folder of a compiled bundle. From a name to a model: "
            f"clipmlu.pipeline('{suggested}')."
        )


def test_without_open_clip_an_export_of_other_files_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch", "open_clip"):
        monkeypatch.setitem(sys.modules, name, None)
    for known in (catalog._config_paths, catalog._pretrained):
        known.cache_clear()  # what other tests read of open_clip
    weights, tokenizer = tmp_path / "weights.pt", tmp_path / "tokenizer.json"
    weights.write_bytes(b"first")
    tokenizer.write_bytes(b"{}")
    options = ExportOptions(pretrained=str(weights), tokenizer=tokenizer)
    bundle = write_exported(tmp_path / "cache" / "models" / kept_name("ViT-B-32", options) / "exported")
    records = {"weights.pt": file_record(weights), "tokenizer:tokenizer.json": file_record(tokenizer)}
    export = msgspec.structs.replace(bundle.manifest.export, source_files=records)
    edit_manifest(bundle.path, export=msgspec.to_builtins(export))
    notes: list[str] = []

    def call() -> None:
        clipmlu.pipeline(
            "ViT-B-32",
            pretrained=str(weights),
            tokenizer=tokenizer,
            target="cpu",
            cache_dir=tmp_path / "cache",
            on_note=notes.append,
        ).close()

    call()
    assert "open_clip is not installed, so its list of weights is not compared" in notes[0]
    for file in (weights, tokenizer):
        before = file.read_bytes()
        file.write_bytes(b"second")
        with pytest.raises(MissingDependencyError, match=r"pip install 'clipmlu\[export\]'"):
            call()
        file.write_bytes(before)
    call()


def test_a_card_is_used_if_there_are_no_several(compiled: CompiledBundle) -> None:
    with clipmlu.pipeline(compiled, device=3, devices=None) as model:
        assert model.devices == (3,)


def test_a_kept_model_is_ready_without_the_packages_that_make_one(compiled: CompiledBundle) -> None:
    code = (
        f"import sys, clipmlu\nclipmlu.pipeline({str(compiled.path)!r})\n"
        "print([name for name in ('torch', 'open_clip', 'onnx', 'onnx_ir', 'sympy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_load_points_from_an_exported_bundle_to_the_pipeline(exported: ExportedBundle) -> None:
    with pytest.raises(
        BundleError, match=r"exported bundle.*clipmlu compile .*; or in Python: clipmlu\.pipeline\('.*'\)"
    ):
        clipmlu.load(exported.path)
