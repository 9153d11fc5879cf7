"""Jobs that end early: what is left, and that the same command completes them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import support
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.errors import OutputError
from clipmlu.jobs.folder import ShardRecord
from clipmlu.jobs.options import JobOptions
from clipmlu.jobs.run import run_job

NPY = JobOptions(shard_size=3, shard_format="npy")
SCRIPT = Path(__file__).with_name("kill_at_every_step.py")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(7):
        support.picture(number).save(folder / f"{number}.png")
    (folder / "4.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def undisturbed(compiled: CompiledBundle, images: Path, tmp_path: Path) -> dict[str, bytes]:
    run_job(compiled.path, [images], tmp_path / "undisturbed", NPY)
    return content(tmp_path / "undisturbed")


def content(job: Path) -> dict[str, bytes]:
    return {str(path.relative_to(job)): path.read_bytes() for path in sorted(job.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("kind", "distance"), [("new", 11), pytest.param("overwrite", 9, marks=pytest.mark.slow)])
def test_a_job_killed_at_any_change_of_files_is_completed_by_the_same_command(
    compiled: CompiledBundle, images: Path, tmp_path: Path, kind: str, distance: int
) -> None:
    (tmp_path / "scratch").mkdir()
    command = [sys.executable, SCRIPT, compiled.path, images, tmp_path / "scratch", kind, str(distance)]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40


def test_an_interruption_keeps_the_finished_shards_and_the_list_of_errors(
    compiled: CompiledBundle, images: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    def interrupt(record: ShardRecord) -> None:
        if record.number == 1:
            raise KeyboardInterrupt

    job = tmp_path / "job"
    with pytest.raises(KeyboardInterrupt):
        run_job(compiled.path, [images], job, NPY, on_shard=interrupt)
    kept = content(job)
    assert kept["errors.jsonl"].count(b"4.png") == 2  # as id and in the reason
    assert all(undisturbed[name] == value for name, value in kept.items())
    assert run_job(compiled.path, [images], job, NPY).computed_shards == 3 - sum("records" in name for name in kept)
    assert content(job) == undisturbed


def test_a_damaged_list_of_the_input_is_written_again(
    compiled: CompiledBundle, images: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    job = shutil.copytree(tmp_path / "undisturbed", tmp_path / "job")
    (job / "inputs.jsonl").write_bytes(b"{")
    (job / "records" / "part-00000002.json").unlink()
    run_job(compiled.path, [images], job, NPY)
    assert content(job) == undisturbed


def test_a_second_process_waits_and_computes_what_is_left(
    compiled: CompiledBundle, images: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    (tmp_path / "job").mkdir()
    held, notes = os.open(tmp_path / "job", os.O_RDONLY), list[str]()
    fcntl.flock(held, fcntl.LOCK_EX)

    def let_go(note: str) -> None:
        """The other process has done all shards but one."""
        notes.append(note)
        shutil.copytree(tmp_path / "undisturbed", tmp_path / "job", dirs_exist_ok=True)
        (tmp_path / "job" / "records" / "part-00000001.json").unlink()
        os.close(held)

    report = run_job(compiled.path, [images], tmp_path / "job", NPY, on_note=let_go)
    assert notes == [f"waiting for another process that works on the job in {tmp_path / 'job'}"]
    assert report.computed_shards == 1
    assert content(tmp_path / "job") == undisturbed


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_signals_end_the_command_with_a_note_that_it_goes_on(
    compiled: CompiledBundle, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    (tmp_path / "many").mkdir()
    support.picture(1).resize((700, 700)).save(tmp_path / "many" / "00.png")
    for image in range(1, 30):
        shutil.copy(tmp_path / "many" / "00.png", tmp_path / "many" / f"{image:02d}.png")
    job = tmp_path / "job"
    command = (
        "embed",
        compiled.path,
        tmp_path / "many",
        "-o",
        job,
        "--shard-size",
        1,
        "--batch-size",
        1,
        "--workers",
        1,
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "clipmlu", *map(str, command), "--shard-format", "npy"],
        stderr=subprocess.PIPE,
        text=True,
    )
    support.wait_until(lambda: process.poll() is not None or any((job / "records").glob("*.json")))
    _, err = support.end_by_signal(process, number)
    assert process.returncode == code
    assert f"What was computed is kept in {job}; the same command goes on from there." in err.splitlines()
    names = sorted(path.name for path in job.iterdir())
    assert names == ["inputs.jsonl", "job.json", "records", "shards"]


def test_a_limit_of_file_sizes_is_one_line_and_the_job_goes_on_without_it(
    compiled: CompiledBundle, images: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    """Stands for a full disk, too: both are errors of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(record: ShardRecord) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))

    job = tmp_path / "job"
    try:
        with pytest.raises(OutputError) as caught:
            run_job(compiled.path, [images], job, NPY, on_shard=limit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    path = job / "shards" / "part-00000001.npy"
    assert str(caught.value) == f"'{path}' is larger than the file size limit; nothing was written. See 'ulimit -f'."
    assert sorted(content(job)) == [
        name for name in sorted(undisturbed) if "1." not in name and "2." not in name and "errors" not in name
    ]
    assert run_job(compiled.path, [images], job, NPY).computed_shards == 2
    assert content(job) == undisturbed


def test_a_full_disk_is_one_line_and_the_job_goes_on_when_there_is_space(
    compiled: CompiledBundle, images: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:

        def fill(record: ShardRecord) -> None:
            with contextlib.suppress(OSError), (disk / "other").open("wb", buffering=0) as stream:
                while True:
                    stream.write(bytes(4096))

        with pytest.raises(
            OutputError, match=r"^No space left on the disk of .*part-00000001\.npy\'; nothing was written\."
        ):
            run_job(compiled.path, [images], disk / "job", NPY, on_shard=fill)
        (disk / "other").unlink()
        assert run_job(compiled.path, [images], disk / "job", NPY).computed_shards == 2
        assert content(disk / "job") == undisturbed
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
