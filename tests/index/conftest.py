"""Jobs and embedding files for tests of the index."""

from __future__ import annotations

from pathlib import Path

import pytest

import support
from cli.conftest import run
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.jobs.options import JobOptions
from clipmlu.jobs.run import run_job

__all__ = ["run"]

COUNT, BROKEN = 8, 3


@pytest.fixture
def place(tmp_path: Path, compiled: CompiledBundle, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: ``tiny-cpu``, ``photos`` with 8 images of which one is broken, and ``job``, a job of three shards."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(COUNT):
        support.picture(number).save(folder / f"{number}.png")
    (folder / f"{BROKEN}.png").write_bytes(b"no image")
    make_job()
    return tmp_path


def make_job(output: str = "job", images: str = "photos", shard_format: str = "npy", dtype: str = "float32") -> None:
    options = JobOptions(shard_size=3, shard_format=shard_format, dtype=dtype, batch_size=4)  # type: ignore[arg-type]
    run_job("tiny-cpu", [images], output, options)
