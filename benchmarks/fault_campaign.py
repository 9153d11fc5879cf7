"""Faults of every kind at random places: checks that no batch is lost, repeated, swapped or altered.

    python benchmarks/fault_campaign.py BUNDLE [--runs N] [--batches N] [--seed S]

BUNDLE must be compiled with ``--target emulated-mlu``. In each run its image tower receives batches of random pixels
through a worker on the emulated SDK with one to four faults: the process crashes, hangs, loses its card, or computes
NaN, at a call that opens a session or runs a batch. Sometimes the worker is also killed from outside. Every result is
compared with the same batch computed in this process without faults.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import os
import random
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from clipmlu.backends import SessionOptions
from clipmlu.bundle.directory import CompiledBundle, open_compiled
from clipmlu.embed.encoder import Encoder
from clipmlu.magicmind.backend import emulated_worker
from clipmlu.magicmind.emulator import NOTICE

RUN_CALLS = ("from_numpy", "enqueue", "sync")
OPEN_CALLS = ("deserialize_from_file", "active", "create_inputs")
FACTORIES = ("create_i_engine", "create_i_context", "create_queue")
"""These calls return None on every failure, which does not show a lost card, so only crashes are injected."""
KINDS = ("crash", "hang", "device_lost")
HANG_SECONDS = 1.5


def main() -> None:
    """Run the campaign and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    bundle = open_compiled(options.bundle)
    generator = random.Random(options.seed)
    side = bundle.manifest.preprocess.height
    rows = np.random.default_rng(options.seed)
    sizes = [generator.randint(1, bundle.compilation.batch_size) for _ in range(options.batches)]
    batches = [rows.standard_normal((size, 3, side, side), dtype=np.float32) for size in sizes]
    with Encoder(bundle) as encoder:
        expected = [encoder.encode_images(batch) for batch in batches]
    tally: collections.Counter[str] = collections.Counter()
    start = time.monotonic()
    for number in range(options.runs):
        run_once(bundle, batches, expected, generator, tally)
        wrong = tally["lost or doubled"] + tally["wrong results"]
        print(f"run {number + 1} of {options.runs}: {wrong} wrong", flush=True)
    print(f"{NOTICE}; {options.runs} runs of {options.batches} batches in {time.monotonic() - start:.0f} s")
    for name, count in sorted(tally.items()):
        print(f"{name:40} {count}")


def run_once(
    bundle: CompiledBundle, batches: list[Any], expected: list[Any], generator: random.Random, tally: Any
) -> None:
    """Run once with a random schedule."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "fired"
        faults = schedule(generator, len(batches))
        worker = dataclasses.replace(
            emulated_worker(faults=",".join(faults), fault_log=str(log)),
            run_seconds=HANG_SECONDS,
            open_seconds=4 * HANG_SECONDS,
            max_failures=6,
            shared_memory=generator.random() < 0.7,
        )
        killer = Killer(generator.uniform(0.5, 3.0)) if generator.random() < 0.3 else None
        finished: list[int] = []
        with Encoder(bundle, SessionOptions(worker=worker)) as encoder:
            pending = []
            for number, batch in enumerate(batches):
                pending.append(encoder.submit_images(batch))
                if number >= 3:
                    collect(pending, expected, finished, number - 3, tally)
            for number in range(len(finished), len(batches)):
                collect(pending, expected, finished, number, tally)
        if killer is not None:
            tally["killed from outside"] += killer.stop()
        for line in log.read_text().splitlines() if log.exists() else ():
            call, _, kind = line.split()[0].split(":")
            tally[f"fired: {kind} at {call}"] += 1
        tally["batches"] += len(batches)
        tally["lost or doubled"] += finished != list(range(len(batches)))


def schedule(generator: random.Random, batches: int) -> list[str]:
    """Return one to four faults, each at another call; NaN at most once, since the worker then computes again."""
    chosen = []
    for _ in range(generator.randint(1, 4)):
        if generator.random() < 0.25:
            call = generator.choice(OPEN_CALLS + FACTORIES)
            chosen.append(f"{call}:1:{'crash' if call in FACTORIES else generator.choice(KINDS)}")
        else:
            chosen.append(f"{generator.choice(RUN_CALLS)}:{generator.randint(1, batches)}:{generator.choice(KINDS)}")
    if generator.random() < 0.5:
        chosen.append(f"enqueue:{generator.randint(1, batches)}:nan")
    return chosen


def collect(pending: list[Any], expected: list[Any], finished: list[int], number: int, tally: Any) -> None:
    """Receive one result and compare it."""
    result = pending[number].result()
    finished.append(number)
    same = result.shape == expected[number].shape and bool(np.abs(result - expected[number]).max() < 1e-6)
    tally["wrong results"] += not same


class Killer:
    """Kills the worker from outside, once, after some time."""

    def __init__(self, seconds: float) -> None:
        self._stop = threading.Event()
        self._killed = 0
        self._thread = threading.Thread(target=self._run, args=(seconds,))
        self._thread.start()

    def stop(self) -> int:
        """Stop, and return the number of kills."""
        self._stop.set()
        self._thread.join()
        return self._killed

    def _run(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            return
        for task in Path("/proc/self/task").iterdir():
            for pid in (task / "children").read_text().split():
                if b"--serve" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(int(pid), signal.SIGKILL)
                    self._killed += 1


if __name__ == "__main__":
    main()
