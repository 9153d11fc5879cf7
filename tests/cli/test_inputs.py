"""Inputs of `embed` and `classify` that hold many images, with and without a job."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import clipmlu
import support
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.data.datasets import open_dataset

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Three pictures as files, in a tar archive and in a Parquet file, each in a folder of its own."""
    for name in ("files", "tars", "tables"):
        (tmp_path / name).mkdir()
    contents = []
    for number in range(3):
        support.picture(number).save(tmp_path / "files" / f"{number}.png")
        contents.append((tmp_path / "files" / f"{number}.png").read_bytes())
    with tarfile.open(tmp_path / "tars" / "a.tar", "w") as tar:
        for number, content in enumerate(contents):
            header = tarfile.TarInfo(f"{number}.png")
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    columns = {"photo": contents, "thumbnail": [b""] * 3, "key": ["a", "b", "c"]}
    pq.write_table(pa.table(columns), tmp_path / "tables" / "a.parquet")
    (tmp_path / "list").write_text("\n".join(str(tmp_path / "files" / f"{number}.png") for number in range(3)))
    return tmp_path


def given(sources: Path, kind: str) -> tuple[object, ...]:
    return {
        "files": (sources / "files",),
        "tar": (sources / "tars" / "a.tar",),
        "parquet": (sources / "tables" / "a.parquet", "--image-column", "photo", "--id-column", "key"),
        "list": ("--files-from", sources / "list"),
    }[kind]


def ids(sources: Path, kind: str) -> list[str]:
    return {
        "tar": [f"{sources}/tars/a.tar::{number}.png" for number in range(3)],
        "parquet": ["a", "b", "c"],
    }.get(kind, [f"{sources}/files/{number}.png" for number in range(3)])


@pytest.mark.parametrize("kind", ["files", "tar", "parquet", "list"])
def test_each_kind_gives_the_same_embeddings_in_a_file_and_in_a_job(
    run: Run, compiled: CompiledBundle, sources: Path, kind: str
) -> None:
    with clipmlu.load(compiled.path) as model:
        expected = model.embed_images([sources / "files" / f"{number}.png" for number in range(3)])
    for output in ("out.npy", "job"):
        code, _, err = run("embed", compiled.path, *given(sources, kind), "-o", sources / output)
        assert code == 0, err
    np.testing.assert_array_equal(np.load(sources / "out.npy"), expected)
    assert json.loads((sources / "out.ids.json").read_text()) == ids(sources, kind)
    rows = [row for path in sorted((sources / "job" / "shards").iterdir()) for row in pq.read_table(path).to_pylist()]
    assert [row["id"] for row in rows] == ids(sources, kind)
    np.testing.assert_array_equal(np.array([row["embedding"] for row in rows], np.float32), expected)
    code, out, _ = run("classify", compiled.path, *given(sources, kind), "--labels", "x,y", "--format", "jsonl")
    assert code == 0
    assert [json.loads(line)["source"] for line in out.splitlines()] == ids(sources, kind)


def test_files_that_hold_many_images_are_used_in_folders_by_jobs_and_counted_by_other_commands(
    run: Run, compiled: CompiledBundle, sources: Path
) -> None:
    code, _, err = run("embed", compiled.path, sources, "--image-column", "photo", "-o", sources / "out.npy")
    assert (code, len(np.load(sources / "out.npy"))) == (0, 3)
    assert ".parquet 1" in err
    assert ".tar 1" in err
    code, _, err = run("embed", compiled.path, sources, "--image-column", "photo", "-o", sources / "job")
    assert code == 0
    assert "Wrote 9 rows" in err


def test_a_job_is_resumed_with_the_same_column_only(run: Run, compiled: CompiledBundle, sources: Path) -> None:
    table = sources / "tables" / "a.parquet"
    arguments = ("embed", compiled.path, table, "-o", sources / "job")
    assert run(*arguments, "--image-column", "photo")[0] == 0
    assert run(*arguments, "--image-column", "photo")[0] == 0
    code, _, err = run(*arguments, "--image-column", "thumbnail")
    assert code == 2
    assert f"the first that was changed: '{table}'" in err
    code, _, err = run(*arguments)
    assert code == 1
    assert "several columns that may hold the images: 'photo' (binary), 'thumbnail' (binary)" in err


def test_a_dataset_is_embedded_with_its_keys(run: Run, compiled: CompiledBundle, tmp_path: Path) -> None:
    for number in range(6):
        path = tmp_path / "shapes" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        support.picture(number).save(path)
    dataset = open_dataset(f"imagefolder:{tmp_path / 'shapes'}")
    for output in ("out.npy", "job"):
        code, _, err = run("embed", compiled.path, "--dataset", dataset.name, "-o", tmp_path / output)
        assert code == 0, err
    assert json.loads((tmp_path / "out.ids.json").read_text()) == [dataset.key(index) for index in range(len(dataset))]
    with clipmlu.load(compiled.path) as model:
        expected = model.embed_images([dataset.image(index) for index in range(4)])
    np.testing.assert_allclose(np.load(tmp_path / "out.npy")[:4], expected, atol=1e-6)
    (shard,) = (tmp_path / "job" / "shards").iterdir()
    assert pq.read_table(shard)["id"].to_pylist() == [dataset.key(index) for index in range(len(dataset))]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--split", "train"), 2, "--split is about a --dataset"),
        (("--dataset", "cifar1"), 2, "Unknown dataset 'cifar1'"),
        (("--files-from", "none"), 1, "'none': No such file or directory. Expected a list of paths"),
    ],
)
def test_an_input_that_is_wrong_is_one_line(
    run: Run, compiled: CompiledBundle, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    assert_code, _, err = run("embed", compiled.path, *arguments, "-o", tmp_path / "job")
    assert assert_code == code
    assert message in err
