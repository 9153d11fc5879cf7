"""What ``classify`` shows and writes: the name of each image, how many classes, and files whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import support
from clipmlu.bundle.directory import CompiledBundle

Run = Callable[..., tuple[int, str, str]]
LABELS = "cat,dog,red circle"


@pytest.mark.parametrize(("form", "expected"), [("table", 1), ("csv", 3), ("jsonl", 3)])
def test_a_table_shows_the_best_class_and_other_formats_more(
    run: Run, compiled: CompiledBundle, photos: Path, form: str, expected: int
) -> None:
    arguments = ("classify", compiled.path, photos / "0.png", "--labels", LABELS, "--format", form)
    assert [_classes_shown(run(*arguments)[1], form)] == [expected]
    assert [_classes_shown(run(*arguments, "--top-k", 2)[1], form)] == [2]


def _classes_shown(text: str, form: str) -> int:
    if form == "jsonl":
        return len(json.loads(text)["predictions"])
    if form == "csv":
        return (len(next(csv.reader(io.StringIO(text)))) - 1) // 2
    return text.count("%")


def test_names_of_images_stand_first_in_one_column(
    run: Run, compiled: CompiledBundle, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    lines = run("classify", compiled.path, "0.png", "sub/3.png", "--labels", LABELS)[1].splitlines()
    assert [line.split("  ")[0] for line in lines] == ["0.png", "sub/3.png"]
    assert [line.index("%") for line in lines] == [lines[0].index("%")] * 2
    assert lines[0].startswith("0.png      ")


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.csv", "csv"), ("a.json", "json"), ("a.JSONL", "jsonl"), ("a.txt", "table"), ("new/a.csv", "csv")],
)
def test_a_file_holds_what_is_printed_without_it(
    run: Run, compiled: CompiledBundle, photos: Path, tmp_path: Path, name: str, form: str
) -> None:
    arguments = ("classify", compiled.path, photos / "*.png", "--labels", LABELS)
    printed = run(*arguments, "--format", form)[1]
    code, out, err = run(*arguments, "-o", tmp_path / name)
    assert (code, out) == (0, "")
    assert err == f"Wrote the classes of 3 image(s) to {tmp_path / name}\n"
    assert (tmp_path / name).read_text(encoding="utf-8") == printed


def test_json_is_the_format_json(run: Run, compiled: CompiledBundle, photos: Path) -> None:
    arguments = ("classify", compiled.path, photos / "0.png", "--labels", LABELS)
    code, printed, err = run(*arguments, "--json")
    assert code == 0, err
    assert json.loads(printed)
    assert printed == run(*arguments, "--format", "json")[1] == run(*arguments, "--format", "json", "--json")[1]


def test_format_wins_over_the_name_of_the_file(
    run: Run, compiled: CompiledBundle, photos: Path, tmp_path: Path
) -> None:
    arguments = ("classify", compiled.path, photos / "0.png", "--labels", LABELS, "--format", "jsonl")
    printed = run(*arguments)[1]
    assert run(*arguments, "-o", tmp_path / "a.csv")[0] == 0
    assert (tmp_path / "a.csv").read_text() == printed


def test_an_existing_file_is_replaced_on_request_only(
    run: Run, compiled: CompiledBundle, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "a.csv"
    output.write_text("mine")
    arguments = ("classify", compiled.path, photos / "0.png", "--labels", LABELS, "-o", output)
    code, _, err = run(*arguments)
    assert (code, output.read_text()) == (1, "mine")
    support.assert_one_line(err, r"'.*a\.csv' .*exists.*--overwrite")
    assert run(*arguments, "--overwrite")[0] == 0
    assert output.read_text().startswith("source,class_name_1,score_1")


def test_unreadable_images_are_left_out_of_the_file_and_alone_leave_none(
    run: Run, compiled: CompiledBundle, photos: Path, tmp_path: Path
) -> None:
    arguments = ("classify", compiled.path, "--labels", LABELS, "-o", tmp_path / "a.csv")
    code, _, err = run(*arguments, photos / "broken.jpg")
    assert code == 1
    assert err.endswith("clipmlu: Not one of 1 image(s) could be read; nothing was written.\n")
    assert not (tmp_path / "a.csv").exists()
    assert run(*arguments, photos)[0] == 1
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 6
    assert [path.name for path in tmp_path.glob(".clipmlu*")] == []


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (("-o", "a.csv", "--shard-size", "3"), "--shard-size is for a job: give -o DIR, not a file"),
        (("-o", "a.csv", "--processes", "3"), "--processes is for a job: give -o DIR, not a file"),
        (("-o", "a.csv", "--embeddings"), "--embeddings is for a job: give -o DIR, not a file"),
        (("-o", "a.npy"), r"expected a folder for a job, or a file that ends in \.txt, \.json, \.jsonl, \.csv"),
        (("--json", "--format", "csv"), "--json is --format json, and --format is csv; leave out one of them"),
        (
            ("-o", "photos", "--json"),
            "--json is for standard output and files that end in .*; a job has --shard-format",
        ),
        (
            ("-o", "photos", "--format", "csv"),
            r"--format is for standard output and files that end in .*; a job has --shard-format",
        ),
    ],
)
def test_options_of_files_and_jobs_exclude_each_other(
    run: Run,
    compiled: CompiledBundle,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    pattern: str,
) -> None:
    monkeypatch.chdir(photos.parent)
    code, out, err = run("classify", compiled.path, "photos/0.png", "--labels", LABELS, *arguments)
    assert (code, out) == (2, "")
    support.assert_one_line(err, pattern)
    assert not Path("a.csv").exists()
