"""Quantising from the command line: kept calibration sets, the search and its recipe, and the gate against a baseline."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import support
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle, open_compiled
from clipmlu.data.calibration_set import load_calibration
from clipmlu.model import Model

Run = Callable[..., tuple[int, str, str]]
QINT8 = ("--precision", "qint8_mixed_float32", "--calib", "demo")
NAMES = ("cat", "dog", "red circle", "blue star")


@pytest.fixture
def folder(compiled: CompiledBundle, tmp_path: Path) -> Path:
    """Pictures in the folders of the classes that the float model takes them for: ``train`` 0..49, ``test`` 100..129."""
    root = tmp_path / "folder"
    with Model(compiled) as encoder:
        classifier = encoder.classifier(NAMES, cache=False)
        for split, numbers in (("train", range(50)), ("test", range(100, 130))):
            for name in NAMES:
                (root / split / name).mkdir(parents=True)
            for number in numbers:
                picture = support.picture(number)
                name = classifier.predict(picture).class_name  # type: ignore[union-attr]
                picture.save(root / split / name / f"{number}.png")
    return root


def test_a_calibration_set_is_kept_and_used_again(
    run: Run, exported: ExportedBundle, folder: Path, tmp_path: Path
) -> None:
    code, out, err = run(
        "calibrate", exported.path, "--calib", folder, "--calib-samples", 12, "--calib-seed", 4, "-o", tmp_path / "set"
    )
    assert code == 0, err
    assert re.search(r"images\s+12 of .*folder, train, seed 4", out)
    kept = load_calibration(tmp_path / "set")
    digests = set()
    for target in ("cpu", "emulated-mlu"):
        arguments = ("--target", target, "--precision", "qint8_mixed_float32", "--min-cosine", "0.8")
        code, _, err = run("compile", exported.path, *arguments, "--calib", tmp_path / "set", "-o", tmp_path / target)
        assert code == 0, err
        bundle = open_compiled(tmp_path / target)
        assert bundle.calibration_data().images == tuple(sorted(kept.images))
        assert bundle.compilation.calibration == kept.record
        digests.add(bundle.compilation.calibration.digest)
    assert digests == {kept.record.digest}
    assert kept.record.digest[:12] in run("info", "-v", tmp_path / "cpu")[1]
    code, _, err = run("calibrate", exported.path, "--calib", folder, "-o", tmp_path / "set")
    assert code == 1
    assert "Calibration set" in err
    assert "--overwrite" in err


def test_info_says_how_much_is_in_integers(run: Run, exported: ExportedBundle, folder: Path, tmp_path: Path) -> None:
    algorithm = ("--quantisation", "vendor", "--calib-algo", "percentile", "--calib-percentile", "99.9")
    options = ("--calib", folder, "--calib-samples", 12, *algorithm)
    code, out, err = run(
        "compile",
        "-v",
        exported.path,
        "--target",
        "cpu",
        "--precision",
        "qint8_mixed_float32",
        *options,
        "-o",
        tmp_path / "q",
    )
    assert code == 0, err
    assert "percentile 99.9 calibration" in out
    assert re.search(r"image in integers\s+100\.0 % of the multiply-accumulate operations, 2 tensors", out)
    assert re.search(r"same class as in float32 for \d+\.\d %", out)
    manifest = json.loads((tmp_path / "q" / "manifest.json").read_text())
    tensors = manifest["compilation"]["quantised"]["image"]["tensors"]
    assert all(set(entry) >= {"bits", "scale", "zero_point", "minimum", "maximum"} for entry in tensors.values())


def test_quantisation_options_are_chosen_by_name_and_changed_singly(
    run: Run, exported: ExportedBundle, folder: Path, tmp_path: Path
) -> None:
    common = ("--target", "cpu", "--precision", "qint8_mixed_float32", "--calib", folder, "--calib-samples", 12)
    for number, (given, quantisation, smoothing) in enumerate(
        [
            ((), "per_axis weights, asymmetric activations, linear", "0.85"),
            (("--quantisation", "vendor"), "per_tensor weights, symmetric activations, linear", None),
            (("--weight_quant_granularity", "per_axis"), "per_axis weights, symmetric activations, linear", None),
            (("--calib-algo", "eqnm", "--smooth-alpha", 0), "per_axis weights, symmetric activations, eqnm", None),
            (("--smooth-alpha", 0, "--smooth-alpha", "qkv=auto"), "per_axis weights, asymmetric", "qkv auto"),
        ]
    ):
        code, out, err = run("compile", "-v", exported.path, *common, *given, "-o", tmp_path / str(number))
        assert code == 0, err
        assert re.search(rf"quantisation +{quantisation}", out)
        found = re.search(r"smoothing +(.*): 0 tensors smoothed", out)
        assert (found and found[1]) == smoothing


def test_search_and_recipe(run: Run, exported: ExportedBundle, folder: Path, tmp_path: Path) -> None:
    common = ("--target", "cpu", "--calib", folder, "--calib-samples", 8, "--batch-size", 8)
    code, _, err = run(
        "compile", exported.path, *common, "--max-drop", "0.3", "--search-samples", 40, "-o", tmp_path / "found"
    )
    assert code == 0, err
    assert re.search(r"float32: top-1 1\.0000 on 40 held-out images", err)
    assert re.search(r" 1\. qint8_mixed_float32 per_tensor linear: top-1 .*: accepted", err)
    recipe = tmp_path / "found" / "recipe.json"
    code, _, err = run(
        "compile", exported.path, "--target", "cpu", "--batch-size", 8, "--recipe", recipe, "-o", tmp_path / "again"
    )
    assert code == 0, err
    files = [open_compiled(tmp_path / name).manifest.files["image.onnx"] for name in ("found", "again")]
    assert files[0] == files[1]
    limited = ("--target", "cpu", "--batch-size", 8, "--recipe", recipe, "--max-pixels", 1, "-o", tmp_path / "small")
    code, _, err = run("compile", exported.path, *limited)
    assert code == 1, "the images of the recipe are read with the limit of this command"
    assert "more than the limit of 1." in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--max-drop", "0.1"), 2, "needs calibration data: give --calib"),
        (
            ("--max-drop", "0.1", "--calib", "demo", "--granularity", "per_axis"),
            2,
            "the search chooses the quantisation options",
        ),
        (("--max-drop", "0.1", "--calib", "demo", "--precision", "force_float16"), 2, "there is nothing to search for"),
        (("--recipe", "absent.json"), 1, "Cannot read the recipe 'absent.json'"),
        (("--recipe", "absent.json", "--max-drop", "0.1"), 2, "leave out --max-drop and --precision"),
        (
            (*QINT8, "--smooth-alpha", "much"),
            2,
            "expected such as 0.5",
        ),
        (
            (*QINT8, "--smooth-alpha", "1.5"),
            2,
            "expected 0 .off. to 1",
        ),
        (
            (*QINT8, "--smooth-alpha", "attention_scores=0.5"),
            2,
            "role to smooth is 'attention_scores'; expected one of qkv",
        ),
        ((*QINT8, "--keep-float", "mlp_uot"), 2, "mlp_out"),
        ((*QINT8, "--keep-float", "qkv:x"), 2, "ROLE:BLOCKS"),
        (("--precision", "qint8_mixed_float32", "--calib", "absent-folder"), 2, "Unknown dataset 'absent-folder'"),
        (
            (*QINT8, "--calib-algo", "entropy", "--activation-quant", "asymmetric"),
            2,
            "entropy works with symmetric activations only",
        ),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    run: Run, exported: ExportedBundle, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    found, _, err = run("-q", "compile", exported.path, "--target", "cpu", *arguments, "-o", tmp_path / "out")
    assert found == code, err
    assert re.search(message, err), err
    assert err.count("\n") == 1, err
    assert not (tmp_path / "out").exists()


def test_a_loss_against_the_baseline_is_a_failed_gate(
    run: Run, exported: ExportedBundle, compiled: CompiledBundle, folder: Path, tmp_path: Path
) -> None:
    evaluate = ("--dataset", f"imagefolder:{folder}", "--json")
    baseline = tmp_path / "float32.json"
    code, out, err = run("eval", compiled.path, *evaluate, "--output", baseline)
    assert (code, json.loads(out)["top1"]) == (0, 1.0), err
    weights = support.write_exported(tmp_path / "other", seed=3)
    assert run("compile", weights.path, "--target", "cpu", "-o", tmp_path / "worse")[0] == 0
    compare = (*evaluate, "--baseline", baseline)
    code, out, err = run("eval", tmp_path / "worse", *compare, "--max-drop", "0.05", "--output", tmp_path / "new.json")
    report = json.loads(out)
    assert report["top1"] < 0.9
    assert code == 3
    assert re.search(r"below the baseline's 1\.0000; allowed: 0\.05 \(--max-drop\)", err)
    assert report["baseline"]["drop"] == pytest.approx(1.0 - report["top1"])
    assert json.loads((tmp_path / "new.json").read_text()) == report, "the report is written all the same"
    lost = 1.0 - report["top1"]
    assert run("eval", tmp_path / "worse", *compare, "--max-drop", f"{lost:.6f}")[0] == 0, "exactly as much is allowed"
    code, out, _ = run("eval", compiled.path, "--dataset", f"imagefolder:{folder}", "--baseline", baseline)
    assert code == 0
    assert re.search(r"baseline\s+top-1 1\.0000, drop \+0\.0000, allowed 0\.01", out)


def test_a_baseline_must_be_about_the_same(run: Run, compiled: CompiledBundle, folder: Path, tmp_path: Path) -> None:
    data = f"imagefolder:{folder}"
    baseline = tmp_path / "base.json"
    assert run("eval", compiled.path, "--dataset", data, "--samples", 20, "--output", baseline)[0] == 0
    code, _, err = run("eval", compiled.path, "--dataset", data, "--baseline", baseline)
    assert code == 2
    assert "the baseline has images '20', this evaluation '30'" in err
    code, _, err = run("eval", compiled.path, "--dataset", data, "--max-drop", "0.1")
    assert code == 2
    assert "needs a --baseline" in err
    shuffled = ("--samples", 20, "--shuffle", "--seed")
    assert run("eval", compiled.path, "--dataset", data, *shuffled, 1, "--output", baseline, "--overwrite")[0] == 0
    assert run("eval", compiled.path, "--dataset", data, *shuffled, 1, "--baseline", baseline)[0] == 0
    code, _, err = run("eval", compiled.path, "--dataset", data, *shuffled, 2, "--baseline", baseline)
    assert code == 2
    assert "the baseline is about other images or labels (digest " in err
    assert run("eval", compiled.path, "--dataset", data, "--output", baseline, "--overwrite")[0] == 0
    assert run("eval", compiled.path, "--dataset", data, "--shuffle", "--baseline", baseline)[0] == 0, "another order"
    written = json.loads(baseline.read_text())
    baseline.write_text(json.dumps({**written, "data_digest": None}))
    code, _, err = run("eval", compiled.path, "--dataset", data, "--baseline", baseline)
    assert code == 2
    assert "written by an older clipmlu and does not say which images it is about" in err
    baseline.write_text("{}")
    code, _, err = run("eval", compiled.path, "--dataset", data, "--baseline", baseline)
    assert code == 1
    assert "is not a report" in err
