"""Preparing images on 1 to all cores: images/s from JPEG files to preprocessed batches, with nothing that computes.

    python benchmarks/host_scaling.py [--workers N...] [--simulated N...] [--seconds S] [--small] [--json FILE]

Sides:

    threads              clipmlu's pipeline, N worker threads in this process, as every command runs it
    processes            N processes, each with the pipeline and one worker thread
    two pipelines        2 processes, each with the pipeline and N / 2 worker threads
    DataLoader           torch's DataLoader with N worker processes and open_clip's transform

"efficiency" is the rate with N workers relative to N times the rate of the same side with one. Every side runs for
``--seconds`` at each N, the sides in turn; the whole takes some (4 x numbers of workers + 7) x seconds.

The interpreter's lock: with ``--simulated`` the native calls of an image (reading, decoding, resizing), which run
without the lock, are first replaced by calls that do nothing. The time of a core that is left is at most what an image
holds the lock. Then they are replaced by sleeps of their measured length, so that N threads run as on N cores even
where there are fewer: see ``_simulated.py``. Those rates say what Python and its lock allow, and need one core that is
not busy otherwise.

The JPEGs are in the system's cache, so that reading them costs no disk.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _bundles import DEFAULT_WORK
from _images import obtain_images
from _preparing import PHOTO_SIDE, SIDES, SMALL_SIDE, IdleGraph, Job, Rate, Side, run_pipeline
from _simulated import simulated_cores
from _timing import cores, print_machine, print_table, write_json

from clipmlu.data.images import ImageSource
from clipmlu.embed.images import run_batches
from clipmlu.embed.items import item_from_source


def main() -> None:
    """Measure and print."""
    options = _parse()
    job = Job(
        _sources(options),
        SMALL_SIDE if options.small else PHOTO_SIDE,
        options.batch_size,
        options.seconds,
        options.uint8,
    )
    print_machine()
    sides: dict[str, Side] = {
        name: side for name, side in SIDES.items() if options.sides is None or name in options.sides
    }
    left_out: dict[str, str] = {}
    rates = _measure(sides, job, options.workers, left_out)
    _print_rates(rates, options.workers)
    simulated = _simulate(job, options.simulated) if options.simulated else {}
    for name, reason in left_out.items():
        print(f"\nLeft out: {name}: {reason}")
    results = {
        "benchmark": "host_scaling",
        "small": options.small,
        "uint8": options.uint8,
        "rates": {name: {str(n): rate._asdict() for n, rate in own.items()} for name, own in rates.items()},
        "simulated": simulated,
        "left_out": left_out,
    }
    write_json(options.json, results)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="where the images are made and kept")
    parser.add_argument("--images", type=Path, help="folder of the JPEGs; made and kept there")
    parser.add_argument("--image-count", type=int, default=512, help="JPEGs in the folder")
    parser.add_argument(
        "--small", action="store_true", help="32 x 32 arrays instead of JPEGs, for a model of that size"
    )
    parser.add_argument("--uint8", action="store_true", help="prepare uint8 pixels, which the device normalises")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--workers", type=int, nargs="+", default=_doubled(cores()), help="1, 2, 4, ... all cores if left out"
    )
    parser.add_argument(
        "--simulated", type=int, nargs="*", default=[1, 2, 4, 8, 16], help="workers on simulated cores; none: skip"
    )
    parser.add_argument(
        "--sides", nargs="*", choices=list(SIDES), help="only these sides; none: only the lock and simulated cores"
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each measurement")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _doubled(most: int) -> list[int]:
    """Return 1, 2, 4, ... and ``most``."""
    return sorted({*(1 << power for power in range(most.bit_length())), most})


def _sources(options: argparse.Namespace) -> list[ImageSource]:
    if options.small:
        generator = np.random.default_rng(0)
        return [generator.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(options.image_count)]
    _say("JPEGs")
    return [str(path) for path in obtain_images(options.images or options.work / "images", options.image_count)]


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _measure(
    sides: dict[str, Side], job: Job, numbers: Sequence[int], left_out: dict[str, str]
) -> dict[str, dict[int, Rate]]:
    """Map each side to its rate with each number of workers."""
    rates: dict[str, dict[int, Rate]] = {name: {} for name in sides}
    for number in numbers:
        for name, side in sides.items():
            if name in left_out or (name == "two pipelines" and number % 2):
                continue
            _say(f"{name}, {number} worker(s)")
            try:
                rates[name][number] = side(job, number)
            except ImportError as error:
                left_out[name] = str(error)
    return {name: own for name, own in rates.items() if own}


def _print_rates(rates: dict[str, dict[int, Rate]], numbers: Sequence[int]) -> None:
    def cell(own: dict[int, Rate], number: int) -> str:
        if number not in own:
            return ""
        rate = own[number]
        text = f"{rate.per_second:.0f}"
        if number > 1 and 1 in own:
            text += f" ({_efficiency(own, number):.2f})"
        if rate.core_seconds is not None:
            text += f", {rate.core_seconds / rate.seconds:.1f} busy"
        return text

    if rates:
        heads = ["images/s (efficiency), cores busy", *(f"{number} worker(s)" for number in numbers)]
        print_table(heads, [(name, *(cell(own, number) for number in numbers)) for name, own in rates.items()])
        print()


def _efficiency(own: dict[int, Rate], number: int) -> float:
    return own[number].per_second / (number * own[1].per_second)


def _simulate(job: Job, numbers: Sequence[int]) -> dict[str, Any]:
    """Measure what holds the interpreter's lock, and threads on simulated cores."""
    _say("simulated cores: recording the native calls")
    graph = IdleGraph(job)
    few = job._replace(sources=job.sources[:64])
    alone = run_pipeline(graph, few, 1)
    core = 1e6 * (alone.core_seconds or 0.0) / alone.images
    rates: dict[int, Rate] = {}
    with simulated_cores(functools.partial(_prepare_all, graph, few.sources)) as calls:
        for call in calls:
            call.instant = True
        rest = run_pipeline(graph, few, 1)
        for call in calls:
            call.instant = False
        for number in numbers:
            _say(f"threads, {number} simulated core(s)")
            rates[number] = run_pipeline(graph, few, number)
    lock = 1e6 * (rest.core_seconds or 0.0) / rest.images
    native = {call.name: 1e6 * call.seconds / len(few.sources) for call in calls}
    _print_lock(core, lock, native)
    _print_simulated(rates)
    return {
        "core_us": core,
        "lock_us": lock,
        "native_us": native,
        "rates": {str(number): rate._asdict() for number, rate in rates.items()},
    }


def _print_lock(core: float, lock: float, native: dict[str, float]) -> None:
    print(f"One worker: {core:.0f} us of a core for an image. Without the lock, us: {_listed(native)}")
    print(f"The rest, at most: {lock:.0f} us, 1/{core / lock:.0f}: the lock is enough for {core / lock:.0f} workers\n")


def _listed(native: dict[str, float]) -> str:
    return ", ".join(f"{name} {us:.0f}" for name, us in native.items()) or "none"


def _print_simulated(rates: dict[int, Rate]) -> None:
    print_table(
        ["simulated cores = workers", "images/s", "efficiency"],
        [
            (number, f"{rate.per_second:.0f}", f"{_efficiency(rates, number):.2f}" if 1 in rates else "")
            for number, rate in rates.items()
        ],
    )


def _prepare_all(graph: IdleGraph, sources: Sequence[ImageSource]) -> None:
    for _ in run_batches(graph, map(item_from_source, sources), batch_size=len(sources), workers=1):
        pass


if __name__ == "__main__":
    main()
