"""Jobs on the command line: exit codes, notes, and options that do not go together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clipmlu.bundle.directory import CompiledBundle

Run = Callable[..., tuple[int, str, str]]


def test_embed_into_a_folder_is_a_job(run: Run, compiled: CompiledBundle, photos: Path, tmp_path: Path) -> None:
    job = tmp_path / "job"
    command = ("embed", compiled.path, photos, "-o", job, "--shard-size", 4, "--shard-format", "npy")
    code, out, err = run(*command)
    assert (code, out) == (1, "")
    *lines, done, index, status = err.splitlines()
    assert lines == [
        "Left out: 1 file(s) of other types (.txt 1).",
        f"1 image(s) could not be read; see {job / 'errors.jsonl'}",
    ]
    assert done.startswith(f"Wrote 6 rows in 2 shard(s) to {job}; 6 images in ")
    assert done.endswith(" images/s")
    assert (index, status) == (f"Next: clipmlu index {job}", f"      clipmlu job {job}")
    code, _, err = run(*command, "--max-errors", "20%")
    assert code == 0
    assert f"Wrote 6 rows in 2 shard(s) to {job}\n" in err
    code, _, err = run(*command, "--max-errors", "0")
    assert code == 1
    assert err.splitlines() == [
        f"clipmlu: 1 of 6 image(s) could not be read, more than 0 (--max-errors); see '{job / 'errors.jsonl'}'. The finished "
        "shards are kept: go on with a higher limit, or correct the images and begin again with --overwrite."
    ]


def test_classify_into_a_folder_stores_what_it_prints(
    run: Run, compiled: CompiledBundle, photos: Path, tmp_path: Path
) -> None:
    classes = ("classify", compiled.path, photos, "--labels", "cat,dog,owl", "--top-k", 2)
    code, out, _ = run(*classes, "--format", "jsonl")
    printed = {line["source"]: line for line in map(json.loads, out.splitlines())}
    code, out, _ = run(*classes, "-o", tmp_path / "job", "--shard-format", "npy", "--embeddings", "--dtype", "float16")
    assert (code, out) == (1, "")
    (path,) = (tmp_path / "job" / "shards").glob("*.jsonl")
    stored = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(stored) == len(printed) + 1
    for line in stored:
        if line["error"] is None:
            expected = printed[line["id"]]["predictions"]
            assert line["classes"] == [each["class_name"] for each in expected]
            np.testing.assert_allclose(line["scores"], [each["score"] for each in expected], rtol=1e-5)
    assert np.load(path.with_suffix(".npy")).dtype == np.float16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("embed", "-o", "x.npy", "--shard-size", 5), "--shard-size is for a job: give -o DIR, not a .npy file"),
        (("embed", "-o", "x.npy", "--max-errors", 5), "--max-errors is for a job: give -o DIR, not a .npy file"),
        (("embed", "-o", "x.parquet"), "output is 'x.parquet'; expected a folder for a job, or a file NAME.npy"),
        (
            ("embed", "-o", "job", "--max-errors", "x"),
            "max errors is 'x'; expected a number of images, such as 100, or",
        ),
        (
            ("classify", "--labels", "a,b", "--dtype", "float16"),
            "--dtype is for a job: give -o DIR, not standard output",
        ),
        (("classify", "--labels", "a,b", "--embeddings"), "--embeddings is for a job: give -o DIR"),
        (("classify", "--labels", "a,b", "-o", "x.npy"), "output is 'x.npy'; expected a folder for a job"),
        (("classify", "--labels", "a,b", "-o", "job", "--format", "csv"), "--format is for standard output and files"),
        (("classify", "--labels", "a,b", "-o", "job", "--dtype", "float16"), "--dtype is about stored embeddings; add"),
        (("classify", "--labels", "a,b", "-o", "job", "--save-classifier", "c"), "--save-classifier does not go with"),
    ],
)
def test_options_that_do_not_go_together(
    run: Run, compiled: CompiledBundle, photos: Path, options: tuple[object, ...], message: str
) -> None:
    command, *rest = options
    code, out, err = run(command, compiled.path, photos, *rest)
    assert (code, out) == (2, "")
    assert f"clipmlu: {message}" in err
    assert len(err.splitlines()) == 1


def test_texts_are_no_job(run: Run, compiled: CompiledBundle, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("cat\n")
    code, _, err = run("embed", compiled.path, "--texts", tmp_path / "texts.txt", "-o", tmp_path / "job")
    assert (code, err) == (
        2,
        f"clipmlu: --texts writes a file; expected -o NAME.npy, not the folder '{tmp_path / 'job'}'\n",
    )


def test_another_job_or_folder_is_not_replaced(
    run: Run, compiled: CompiledBundle, photos: Path, tmp_path: Path
) -> None:
    code, _, err = run("embed", compiled.path, photos, "-o", photos, "--overwrite")
    assert (code, err) == (
        1,
        f"clipmlu: Output '{photos}' exists and is not a job; it is not changed. Choose another path.\n",
    )
    job = ("-o", tmp_path / "job", "--shard-format", "npy")
    run("embed", compiled.path, photos, *job)
    code, _, err = run("embed", compiled.path, photos / "sub", *job)
    assert code == 2
    assert err.startswith(f"clipmlu: job '{tmp_path / 'job'}' was begun with other inputs (6 images then, 2 now; ")
    assert run("embed", compiled.path, photos / "sub", *job, "--overwrite")[0] == 0
    assert not (tmp_path / "job" / "errors.jsonl").exists()
