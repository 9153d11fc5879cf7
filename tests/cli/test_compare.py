"""``clipmlu compare`` in this process: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import support
from clipmlu.bundle.directory import ExportedBundle

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset of three classes, and pictures beside it to calibrate with; named from where they lie."""
    monkeypatch.chdir(tmp_path)
    for number in range(18):
        place = tmp_path / ("calibration" if number < 6 else f"dataset/{('cat', 'dog', 'owl')[number % 3]}")
        place.mkdir(parents=True, exist_ok=True)
        support.picture(number).save(place / f"{number}.png")
    return Path("dataset")


@pytest.fixture
def int8(run: Run, exported: ExportedBundle, folder: Path) -> Callable[..., Path]:
    """``int8(target)``: the tiny model in eight bits, with the same options on each target."""

    def compile_one(target: str = "cpu") -> Path:
        output = Path(f"int8-{target}")
        data = ("--calib", "calibration", "--calib-samples", 6)
        mode = ("--precision", "qint8_mixed_float16", "--quantisation", "vendor")
        code, _out, err = run("compile", exported.path, "--target", target, *mode, *data, "-o", output)
        assert code == 0, err
        return output

    return compile_one


def lines_of(text: str) -> dict[str, str]:
    """Facts by name."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, _gap, value = line.strip().partition("  ")
        found.setdefault(name, value.strip())
    return found


def test_comparison_names_the_sides_and_shows_nodes_predictions_and_roles(
    run: Run, exported: ExportedBundle, int8: Callable[..., Path], folder: Path
) -> None:
    bundle = int8()
    code, out, err = run("compare", bundle, "tiny", "--dataset", f"imagefolder:{folder}", "--ablate")
    assert code == 0, err
    facts = lines_of(out)
    assert facts["A, measured"] == f"{bundle}: cpu qint8_mixed_float16"
    assert facts["B, reference"] == "tiny: float source"
    assert facts["images"] == "12 of imagefolder:dataset, all"
    assert facts["image nodes"] == "3 tensors over 12 rows"
    assert facts["first to diverge"] == "none: every cosine is at least 0.99"
    assert facts["agreement"].endswith(" of the best classes")
    assert "McNemar p = " in facts["flips"]
    assert "image tower: worst nodes" in out
    assert "text tower: worst nodes" in out
    assert "one role in float at a time; A itself has top-1" in out
    (row,) = [line.split() for line in out.splitlines() if line.startswith("image  ") and "%" in line]
    assert row[:5] == ["image", "projection", "1", "100.0", "%"]
    assert "emulated" not in out
    assert "embedding 12 images with A" in err
    assert "ablation: image tower with projection in float" in err


def test_json_and_files_hold_the_report_and_the_picture(
    run: Run, exported: ExportedBundle, int8: Callable[..., Path], folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="needs the report extra")
    data = ("--dataset", f"imagefolder:{folder}", "--samples", 8, "--shuffle", "--seed", 3)
    files = ("--output", tmp_path / "report.json", "--heatmap", tmp_path / "map.png")
    code, out, err = run("compare", int8("emulated-mlu"), exported.path, *data, *files, "--json")
    assert code == 0, err
    report: dict[str, Any] = json.loads(out)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert report["measured"]["provenance"]["emulated"] is True
    assert report["reference"]["provenance"]["emulated"] is False
    assert (report["images"], report["ablation"]) == (8, None)
    assert [node["tensor"] for node in report["towers"]["image"]["nodes"]] == ["flat", "raw", "image_embeds"]
    with Image.open(tmp_path / "map.png") as image:
        assert image.format == "PNG"


def test_everything_emulated_says_so(
    run: Run, exported: ExportedBundle, int8: Callable[..., Path], folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="needs the report extra")
    data = ("--dataset", f"imagefolder:{folder}", "--tower", "image", "--all", "--heatmap", tmp_path / "map.svg")
    code, out, err = run("compare", int8("emulated-mlu"), int8(), *data)
    assert code == 0, err
    facts = lines_of(out)
    assert facts["A, measured"].endswith("emulated-mlu qint8_mixed_float16 (emulated)")
    assert facts["emulated"] == "figures of the emulated SDK, not of a card"
    assert "image tower: all nodes" in out
    assert "text tower" not in out
    assert out.count(" same ") == 3
    assert (
        "emulated-mlu qint8_mixed_float16 (emulated) against cpu qint8_mixed_float16"
        in (tmp_path / "map.svg").read_text()
    )


def test_unreadable_images_are_noted_and_give_exit_code_1(
    run: Run, exported: ExportedBundle, int8: Callable[..., Path], folder: Path
) -> None:
    (folder / "cat" / "broken.png").write_bytes(b"nothing")
    code, out, err = run("compare", int8(), exported.path, "--dataset", f"imagefolder:{folder}")
    assert code == 1
    assert lines_of(out)["images"].endswith("(1 skipped)")
    assert "skipped: " in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--heatmap", "map.pdf"), "heat map is 'map.pdf'; expected a name that ends in .png or .svg"),
        (("--ablate",), "quantises nothing"),
        (("--samples", "100"), "samples is 100, but"),
        (("--threshold", "2"), "Invalid value for '--threshold'"),
        (("--tower", "both-of-them"), "Invalid value for '--tower'"),
    ],
)
def test_options_that_cannot_be_met_are_usage_errors(
    run: Run, exported: ExportedBundle, folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    data = ("--dataset", f"imagefolder:{folder}")
    code, _out, err = run("compare", exported.path, exported.path, *data, *arguments)
    assert code == 2
    assert message in err
    assert "embedding" not in err


def test_other_models_are_refused(run: Run, exported: ExportedBundle, tmp_path: Path, folder: Path) -> None:
    other = support.write_exported(tmp_path / "other", seed=1)
    code, _out, err = run("compare", exported.path, other.path, "--dataset", f"imagefolder:{folder}")
    assert code == 1
    assert err.startswith("clipmlu: Bundles ")
    assert "hold different models" in err


def test_help_names_the_default_of_the_library(run: Run) -> None:
    from clipmlu.measure.compare.compare import DEFAULT_SAMPLES, DEFAULT_THRESHOLD

    _code, out, _err = run("compare", "--help")
    words = " ".join(out.split())
    assert f"[default: {DEFAULT_SAMPLES}, or all of fewer]" in words
    assert f"[default: {DEFAULT_THRESHOLD};" in words
