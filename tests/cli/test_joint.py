"""The whole chain on the fused graph: every command gives what the two towers give, or says why not."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import support
from clipmlu.specs import VENDOR_PRECISIONS

Run = Callable[..., tuple[int, str, str]]
NAMES = [f"thing {number}" for number in range(8)]
TARGETS = {
    "cpu": ("--target", "cpu"),
    "emulated-mlu": ("--target", "emulated-mlu", "--text-rows", 5),  # two pieces, the second one padded
}
TIMES = ("elapsed_s", "images_per_second")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Eight classes of two pictures; ``train`` holds others, to calibrate with."""
    for number in range(16):
        for split, first in (("test", 0), ("train", 100)):
            folder = tmp_path / "data" / split / NAMES[number % 8]
            folder.mkdir(parents=True, exist_ok=True)
            support.picture(first + number).save(folder / f"{number}.png")
    return tmp_path / "data"


@pytest.fixture
def both(run: Run, tmp_path: Path, dataset: Path) -> Callable[..., tuple[Path, Path]]:
    """``both(target, *options)``: the tiny model compiled with two towers, and with the fused graph."""

    def compile_both(target: str, *options: object) -> tuple[Path, Path]:
        paths = []
        for layout in ("towers", "joint"):
            source, output = tmp_path / layout, tmp_path / f"{layout}-{target}"
            if not source.exists():
                support.write_exported(source, layout=layout)  # type: ignore[arg-type]
            given = [each for each in TARGETS[target] if layout == "joint" or each not in ("--text-rows", 5)]
            shape = ("--batch-size", 3, "--max-batch", 3, "--overwrite")
            code, _, err = run("compile", source, *given, *shape, *options, "-o", output)
            assert code == 0, err
            paths.append(output)
        return paths[0], paths[1]

    return compile_both


def _figures(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key not in (*TIMES, "provenance", "command")}


@pytest.mark.parametrize("target", TARGETS)
def test_reports_sample_files_and_predictions_are_those_of_the_towers(
    run: Run, both: Callable[..., tuple[Path, Path]], dataset: Path, tmp_path: Path, target: str
) -> None:
    reports, samples = [], []
    towers, joint = both(target)
    for bundle in (towers, joint):
        arguments = ("eval", bundle, "--dataset", f"imagefolder:{dataset}", "--json")
        code, out, err = run(*arguments, "--sample-files", tmp_path / f"files-{bundle.name}")
        assert code == 0, err
        assert ("joint layout: all" in err) == (bundle == joint)
        reports.append(json.loads(out))
        samples.append({path.name: path.read_text() for path in (tmp_path / f"files-{bundle.name}").iterdir()})
    assert reports[1]["images"] == 16
    # Confidences differ in their last bits.
    errors = [report.pop("expected_calibration_error") for report in reports]
    assert errors[1] == pytest.approx(errors[0], abs=1e-5)
    means = [[entry.pop("mean_confidence") or 0 for entry in report["confidence_bins"]] for report in reports]
    assert means[1] == pytest.approx(means[0], abs=1e-5)
    assert _figures(reports[0]) == _figures(reports[1])
    assert samples[0] == samples[1]
    assert len(samples[1]) == 5
    tables = []
    for bundle in (towers, joint):
        code, out, err = run("classify", bundle, dataset / "test", "--labels", ",".join(NAMES), "--format", "csv")
        assert code == 0, err
        tables.append(list(csv.DictReader(io.StringIO(out))))
    assert len(tables[1]) == 16
    for expected, found in zip(*tables, strict=True):
        for column, value in expected.items():
            if column.startswith("score"):
                assert float(found[column]) == pytest.approx(float(value), abs=2e-6)
            else:
                assert found[column] == value


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("precision", [each.value for each in VENDOR_PRECISIONS])
def test_six_modes_compile_and_are_compared(
    run: Run, tmp_path: Path, dataset: Path, target: str, precision: str
) -> None:
    source = support.write_exported(tmp_path / "joint", layout="joint")
    calib = ("--calib", f"imagefolder:{dataset}", "--calib-samples", 8) if precision.startswith("qint") else ()
    gates = ("--min-cosine", -1, "--min-agreement", 0)  # a model of random weights
    output = tmp_path / "compiled"
    code, _, err = run("compile", source.path, *TARGETS[target], "--precision", precision, *calib, *gates, "-o", output)
    assert code == 0, err
    arguments = ("compare", output, source.path, "--dataset", f"imagefolder:{dataset}", "--json")
    code, out, err = run(*arguments)
    assert code == 0, err
    report = json.loads(out)
    assert report["predictions"]["images"] == report["logits"]["rows"] == 16
    # Logits reach from -20 to 20; 8 bits of both operands of the last product too leave some of them.
    assert report["logits"]["min_cosine"] > (0.9 if "qint8" in precision else 0.999)


def test_what_needs_embeddings_is_refused_in_one_line(
    run: Run, both: Callable[..., tuple[Path, Path]], dataset: Path, tmp_path: Path
) -> None:
    towers, joint = both("cpu")
    clf, labels = tmp_path / "x.clf", ("--labels", "cat,dog")
    assert run("classify", towers, *labels, "--save-classifier", clf)[0] == 0
    where = dataset / "test"
    (tmp_path / "two.txt").write_text("a {}\nthe {}\n")
    two = ("--templates", tmp_path / "two.txt")
    for code, arguments in (
        (1, ("embed", joint, where, "-o", tmp_path / "e.npy")),
        (1, ("classify", joint, where, "--classifier", clf)),
        (1, ("classify", joint, *labels, "--save-classifier", tmp_path / "y.clf")),
        (2, ("classify", joint, where, *labels, *two)),
        (2, ("eval", joint, "--dataset", f"imagefolder:{dataset}", *two)),
        (2, ("sweep", tmp_path / "joint", "--precision", "force_float32", "-o", tmp_path / "s", *two)),
        (2, ("run", "demo", "--layout", "joint", "-o", tmp_path / "r", *two)),
    ):
        found, out, err = run("-q", *arguments)
        assert (found, out) == (code, ""), err
        assert "without '--layout joint'" in err
        assert err.count("\n") == 1, err
    assert not (tmp_path / "e.npy").exists()
    assert not (tmp_path / "y.clf").exists()
    assert not (tmp_path / "r").exists()


def test_sweep_times_the_fused_graph(run: Run, dataset: Path, tmp_path: Path) -> None:
    source = support.write_exported(tmp_path / "joint", layout="joint")
    quick = ("--repetitions", 1, "--duration", 0, "--batch-size", "1,2", "--json")
    data = ("--dataset", f"imagefolder:{dataset}")
    code, out, err = run(
        "sweep", source.path, "--target", "cpu", "--precision", "force_float32", *quick, *data, "-o", tmp_path / "s"
    )
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert [row["batch_size"] for row in rows] == [1, 2]
    assert all(row["images_per_second"] > 0 and row["image_tower_bytes"] > 0 for row in rows)
    assert "joint layout: all 8 texts" in err
