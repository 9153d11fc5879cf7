"""Images of none of the classes on the command line, in all formats and in jobs, as the library finds them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

import clipmlu
import support
from cli.conftest import Run
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.classify.results import Predictions
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions

NAMES = "ant,bee,cat,dog"
RULES = ("--reject-below", "0.4", "--none-label", "other", "--background", "person,sky,food")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number in range(12):
        support.picture(number).save(tmp_path / "images" / f"{number:02}.png")
    return tmp_path / "images"


@pytest.fixture
def expected(compiled: CompiledBundle, folder: Path) -> Predictions:
    with clipmlu.load(compiled.path) as model:
        classifier = model.classifier(NAMES, none_label="other", background=["person", "sky", "food"], reject_below=0.4)
        found = classifier.predict(sorted(folder.iterdir()), top_k=2)
    assert isinstance(found, Predictions)
    assert len({each.rejected for each in found}) == 2
    return found


def test_every_format_names_the_rejected_images(
    run: Run, compiled: CompiledBundle, folder: Path, expected: Predictions
) -> None:
    names = [each.class_names for each in expected]
    given = ("classify", compiled.path, folder, "--labels", NAMES, *RULES, "--top-k", 2, "--format")
    _, out, _ = run(*given, "json")
    found = json.loads(out)["results"]
    assert [tuple(row["class_name"] for row in each["predictions"]) for each in found] == names
    assert [each.get("rejected", False) for each in found] == [each.rejected for each in expected]
    assert {row["index"] for each in found for row in each["predictions"] if row["class_name"] == "other"} == {4}
    _, out, _ = run(*given, "jsonl")
    assert [json.loads(line) for line in out.splitlines()] == found
    _, out, _ = run(*given, "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["class_name_1"], row["class_name_2"]) for row in rows] == names
    _, out, _ = run(*given, "table")
    assert out.count("other") == sum("other" in each for each in names)


def test_threshold_alone_fills_every_cell_of_the_csv(run: Run, compiled: CompiledBundle, folder: Path) -> None:
    """There are as many cells as classes, whether an image is rejected or not."""
    code, out, _ = run("classify", compiled.path, folder, "--labels", NAMES, "--reject-below", 0.5, "--format", "csv")
    rows = list(csv.reader(io.StringIO(out)))
    assert code == 0
    assert {len(row) for row in rows} == {1 + 2 * 4}
    assert "none of these" in {row[1] for row in rows}


@pytest.mark.parametrize(
    ("shard_format", "layout"), [*((each, "towers") for each in ("jsonl", "csv", "parquet", "npy")), ("jsonl", "joint")]
)
def test_jobs_hold_the_rejected_images(
    run: Run,
    compiled: CompiledBundle,
    folder: Path,
    expected: Predictions,
    tmp_path: Path,
    shard_format: str,
    layout: str,
) -> None:
    if shard_format == "parquet":
        pytest.importorskip("pyarrow")
    bundle = compiled.path
    if layout == "joint":
        exported = support.write_exported(tmp_path / "joint", layout="joint")
        bundle = compile_bundle(exported, tmp_path / "joint-cpu", CompileOptions(target="cpu")).path
    given = ("classify", bundle, folder, "--labels", NAMES, *RULES, "--top-k", 2, "-o", tmp_path / "job")
    code, _, err = run(*given, "--shard-format", shard_format)
    assert code == 0, err
    frame = clipmlu.open_job(tmp_path / "job").to_dataframe()
    found = list(zip(frame["class_name_1"], frame["class_name_2"], strict=True))
    assert found == [each.class_names for each in expected]
    assert clipmlu.open_job(tmp_path / "job").state().classes == 4
    code, _, _ = run(*given, "--shard-format", shard_format)
    assert code == 0, "the same command finds the job finished"
    code, _, err = run(*[each if each != "0.4" else "0.2" for each in given], "--shard-format", shard_format)
    assert code != 0
    assert "open set" in err


def test_classifier_file_keeps_the_rules_and_takes_another_threshold(
    run: Run, compiled: CompiledBundle, folder: Path, expected: Predictions, tmp_path: Path
) -> None:
    path = tmp_path / "open.clf"
    run("classify", compiled.path, "--labels", NAMES, *RULES, "--save-classifier", path)
    given = ("classify", compiled.path, folder, "--classifier", path, "--top-k", 2, "--format", "jsonl")
    _, out, _ = run(*given)
    assert [json.loads(line).get("rejected", False) for line in out.splitlines()] == [
        each.rejected for each in expected
    ]
    _, out, _ = run(*given, "--reject-below", 1, "--none-label", "nothing")
    assert [json.loads(line)["predictions"][0]["class_name"] for line in out.splitlines()] == ["nothing"] * 12
    code, _, err = run(*given[:5], "-o", tmp_path / "job", "--shard-format", "npy", "--reject-below", 1)
    assert code == 0, err
    assert set(clipmlu.open_job(tmp_path / "job").to_dataframe()["class_name_1"]) == {"other"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--labels", NAMES, "--reject-below", "30"), "30"),
        (("--labels", NAMES, "--none-label", "cat"), "none label is 'cat', which is also a class"),
        (("--labels", NAMES, "--background", "sky,cat"), "background has 'cat', which is also a class; leave it out"),
        (("--classifier", "x.clf", "--background", "sky,sea"), "--background goes with --labels"),
    ],
)
def test_wrong_rules_are_one_line(
    run: Run, compiled: CompiledBundle, folder: Path, given: tuple[str, ...], message: str
) -> None:
    code, out, err = run("classify", compiled.path, folder, *given)
    assert (code, out) == (2, "")
    assert message in err


def test_eval_reports_coverage_and_the_accuracy_of_the_kept(run: Run, compiled: CompiledBundle) -> None:
    given = ("eval", compiled.path, "--dataset", "demo", "--samples", 60)
    code, out, _ = run(*given, "--reject-below", 0.05, "--json")
    assert code == 0
    report = json.loads(out)
    found = report["rejection"]
    assert found["coverage"] == found["kept"] / 60
    assert 0 < found["kept"] < 60
    _, out, _ = run(*given, "--reject-below", 0.05)
    assert f"{found['kept']} images, {100 * found['coverage']:.1f} % coverage" in out
    assert "top-1 of the kept" in out
    _, out, _ = run(*given)
    assert "kept" not in out
