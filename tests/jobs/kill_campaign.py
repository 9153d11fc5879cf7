"""Kills a job at random moments, runs the same command again, and compares the outcome with an undisturbed run.

``python tests/jobs/kill_campaign.py --kills 200 [--engine serial|processes|ray]`` prints a line for each job that came to its end,
and a summary; the exit code is 1 if anything differs or is left over. A round is one job: it is started and killed until it ends by
itself, and then exported to one file, with the same treatment.

SIGKILL goes to the command, to one of its descendants, or to all of them. The moment is a time, drawn over the length of an undisturbed
run, or a change of the job's folder, so that planning, computing, writing and exporting are all hit.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import support
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions

ENGINES: dict[str, tuple[str, ...]] = {
    "serial": (),
    "processes": ("--processes", "2"),
    "ray": ("--engine", "ray", "--processes", "2"),
}
_MARK = "CLIPMLU_KILL_CAMPAIGN"
_END_S = 30.0  # for processes of a killed command to end
_EARLIER_FOLDERS = frozenset(Path("/tmp").glob("clipmlu-ray-*"))
_CHANGES = 40  # of the job's folder, among which a moment is drawn


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all rounds share.

    Attributes:
        folder: work folder; its sub-folder ``out`` holds the jobs.
        engine: further arguments of the command.
        shard_size: images per shard.
        mark: value of an environment variable that all processes of the campaign inherit.
    """

    folder: Path
    engine: tuple[str, ...]
    shard_size: int
    mark: str

    @property
    def job(self) -> Path:
        """Folder of the job."""
        return self.folder / "out" / "job"

    @property
    def exported(self) -> Path:
        """File of the export."""
        return self.folder / "out" / "all.npy"

    def embed(self) -> list[str]:
        """The command that is killed and run again."""
        return self._clipmlu(
            "embed",
            self.folder / "bundle",
            self.folder / "images",
            "-o",
            self.job,
            "--shard-size",
            self.shard_size,
            *self.engine,
        )

    def export(self) -> list[str]:
        """The command that makes one file of the job."""
        return self._clipmlu("job", self.job, "--export", self.exported, "--overwrite")

    def start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a command as the leader of a session."""
        temporary, cache = self.folder / "tmp", self.folder / "cache"
        variables = {**os.environ, "TMPDIR": str(temporary), "CLIPMLU_CACHE_DIR": str(cache), _MARK: self.mark}
        log = (self.folder / "log.txt").open("ab")
        return subprocess.Popen(command, stdout=log, stderr=log, env=variables, start_new_session=True)

    def processes(self) -> list[int]:
        """All processes of the campaign's commands, without those that have ended and wait for their parent."""
        found = []
        for entry in os.scandir("/proc"):
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and self.mark.encode() in Path(entry.path, "environ").read_bytes():
                    found.append(int(entry.name))
        return [pid for pid in found if pid != os.getpid()]

    @staticmethod
    def _clipmlu(*arguments: object) -> list[str]:
        return [sys.executable, "-m", "clipmlu", *map(str, arguments)]


def prepare(folder: Path, images: int, engine: str, shard_size: int) -> Bench:
    """Write a bundle, small images and some damaged ones."""
    for name in ("images", "out", "tmp", "cache"):
        (folder / name).mkdir(parents=True)
    exported = support.write_exported(folder / "exported")
    compile_bundle(exported, folder / "bundle", CompileOptions(target="cpu", batch_size=4, max_batch=8))
    for number in range(images):
        path = folder / "images" / f"{number:05}.png"
        support.picture(number).save(path)
        if number % 97 == 50:
            path.write_bytes(path.read_bytes()[:-30])
    return Bench(folder, ENGINES[engine], shard_size, uuid.uuid4().hex)


def digests(root: Path) -> dict[str, str]:
    """Map each file below a folder to its SHA-256."""
    paths = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def undisturbed(bench: Bench) -> tuple[dict[str, str], float]:
    """Run both commands without a kill; returns the files and the seconds of the job."""
    start = time.monotonic()
    code = bench.start(bench.embed()).wait()
    seconds = time.monotonic() - start
    assert code in (0, 1), (bench.folder / "log.txt").read_text()
    assert bench.start(bench.export()).wait() == 0, (bench.folder / "log.txt").read_text()
    return digests(bench.folder / "out"), seconds


