"""Jobs and embedding files for tests of the index."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import support
from cli.conftest import run
from clipmlu.jobs.options import JobOptions
from clipmlu.jobs.run import run_job

__all__ = ["run"]

COUNT, BROKEN = 8, 3


@pytest.fixture(scope="session")
def _place_once(tmp_path_factory: pytest.TempPathFactory, compiled_once: Path) -> Path:
    """What ``place`` copies."""
    root = tmp_path_factory.mktemp("indexed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        shutil.copytree(compiled_once, "tiny-cpu")
        Path("photos").mkdir()
        for number in range(COUNT):
            support.picture(number).save(f"photos/{number}.png")
        Path(f"photos/{BROKEN}.png").write_bytes(b"no image")
        make_job()
    return root


@pytest.fixture
def place(_place_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: ``tiny-cpu``, ``photos`` with 8 images of which one is broken, and ``job``, a job of three shards."""
    root = tmp_path / "place"
    shutil.copytree(_place_once, root)
    job = root / "job" / "job.json"
    job.write_text(job.read_text().replace(str(_place_once), str(root)))  # as if it had been begun there
    monkeypatch.chdir(root)
    return root


def make_job(output: str = "job", images: str = "photos", shard_format: str = "npy", dtype: str = "float32") -> None:
    options = JobOptions(shard_size=3, shard_format=shard_format, dtype=dtype, batch_size=4)  # type: ignore[arg-type]
    run_job("tiny-cpu", [images], output, options)
