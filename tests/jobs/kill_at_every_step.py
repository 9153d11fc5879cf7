"""Run by ``test_crashes``: kills a job at each of its changes of files, runs it again, and compares the folder.

Each job runs in a process that is forked from this one, and is killed when the audit event of its n-th change comes. Arguments: a
compiled bundle, a folder of images, a scratch folder, what runs, and the distance of the steps that are tried.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import clipmlu
from clipmlu.backends import get_backend
from clipmlu.backends.provenance import provenance_of  # noqa: F401  imported before the fork, to be imported once
from clipmlu.bundle.directory import open_compiled
from clipmlu.jobs.options import ClassificationOptions, JobOptions
from kill_at_steps import content, run_forked

_FIRST = JobOptions(shard_size=2, shard_format="npy")
_CLASSES = ClassificationOptions(class_names=["a", "b", "c"], top_k=2)
_RUNS = {
    "new": JobOptions(shard_size=3, shard_format="npy"),
    "classify": JobOptions(shard_size=3, shard_format="npy", classification=_CLASSES),
    "overwrite": JobOptions(shard_size=3, shard_format="npy", classification=_CLASSES, overwrite=True),
}


def run(bundle: Path, images: Path, job: Path, options: JobOptions, last_step: int | None) -> int:
    """Run a job in a forked process; see ``run_forked``."""
    return run_forked(lambda: clipmlu.run_job(bundle, [images], job, options), job, last_step)


def main() -> None:
    """Try the steps of one kind of run."""
    bundle, images, scratch = map(Path, sys.argv[1:4])
    options, distance = _RUNS[sys.argv[4]], int(sys.argv[5])
    get_backend(open_compiled(bundle).compilation.backend).probe()
    job, before = scratch / "job", scratch / "before"
    if options.overwrite:
        run(bundle, images, before, _FIRST, None)

    def restore() -> None:
        shutil.rmtree(job, ignore_errors=True)
        if before.exists():
            shutil.copytree(before, job)

    restore()
    steps = run(bundle, images, job, options, None)
    undisturbed = content(job)
    for step in range(0, steps, distance):
        restore()
        assert run(bundle, images, job, options, step) == -1, f"step {step} was not reached"
        run(bundle, images, job, options, None)
        assert content(job) == undisturbed, f"step {step} of {steps}"
        assert not [path.name for path in scratch.iterdir() if path.name.startswith(".")], f"step {step}"
    print(steps)


if __name__ == "__main__":
    main()
