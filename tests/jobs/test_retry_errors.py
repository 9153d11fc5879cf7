"""``--retry-errors``: images that could not be read are tried again, and nothing else changes."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import clipmlu
import support
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.jobs.folder import ShardRecord
from clipmlu.jobs.formats import FormatName
from clipmlu.jobs.options import JobOptions
from clipmlu.jobs.run import run_job
from jobs.test_crashes import content


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of six paths, of which 1.png and 5.png do not exist."""
    for number in (0, 2, 3, 4):
        support.picture(number).save(tmp_path / f"{number}.png")
    path = tmp_path / "images.parquet"
    pq.write_table(pa.table({"path": [f"{number}.png" for number in range(6)]}), path)
    return path


def options(shard_format: FormatName, *, retry_errors: bool) -> JobOptions:
    return JobOptions(shard_size=2, shard_format=shard_format, retry_errors=retry_errors)


@pytest.mark.parametrize("shard_format", ["parquet", "npy", "csv", "jsonl"])
def test_shards_with_errors_are_computed_again_and_become_those_of_a_job_without(
    compiled: CompiledBundle, tmp_path: Path, table: Path, shard_format: FormatName
) -> None:
    job, wanted = tmp_path / "job", tmp_path / "wanted"
    run_job(compiled.path, [table], job, options(shard_format, retry_errors=False))
    before = content(job)
    assert before["errors.jsonl"].count(b"\n") == 2
    again = run_job(compiled.path, [table], job, options(shard_format, retry_errors=True))
    assert (again.computed_shards, again.computed_images, again.errors) == (2, 4, 2)
    assert content(job) == before
    support.picture(1).save(tmp_path / "1.png")
    assert run_job(compiled.path, [table], job, options(shard_format, retry_errors=False)).computed_shards == 0
    assert content(job) == before
    assert run_job(compiled.path, [table], job, options(shard_format, retry_errors=True)).errors == 1
    support.picture(5).save(tmp_path / "5.png")
    last = run_job(compiled.path, [table], job, options(shard_format, retry_errors=True))
    assert (last.computed_shards, last.images, last.errors) == (1, 6, 0)
    run_job(compiled.path, [table], wanted, options(shard_format, retry_errors=False))
    assert content(job) == content(wanted)
    assert "errors.jsonl" not in content(job)


def test_a_retry_that_is_interrupted_leaves_whole_shards(compiled: CompiledBundle, tmp_path: Path, table: Path) -> None:
    job = tmp_path / "job"
    run_job(compiled.path, [table], job, options("npy", retry_errors=False))
    support.picture(1).save(tmp_path / "1.png")
    support.picture(5).save(tmp_path / "5.png")

    def interrupt(_record: ShardRecord) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(compiled.path, [table], job, options("npy", retry_errors=True), on_shard=interrupt)
    assert not clipmlu.open_job(job).verify().damages
    assert clipmlu.open_job(job).state().errors <= 1
    run_job(compiled.path, [table], job, options("npy", retry_errors=True))
    run_job(compiled.path, [table], tmp_path / "wanted", options("npy", retry_errors=False))
    assert content(job) == content(tmp_path / "wanted")


def test_a_record_never_belongs_to_other_files_than_those_that_are_there(
    compiled: CompiledBundle, tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed after the shard's files were replaced, and before its record was, leaves a shard that is not done."""
    job = tmp_path / "job"
    run_job(compiled.path, [table], job, options("npy", retry_errors=False))
    support.picture(1).save(tmp_path / "1.png")
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if target.parent.name == "records":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run_job(compiled.path, [table], job, options("npy", retry_errors=True))
    assert not clipmlu.open_job(job).verify().damages
    assert clipmlu.open_job(job).state().finished_shards == 2
