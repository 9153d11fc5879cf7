"""Workers of a job check that they are where the job is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import support
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.errors import OutputError
from clipmlu.jobs.folder import JobFolder
from clipmlu.jobs.options import JobOptions
from clipmlu.jobs.run import run_job
from clipmlu.jobs.shard_work import ShardWork
from clipmlu.jobs.work import MachineShare


def test_another_folder_at_the_path_of_the_job_is_refused(compiled: CompiledBundle, tmp_path: Path) -> None:
    """As on a machine where the path is a folder of its own, with the job of an earlier run or with none."""
    support.picture(1).save(tmp_path / "a.png")
    options = JobOptions(shard_format="npy")
    run_job(compiled.path, [tmp_path / "a.png"], tmp_path / "job", options)
    job = JobFolder(tmp_path / "job")
    manifest = job.read_manifest()
    assert manifest is not None
    work = ShardWork(bundle=compiled.path, folder=job.path, manifest=manifest, options=options, mark=job.mark())
    with work.open(MachineShare()):
        pass
    shutil.copytree(tmp_path / "job", tmp_path / "copy", copy_function=shutil.copyfile)
    os.utime(tmp_path / "copy" / "job.json", ns=(1, 1))
    shutil.rmtree(tmp_path / "job")
    with (
        pytest.raises(OutputError, match=r"finds no job in '.*job'\. All machines must have"),
        work.open(MachineShare()),
    ):
        pass
    (tmp_path / "copy").rename(tmp_path / "job")
    with pytest.raises(OutputError, match="finds another job in"), work.open(MachineShare()):
        pass
