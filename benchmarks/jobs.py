"""Bulk jobs: ``embed`` to one file, and as a job in this process, with two processes and with two Ray actors.

    python benchmarks/jobs.py [BUNDLE] [--quick] [--rounds N] [--sides NAME...] [--json FILE]

BUNDLE is a compiled one; without it the demo model is compiled for the CPU, for which everything but the model counts most. The inputs
are 100,000 drawn images of 32 x 32 pixels and 5,000 JPEGs with the cost of photos (``_images.py``), created once in ``--work``. Every
run is a whole command with its start; the sides alternate. Afterwards each job is exported to one file: the embeddings of all
sides must be equal, byte for byte. Memory is the largest sum over all processes of a command of what they use alone and their part
of what they share (PSS).
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _bundles import DEFAULT_WORK, obtain_demo
from _images import obtain_images
from _memory import descendants, pss_kib
from _timing import Row, Sample, compare, print_machine, print_table, take_turns, write_json
from PIL import Image

SIDES: dict[str, tuple[str, ...] | None] = {
    "one file": None,
    "job": (),
    "job, 2 processes": ("--processes", "2"),
    "job, Ray, 2 actors": ("--engine", "ray", "--processes", "2"),
}
"""Name -> further arguments of the job; None for the side without shards."""
SIDE = 32
SMALL, JPEGS = 100_000, 5_000
BATCH_SIZE = 32
SMALL_SHARD, JPEG_SHARD = 8192, 512  # multiples of the batch size, so that batches are those of the one file
_MEMORY_EVERY_S = 0.2


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument(
        "--work", type=Path, default=DEFAULT_WORK, help="where inputs are made and kept for the next run"
    )
    parser.add_argument("--quick", action="store_true", help="a twentieth of the images, and smaller shards")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--inputs", nargs="+", choices=["small images", "JPEGs"], default=["small images", "JPEGs"])
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    print_machine()
    bundle = given.bundle or obtain_demo(given.work)
    part = 20 if given.quick else 1
    small, jpegs = SMALL // part, JPEGS // part
    inputs = {
        "small images": (_small_images(given.work / "small", small), small, SMALL_SHARD),
        "JPEGs": (_jpegs(given.work / f"jpegs-{jpegs}", jpegs), jpegs, JPEG_SHARD),
    }
    results = []
    for name in given.inputs:
        folder, count, shard_size = inputs[name]
        batches = max(1, shard_size // part // BATCH_SIZE)
        results.append(_measure(name, bundle, folder, count, given, batches * BATCH_SIZE))
    write_json(given.json, {"benchmark": "jobs", "bundle": str(bundle), "inputs": results})


def _measure(
    name: str, bundle: Path, folder: Path, count: int, given: argparse.Namespace, shard_size: int
) -> dict[str, Any]:
    output = given.work / "jobs-output"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    memory: dict[str, list[float]] = {side: [] for side in given.sides}
    sides = {
        side: _side(_command(bundle, folder, output, side, shard_size), output, side, count, memory[side])
        for side in given.sides
    }
    rows = compare(take_turns(sides, given.rounds, warm_up=0, what=f"{name}, "))
    digests = {side: _digest(output, side) for side in given.sides}
    _print(name, count, rows, memory, digests)
    return {
        "input": name,
        "images": count,
        "shard_size": shard_size,
        "rows": [
            {
                **row._asdict(),
                "images_per_second": row.rate,
                "peak_mib": max(memory[row.name]),
                "sha256": digests[row.name],
            }
            for row in rows
        ],
        "identical": len(set(digests.values())) == 1,
    }


def _command(bundle: Path, folder: Path, output: Path, side: str, shard_size: int) -> list[str]:
    more = SIDES[side]
    target = _target(output, side)
    job = [] if more is None else ["--shard-size", str(shard_size), *more]
    return [sys.executable, "-m", "clipmlu", "embed", str(bundle), str(folder), "-o", str(target), *job, "--overwrite"]


def _target(output: Path, side: str) -> Path:
    name = side.replace(", ", "-").replace(" ", "-")
    return output / (f"{name}.npy" if SIDES[side] is None else name)


def _side(command: list[str], output: Path, side: str, count: int, memory: list[float]) -> Callable[[], Sample]:
    def run() -> Sample:
        shutil.rmtree(_target(output, side), ignore_errors=True)  # a job that is done would not be computed again
        start = time.perf_counter()
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        watch = _MemoryWatch(process.pid)
        _out, errors = process.communicate()
        seconds = time.perf_counter() - start
        memory.append(watch.stop())
        if process.returncode:
            raise SystemExit(f"{side}: exit code {process.returncode}: {errors[-2000:]}")
        return Sample(count, seconds)

    return run


class _MemoryWatch:
    """Samples the memory of a process and its descendants.

    Args:
        pid: the process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak_kib = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> float:
        """Return the peak in MiB."""
        self._stopped.set()
        self._thread.join()
        return self._peak_kib / 1024

    def _watch(self) -> None:
        while not self._stopped.wait(_MEMORY_EVERY_S):
            self._peak_kib = max(self._peak_kib, sum(map(pss_kib, descendants(self._pid))))


def _digest(output: Path, side: str) -> str:
    """SHA-256 of embeddings and ids; of a job after its export."""
    target = _target(output, side)
    if SIDES[side] is not None:
        exported = target.with_name(f"{target.name}-exported.npy")
        command = [sys.executable, "-m", "clipmlu", "job", str(target), "--export", str(exported), "--overwrite"]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        target = exported
    with target.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
    digest.update(target.with_suffix(".ids.json").read_bytes())
    return digest.hexdigest()


def _print(
    name: str, count: int, rows: list[Row], memory: Mapping[str, list[float]], digests: Mapping[str, str]
) -> None:
    print(f"\n{count:,} {name}\n")
    print_table(
        ["side", "images/s", "speed relative to the first", "peak memory, MiB", "SHA-256 of the results"],
        [
            (row.name, f"{row.rate:.1f}", row.spread, f"{max(memory[row.name]):.0f}", digests[row.name][:12])
            for row in rows
        ],
    )
    same = len(set(digests.values())) == 1
    print(f"\nResults of all sides: {'equal' if same else 'NOT EQUAL'}.")
    ratios = {row.name: row.ratio for row in rows}
    if rows[0].name == "one file" and "job" in ratios:
        print(f"Cost of the shards: {1 / ratios['job'] - 1:+.1%} of the time of one file.")


def _small_images(folder: Path, count: int) -> Path:
    """Noise of 32 x 32 pixels, a thousand files in each sub-folder."""
    root = folder.with_name(f"{folder.name}-{count}")
    done = root.with_suffix(".done")
    if not done.exists():
        generator = np.random.default_rng(0)
        for number in range(count):
            path = root / f"{number // 1000:04}" / f"{number:06}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(path, compress_level=1)
        done.touch()
    return root


def _jpegs(folder: Path, count: int) -> Path:
    obtain_images(folder, count)
    return folder


if __name__ == "__main__":
    main()