def run_killed(bench: Bench, command: Sequence[str], seconds: float, random_: random.Random) -> tuple[str, int | None]:
    """Run a command and kill it; returns what was killed, and the exit code of a command that ended by itself."""
    process = bench.start(command)
    victim = random_.choice(("command", "descendant", "all"))
    if random_.random() < 0.5:
        _wait(process, random_.uniform(0.2, 0.9) * seconds)
    else:
        _wait_for_changes(process, bench.folder / "out", random_.randrange(_CHANGES))
    if process.poll() is None:
        _kill(bench, process, victim, random_)
        if victim == "descendant":
            code = process.wait(300)  # another worker takes its place
            return victim, None if code == -signal.SIGKILL else code
        process.wait(300)
        return victim, None
    return "nothing", process.returncode


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def _wait_for_changes(process: subprocess.Popen[bytes], folder: Path, changes: int) -> None:
    """Wait until files came or went so many times."""
    seen = _names(folder)
    while changes >= 0 and process.poll() is None:
        names = _names(folder)
        changes -= names != seen
        seen = names


def _names(folder: Path) -> frozenset[str]:
    found: list[str] = []
    waiting = [str(folder)]
    while waiting:
        with contextlib.suppress(OSError):
            for entry in os.scandir(waiting.pop()):
                found.append(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
    return frozenset(found)


def _kill(bench: Bench, process: subprocess.Popen[bytes], victim: str, random_: random.Random) -> None:
    others = [pid for pid in bench.processes() if pid != process.pid]
    pids = {"command": [process.pid], "all": [process.pid, *others]}.get(victim)
    if pids is None:
        pids = [random_.choice(others)] if others else [process.pid]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def left_over(bench: Bench) -> list[str]:
    """Processes that did not end, and temporary files, after a command that came to its end."""
    limit = time.monotonic() + _END_S
    while bench.processes() and time.monotonic() < limit:
        time.sleep(0.05)
    found = [f"process {pid}: {Path(f'/proc/{pid}/cmdline').read_bytes()!r}" for pid in bench.processes()]
    for root in ("out", "tmp", "cache"):
        temporary = (bench.folder / root).rglob("*" if root == "tmp" else ".clipmlu-*")
        found += [str(path.relative_to(bench.folder)) for path in temporary]
    return found + (_left_of_ray() if "ray" in bench.engine else [])


def _left_of_ray() -> list[str]:
    """Temporary folders of Ray that no living process names; those of other commands on this machine, too."""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            commands.append(path.read_bytes())
    folders = [path for path in Path("/tmp").glob("clipmlu-ray-*") if path not in _EARLIER_FOLDERS]
    return [str(path) for path in folders if not any(str(path).encode() in command for command in commands)]


def rounds(bench: Bench, kills: int, seed: int) -> Iterator[tuple[collections.Counter[str], list[str]]]:
    """Run jobs until so many kills were made; yields the kills of each job, and what is wrong after it."""
    random_ = random.Random(seed)
    expected, seconds = undisturbed(bench)
    shared = set(os.listdir("/dev/shm"))
    made = 0
    while made < kills:
        shutil.rmtree(bench.folder / "out")
        (bench.folder / "out").mkdir()
        counts: collections.Counter[str] = collections.Counter()
        wrong: list[str] = []
        for command, length in ((bench.embed(), seconds), (bench.export(), seconds / 2)):
            code: int | None = None
            while code is None:
                enough = made + counts.total() - counts["nothing"] >= kills
                victim, code = (
                    ("nothing", _run(bench, command)) if enough else run_killed(bench, command, length, random_)
                )
                counts[victim] += 1
                if code not in (None, 0, 1) or (code == 1 and command == bench.export()):
                    wrong.append(f"exit code {code}")
                    break
        made += counts.total() - counts["nothing"]
        wrong += left_over(bench)
        wrong += [f"shared memory {name}" for name in set(os.listdir("/dev/shm")) - shared if "clipmlu" in name]
        found = digests(bench.folder / "out")
        wrong += [name for name in {*found, *expected} if found.get(name) != expected.get(name)]
        yield counts, wrong


def _run(bench: Bench, command: Sequence[str]) -> int:
    return bench.start(command).wait()


def main() -> int:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--engine", choices=list(ENGINES), default="serial")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--shard-size", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="work folder, which is kept [default: a temporary one]")
    given = parser.parse_args()
    total: collections.Counter[str] = collections.Counter()
    failed = jobs = 0
    with tempfile.TemporaryDirectory() as temporary:
        bench = prepare(given.work or Path(temporary), given.images, given.engine, given.shard_size)
        for counts, wrong in rounds(bench, given.kills, given.seed):
            jobs += 1
            failed += bool(wrong)
            total += counts
            shown = "; ".join(wrong[:5]) or "as undisturbed"
            print(f"job {jobs}: {dict(counts)}: {shown}", flush=True)
    kills = total.total() - total["nothing"]
    print(f"{given.engine}: {kills} kills ({dict(total)}), {jobs} jobs, {failed} of them not as undisturbed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
