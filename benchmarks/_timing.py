"""Measuring sides in alternation: medians, paired ratios to the first side, a Markdown table, a JSON file."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from _progress import Progress

PACKAGES = (
    "clipmlu",
    "numpy",
    "pillow",
    "onnxruntime",
    "openvino",
    "torch",
    "open_clip_torch",
    "transformers",
    "optimum",
)

_PAUSE_S = 0.1


class Sample(NamedTuple):
    """One run of one side: number of items and seconds."""

    items: int
    seconds: float


class Row(NamedTuple):
    """One side over all rounds.

    Attributes:
        name: name of the side.
        seconds_per_item: median.
        ratio: speed relative to the first side: median of the ratios of the rounds.
        low: their lower quartile.
        high: their upper quartile.
    """

    name: str
    seconds_per_item: float
    ratio: float
    low: float
    high: float

    @property
    def rate(self) -> float:
        """Items per second."""
        return 1 / self.seconds_per_item

    @property
    def spread(self) -> str:
        """The ratio with its quartiles, as text."""
        return f"{self.ratio:.3f} ({self.low:.3f} to {self.high:.3f})"


def timed(action: Callable[[], object], items: int) -> Callable[[], Sample]:
    """Return an action that is timed from outside, as a side."""

    def run() -> Sample:
        start = time.perf_counter()
        action()
        return Sample(items, time.perf_counter() - start)

    return run


def take_turns(
    sides: Mapping[str, Callable[[], Sample]], rounds: int, warm_up: int = 1, what: str = ""
) -> dict[str, list[float]]:
    """Run all sides in each round, each time in another order, so that other load affects all sides equally.

    Args:
        sides: maps a side to what measures it once.
        rounds: number of rounds.
        warm_up: runs of each side before them.
        what: what is measured, for the lines of progress.

    Returns:
        Maps a side to its seconds per item in each round.
    """
    names = list(sides)
    for name in names * warm_up:
        sides[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    progress = Progress(name for _ in range(rounds) for name in names)
    for number in range(rounds):
        for name in rotated(names, number):
            # onnxruntime's threads wait actively for a while after a batch: without a pause they would slow the next
            # side.
            time.sleep(_PAUSE_S)
            sample = sides[name]()
            times[name].append(sample.seconds / sample.items)
            rate = len(times[name]) / sum(times[name])
            progress.step(name, f"{what}round {number + 1} of {rounds}, {rate:.1f}/s so far")
    return times


def rotated(names: Sequence[str], number: int) -> list[str]:
    """Return the names in the order of a round."""
    first = number % len(names) if names else 0
    return [*names[first:], *names[:first]]


def compare(times: Mapping[str, Sequence[float]], first: str | None = None) -> list[Row]:
    """Return one row for each side; ratios are to ``first``, or else to the first side, round by round."""
    base = times[first if first is not None else next(iter(times))]
    return [row_from_ratios(name, own, [a / b for a, b in zip(base, own, strict=True)]) for name, own in times.items()]


def row_from_ratios(name: str, seconds_per_item: Sequence[float], ratios: Sequence[float]) -> Row:
    """Return the medians and quartiles."""
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else [*ratios] * 3
    return Row(name, statistics.median(seconds_per_item), middle, low, high)


def print_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table on stdout."""
    print(f"| {' | '.join(heads)} |")
    print(f"|{'---|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def describe_machine() -> dict[str, Any]:
    """Return the facts that affect figures: the processor and the versions of the packages."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    versions = {name: version for name in PACKAGES if (version := installed_version(name))}
    return {
        "cpu": names[0].partition(":")[2].strip() if names else platform.processor(),
        "flags": sorted(cpu_flags() & {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"}),
        "cores": cores(),
        "python": platform.python_version(),
        "versions": versions,
        "load": os.getloadavg(),
    }


def installed_version(package: str) -> str | None:
    """Return a package's version, or None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_flags() -> set[str]:
    """Return the processor's features by the kernel's names."""
    lines = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")]
    return set(lines[0].split()) if lines else set()


def print_machine() -> None:
    """Print one line above the tables."""
    facts = describe_machine()
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    print(
        f"{facts['cpu']}, {facts['cores']} cores, {' '.join(facts['flags'])}; load {facts['load'][0]:.1f}; {versions}\n"
    )


def write_json(path: Path | None, results: Mapping[str, Any]) -> None:
    """Write results and the machine's facts, if a file is given."""
    if path is not None:
        path.write_text(json.dumps({"machine": describe_machine(), **results}, indent=2) + "\n")
