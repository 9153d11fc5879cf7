"""Kills a job in this process at steps of its file operations and resumes it: ``python killing_job.py BUNDLE FOLDER STRIDE``.

It kills at every STRIDE-th step, and prints the number of kills, and for each killed step what differs after the resumed run. Steps are those of
``killing.kill_at``.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "files"))

from killing import kill_at

from clipmlu.host import import_onnxruntime
from clipmlu.jobs.options import JobOptions
from clipmlu.jobs.run import run_job

_NEVER = 1 << 30


def run(bundle: Path, folder: Path) -> None:
    """The job that is killed and resumed."""
    run_job(bundle, [folder / "images"], folder / "job", JobOptions(shard_size=4, workers=1))


def content(folder: Path) -> dict[str, bytes]:
    """All files of the job and its neighbours, temporary ones too."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "images")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def killed_run(bundle: Path, folder: Path, step: int) -> bool:
    """Run the job from its beginning and kill it at a step; whether it came to its end before."""
    shutil.rmtree(folder / "job", ignore_errors=True)
    return kill_at(step, lambda: run(bundle, folder))


def main(bundle: Path, folder: Path, stride: int) -> dict[str, object]:
    """Kill at every ``stride``-th step, and resume after each."""
    import_large_packages()
    assert killed_run(bundle, folder, _NEVER)
    expected = content(folder)
    wrong: dict[int, list[str]] = {}
    kills = 0
    while not killed_run(bundle, folder, kills * stride):
        assert kill_at(_NEVER, lambda: run(bundle, folder)), "it should have come to its end"
        found = content(folder)
        if different := [name for name in {*found, *expected} if found.get(name) != expected.get(name)]:
            wrong[kills * stride] = different
        kills += 1
    return {"kills": kills, "wrong": wrong}


def import_large_packages() -> None:
    """Import what each killed process would import again; nothing of it starts threads that a fork would lose."""
    import_onnxruntime()
    importlib.import_module("pyarrow.parquet")


if __name__ == "__main__":
    json.dump(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])), sys.stdout)
