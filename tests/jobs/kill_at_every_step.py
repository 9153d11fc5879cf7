"""Run by ``test_crashes``: kills a job at each of its changes of files, runs it again, and compares the folder.

Each job runs in a process that is forked from this one, and is killed when the audit event of its n-th change comes. Arguments: a
compiled bundle, a folder of images, a scratch folder, what runs, and the distance of the steps that are tried.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import clipmlu
from clipmlu.backends import get_backend
from clipmlu.backends.provenance import provenance_of  # noqa: F401  imported before the fork, to be imported once
from clipmlu.bundle.directory import open_compiled
from clipmlu.jobs.options import ClassificationOptions, JobOptions

_CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate"}
_FIRST = JobOptions(shard_size=2, shard_format="npy")
_CLASSES = ClassificationOptions(class_names=["a", "b", "c"], top_k=2)
_RUNS = {
    "new": JobOptions(shard_size=3, shard_format="npy"),
    "classify": JobOptions(shard_size=3, shard_format="npy", classification=_CLASSES),
    "overwrite": JobOptions(shard_size=3, shard_format="npy", classification=_CLASSES, overwrite=True),
}


def run_forked(bundle: Path, images: Path, job: Path, options: JobOptions, last_step: int | None) -> int:
    """Run a job in a forked process; return the number of its changes, or -1 if it was killed at ``last_step``."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        steps = 0

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal steps
            flags = arguments[2] if event == "open" else 0
            changes = event in _CHANGES or (isinstance(flags, int) and flags & (os.O_CREAT | os.O_TRUNC))
            if changes and str(job) in str(arguments[0]):
                if steps == last_step:
                    os.kill(os.getpid(), signal.SIGKILL)
                steps += 1

        sys.addaudithook(count)
        clipmlu.run_job(bundle, [images], job, options)
        os.write(writing, str(steps).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        text = stream.read()
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the job failed"
    return int(text) if text else -1


def content(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder, hidden ones too, and its empty folders."""
    return {
        str(path.relative_to(folder)): b"" if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() or not any(path.iterdir())
    }


def main() -> None:
    """Try the steps of one kind of run."""
    bundle, images, scratch = map(Path, sys.argv[1:4])
    options, distance = _RUNS[sys.argv[4]], int(sys.argv[5])
    get_backend(open_compiled(bundle).compilation.backend).probe()
    job, before = scratch / "job", scratch / "before"
    if options.overwrite:
        run_forked(bundle, images, before, _FIRST, None)

    def restore() -> None:
        shutil.rmtree(job, ignore_errors=True)
        if before.exists():
            shutil.copytree(before, job)

    restore()
    steps = run_forked(bundle, images, job, options, None)
    undisturbed = content(job)
    for step in range(0, steps, distance):
        restore()
        assert run_forked(bundle, images, job, options, step) == -1, f"step {step} was not reached"
        run_forked(bundle, images, job, options, None)
        assert content(job) == undisturbed, f"step {step} of {steps}"
        assert not [path.name for path in scratch.iterdir() if path.name.startswith(".")], f"step {step}"
    print(steps)


if __name__ == "__main__":
    main()
