"""Folders of jobs: what a job takes for its own, and what it leaves alone."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import clipmlu
from cli.conftest import Run
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.data.finding import SkippedFiles, find_images
from clipmlu.errors import BundleExistsError, InputError, OptionError
from clipmlu.files.workspace import Workspace
from clipmlu.jobs.formats import FormatName
from clipmlu.jobs.inputs import JobInput
from clipmlu.jobs.options import ClassificationOptions, JobOptions
from clipmlu.jobs.run import run_job

OPTIONS = JobOptions(shard_size=2, shard_format="npy")
CLASSES = dataclasses.replace(OPTIONS, classification=ClassificationOptions(class_names=["cat", "dog"]))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def job(compiled: CompiledBundle, images: Path, tmp_path: Path) -> Path:
    run_job(compiled.path, [images], tmp_path / "job", OPTIONS)
    return tmp_path / "job"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("shard_format", ["parquet", "npy"])
def test_a_job_in_the_folder_of_its_images_goes_on(
    compiled: CompiledBundle, images: Path, shard_format: FormatName
) -> None:
    options = JobOptions(shard_size=2, shard_format=shard_format)
    first = run_job(compiled.path, [images], images / "job", options)
    assert first.skipped_files is None
    (images / "job" / "records" / "part-00000001.json").unlink()
    again = run_job(compiled.path, [images], images / "job", options)
    assert (again.images, again.computed_images) == (4, 2)
    assert again.skipped_files == "Left out: 1 folder(s) of jobs."


def test_results_of_other_jobs_are_no_input(compiled: CompiledBundle, images: Path) -> None:
    run_job(compiled.path, [images], images / "first", JobOptions(shard_size=2))
    skipped_files = SkippedFiles()
    found = [each.path.name for each in find_images(images, skipped_files, containers=True)]
    assert found == ["0.png", "1.png", "2.png", "3.png"]
    assert skipped_files.jobs == 1
    assert run_job(compiled.path, [images], images / "second", OPTIONS).images == 4


def test_a_run_that_begins_while_another_lists_its_input_waits_for_it(
    compiled: CompiledBundle, images: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    with Workspace(folder):  # as the other one writes its list there
        assert run_job(compiled.path, [images], folder, OPTIONS).images == 4


@pytest.mark.parametrize("stored", [None, b'{"type": "files"\n', b'{"type": "others"}\n'])
def test_other_inputs_are_refused_without_the_stored_list(
    compiled: CompiledBundle, images: Path, job: Path, stored: bytes | None
) -> None:
    (job / "inputs.jsonl").unlink()
    if stored is not None:
        (job / "inputs.jsonl").write_bytes(stored)
    with pytest.raises(OptionError, match=r"other inputs \(4 images then, 1 now\)"):
        run_job(compiled.path, [images / "1.png"], job, OPTIONS)


@pytest.mark.parametrize("text", ['{"mine": 1}', "no JSON", ""])
def test_a_job_file_of_another_program_is_not_replaced(
    compiled: CompiledBundle, images: Path, tmp_path: Path, text: str
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "job.json").write_text(text)
    (folder / "errors.jsonl").write_text("mine")
    before = content(folder)
    for overwrite in (False, True):
        with pytest.raises(BundleExistsError, match="is not a job; it is not changed"):
            run_job(compiled.path, [images], folder, JobOptions(overwrite=overwrite))
    assert content(folder) == before


def test_a_damaged_job_can_be_replaced(compiled: CompiledBundle, images: Path, job: Path) -> None:
    expected = content(job)
    (job / "job.json").write_text("damaged")
    with pytest.raises(InputError, match="Replace the job with --overwrite"):
        run_job(compiled.path, [images], job, OPTIONS)
    run_job(compiled.path, [images], job, dataclasses.replace(OPTIONS, overwrite=True))
    assert content(job) == expected


def test_files_of_the_user_in_the_folder_stay(compiled: CompiledBundle, images: Path, job: Path) -> None:
    (job / "classifier.clf").write_text("mine")
    run_job(compiled.path, [images], job, OPTIONS)
    assert (job / "classifier.clf").read_text() == "mine"


def test_a_job_file_that_was_edited_is_refused(compiled: CompiledBundle, images: Path, job: Path) -> None:
    settings = json.loads((job / "job.json").read_text())
    settings["schema"]["embedding_dtype"] = "float16"
    (job / "job.json").write_text(json.dumps(settings))
    (job / "records" / "part-00000001.json").unlink()
    with pytest.raises(InputError, match=r"job\.json' was changed since the job began"):
        run_job(compiled.path, [images], job, OPTIONS)


def test_a_record_of_another_shard_is_not_counted(compiled: CompiledBundle, images: Path, job: Path) -> None:
    shutil.copy(job / "records" / "part-00000000.json", job / "records" / "part-00000001.json")
    state = clipmlu.open_job(job).state()
    assert (state.finished_shards, state.damaged_shards) == (1, ("part-00000001",))
    report = run_job(compiled.path, [images], job, OPTIONS)
    assert (report.images, report.computed_shards) == (4, 1)


@pytest.mark.parametrize(
    "name", ["inputs.jsonl", "errors.jsonl", "shards/part-00000000.npy", "shards/all.csv", "records/x.csv"]
)
def test_an_export_never_replaces_files_of_the_job(job: Path, tmp_path: Path, name: str) -> None:
    before = content(job)
    link = tmp_path / "link"
    link.symlink_to(job)
    for folder in (job, link):
        with pytest.raises(OptionError, match="for the job's own files; choose another path"):
            clipmlu.open_job(job).export(folder / name, overwrite=True)
    assert content(job) == before


@pytest.fixture
def classes(compiled: CompiledBundle, images: Path, tmp_path: Path) -> Path:
    run_job(compiled.path, [images], tmp_path / "classes", CLASSES)
    return tmp_path / "classes"


@pytest.mark.parametrize("damage", [None, b"damaged"])
@pytest.mark.parametrize("finished", [False, True])
def test_a_lost_classifier_is_written_again(
    compiled: CompiledBundle, images: Path, classes: Path, damage: bytes | None, finished: bool
) -> None:
    expected = content(classes)
    (classes / "classifier.clf").unlink()
    if damage is not None:
        (classes / "classifier.clf").write_bytes(damage)
    if not finished:
        (classes / "records" / "part-00000001.json").unlink()
    report = run_job(compiled.path, [images], classes, CLASSES)
    assert report.computed_shards == (0 if finished else 1)
    assert content(classes) == expected


def test_a_job_whose_lost_classifier_is_computed_otherwise_here_is_only_replaced(
    compiled: CompiledBundle, images: Path, classes: Path
) -> None:
    expected = content(classes)
    stored = json.loads((classes / "job.json").read_text())
    (classes / "job.json").write_text(json.dumps({**stored, "classifier_sha256": 64 * "0"}))  # of another machine
    (classes / "classifier.clf").unlink()
    with pytest.raises(
        InputError, match=r"this machine computes other class embeddings\. Replace the job with --overwrite"
    ):
        run_job(compiled.path, [images], classes, CLASSES)
    assert not (classes / "classifier.clf").exists()
    run_job(compiled.path, [images], classes, dataclasses.replace(CLASSES, overwrite=True))
    assert content(classes) == expected


def test_verification_counts_the_shards_that_are_not_done(job: Path, run: Run) -> None:
    assert run("job", job, "--verify")[1] == "2 of 2 finished shard(s) are intact, with 4 rows.\n"
    (job / "records" / "part-00000001.json").unlink()
    code, out, _err = run("job", job, "--verify")
    assert (code, out) == (0, "1 of 1 finished shard(s) are intact, with 2 rows. 1 of 2 shard(s) are not done.\n")


@pytest.mark.parametrize("kind", [str, Path, os.fsencode])
def test_one_path_instead_of_a_list_is_refused(
    compiled: CompiledBundle, images: Path, tmp_path: Path, kind: Callable[[Path], str | Path | bytes]
) -> None:
    inputs: Any = kind(images)
    with pytest.raises(OptionError, match="expected a list of paths, such as "):
        run_job(compiled.path, inputs, tmp_path / "job", OPTIONS)


def test_a_file_is_no_job(images: Path) -> None:
    with pytest.raises(InputError, match=r"0\.png' is not a job: there is no such folder"):
        clipmlu.open_job(images / "0.png")


def test_an_empty_text_is_not_the_current_folder(
    compiled: CompiledBundle, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images)
    with pytest.raises(InputError, match="There are no images to read: Cannot read '': the input is an empty text"):
        run_job(compiled.path, [""], tmp_path / "job", OPTIONS)


def test_a_list_may_begin_with_a_byte_order_mark(compiled: CompiledBundle, images: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{images / '0.png'}\n{images / '1.png'}\n", encoding="utf-8-sig")
    report = run_job(compiled.path, JobInput(files_from=str(tmp_path / "list.txt")), tmp_path / "job", OPTIONS)
    assert (report.images, report.errors) == (2, 0)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_a_list_in_utf_16_or_32_is_refused(
    compiled: CompiledBundle, images: Path, tmp_path: Path, encoding: str
) -> None:
    """Cut at its zero bytes it would hold ``/``, and the whole disk would be searched."""
    (tmp_path / "list.txt").write_text(f"{images / '0.png'}\n", encoding=encoding)
    with pytest.raises(InputError, match=r"list\.txt': it is in UTF-16 or UTF-32\. Expected UTF-8"):
        run_job(compiled.path, JobInput(files_from=str(tmp_path / "list.txt")), tmp_path / "job", OPTIONS)


@pytest.mark.parametrize("name", ["a", "./1.png"])
def test_entries_between_zero_bytes_are_no_utf_16(
    compiled: CompiledBundle, images: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images)
    (images / "a").write_bytes((images / "0.png").read_bytes())
    (tmp_path / "list.txt").write_bytes(f"{name}\0./0.png\0./1.png\0./2.png\0".encode())
    report = run_job(compiled.path, JobInput(files_from=str(tmp_path / "list.txt")), tmp_path / "job", OPTIONS)
    assert (report.images, report.errors) == (4, 0)


def test_a_job_runs_with_a_closed_stderr(compiled: CompiledBundle, images: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clipmlu", "embed", compiled.path, images, "-o", tmp_path / "job"]
    command += ["--shard-size", "2", "--shard-format", "npy"]
    assert subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *command], check=False).returncode == 0
    run_job(compiled.path, [images], tmp_path / "expected", OPTIONS)
    assert content(tmp_path / "job") == content(tmp_path / "expected")
