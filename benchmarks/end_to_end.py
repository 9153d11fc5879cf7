"""Images per second from JPEG files to the five best of 100 labels, ViT-B/32: clipmlu and other software.

    python benchmarks/end_to_end.py [--compiled BUNDLE...] [--threads N...] [--count N] [--rounds N] [--only TEXT...]
        [--json FILE]
    python benchmarks/end_to_end.py --quick [--json FILE]

Each side runs in its own process, bound to as many cores as it has threads, once in each round; a ratio to the first
side is the median of the ratios of the rounds, with quartiles. Sides that encode the labels once run over ``--count``
images per round; those that encode the labels with every call (the pipelines and the fused graph) over
``--slow-count``. Weights are random. clipmlu, open_clip and the plain runtimes use the same weights: "same best" is the
share of images with the same best class as on the first side. The Hugging Face models have their own random weights,
with the same architecture and tokenizer.

``--quick`` measures the sides of ``TARGETS`` only, compared with open_clip and a DataLoader, and prints a table of those
ratios: 5 to 8 minutes on two cores, after a first run that creates the bundles. Each run that ends is a line on stderr.
A side that cannot start, or fails in a round, is left out with its reason, below the table and in the JSON.

The bound is the speed at which decoding and computing keep all cores busy:

    cores / (core-seconds to decode and preprocess an image + core-seconds of the image tower for an image)

with decoding timed on one thread (or, for the second column, with as many threads as cores) and the tower alone on all
cores, in the same rounds.

Optimum 2.1 with optimum-onnx 0.1 (its current releases) requires transformers below 5, so it needs its own Python:
``python -m venv V && V/bin/pip install 'optimum[onnxruntime]' torch pillow``, then ``--optimum-python V/bin/python``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _bundles import add_bundle_options, describe_bundle, obtain_compiled, obtain_exported
from _images import obtain_images
from _progress import Progress
from _side import Settings, SideError, SideProcess
from _sides import TEMPLATE
from _timing import compare, cores, print_machine, print_table, rotated, write_json

from clipmlu.bundle.directory import CompiledBundle
from clipmlu.model import Model
from clipmlu.specs import Precision

LABELS = tuple(
    f"{colour} {thing}"
    for colour in ("red", "green", "blue", "yellow", "black", "white", "brown", "grey", "pink", "orange")
    for thing in ("bicycle", "bird", "boat", "car", "cat", "dog", "flower", "horse", "house", "train")
)
LOADER = "open_clip eager, DataLoader"
TARGETS = (
    ("clipmlu openvino qint8_mixed_float32", LOADER, 2.6),
    ("clipmlu openvino force_float32", LOADER, None),
    ("clipmlu cpu qint8_mixed_float32", LOADER, 2.2),
    ("clipmlu cpu force_float32", LOADER, None),
    ("clipmlu openvino force_float32", "fused graph, onnxruntime, batch 32", 3.4),
    ("clipmlu openvino force_float32", "fused graph, onnxruntime, batch 1", 80.0),
)
"""Sides, the side that each is compared with, and the ratio of speeds on two cores with VNNI that is to be reached, or None."""
QUICK_COUNT, QUICK_SLOW_COUNT, QUICK_ROUNDS = 96, 2, 5
STAGES = ("decode, one thread", "decode, all cores", "tower")


class Side(NamedTuple):
    """The settings to start one side.

    Attributes:
        name: name for the table.
        entry: the function of ``_sides``.
        bundle: directory of its bundle.
        slow: True if it encodes the labels at each call.
        batch_size: images per batch; None for the requested size.
        option: see ``Settings``.
        foreign: True if it runs under ``--optimum-python``.
    """

    name: str
    entry: str
    bundle: Path
    slow: bool = False
    batch_size: int | None = None
    option: str = ""
    foreign: bool = False


def main() -> None:
    """Measure and print."""
    options = _parse()
    left_out: dict[str, str] = {}
    bundles = obtain_compiled(options, left_out)
    if not bundles:
        sys.exit(f"There is no bundle to measure: {left_out}")
    exact = [bundle for bundle in bundles if bundle.compilation.precision is Precision.FORCE_FLOAT32]
    _write_texts([*exact, *bundles][0], options.work)
    files = [str(path) for path in obtain_images(options.images or options.work / "images", options.image_count)]
    sides = [side for side in _sides(bundles, options) if _wanted(side.name, options.only)]
    if options.quick:
        sides.sort(key=lambda side: side.name != LOADER)  # the others are compared with it
    print_machine()
    results = [_measure(sides, files, threads, options, dict(left_out)) for threads in options.threads]
    write_json(options.json, {"benchmark": "end_to_end", "results": results})


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_bundle_options(parser)
    parser.add_argument("--images", type=Path, help="folder of the JPEGs; made and kept there")
    parser.add_argument("--image-count", type=int, default=2000, help="JPEGs in the folder")
    parser.add_argument("--count", type=int, default=256, help="images of a run")
    parser.add_argument(
        "--slow-count", type=int, default=4, help="images of a run that encodes the labels at each call"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[cores()])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--optimum-python", default=sys.executable, help="a Python that has Optimum")
    parser.add_argument("--only", nargs="*", default=[], help="run the sides whose names hold one of these")
    parser.add_argument("--quick", action="store_true", help="the ratios of TARGETS, in at most 8 minutes on two cores")
    parser.add_argument("--json", type=Path)
    if "--quick" in sys.argv:
        names = sorted({name for first, second, _ratio in TARGETS for name in (first, second)})
        parser.set_defaults(
            count=QUICK_COUNT, slow_count=QUICK_SLOW_COUNT, rounds=QUICK_ROUNDS, calib="demo", only=names
        )
    return parser.parse_args()


def _wanted(name: str, only: list[str]) -> bool:
    return not only or any(text in name for text in only)


def _sides(bundles: list[CompiledBundle], options: argparse.Namespace) -> Iterator[Side]:
    exported = obtain_exported(options).path
    yield from (Side(describe_bundle(bundle), "clipmlu_side", bundle.path) for bundle in bundles)
    yield Side("onnxruntime bare, thread pool", "onnxruntime_bare", exported)
    yield Side("OpenVINO bare float32, thread pool", "openvino_bare", exported, option="f32")
    yield Side("OpenVINO bare bfloat16, thread pool", "openvino_bare", exported, option="bf16")
    yield Side("open_clip eager, one by one", "open_clip_single", exported)
    yield Side("open_clip eager, DataLoader", "open_clip_loader", exported)
    yield Side("open_clip torch.compile, one by one", "open_clip_single", exported, option="compiled")
    yield Side("open_clip torch.compile, DataLoader", "open_clip_loader", exported, option="compiled")
    yield Side("Optimum, image graph, thread pool", "optimum_image_graph", exported, foreign=True)
    yield Side("Optimum, zero-shot pipeline", "optimum_pipeline", exported, slow=True, foreign=True)
    yield Side("transformers, zero-shot pipeline", "transformers_pipeline", exported, slow=True)
    for batch_size in (1, options.batch_size):
        name = f"fused graph, onnxruntime, batch {batch_size}"
        if _wanted(name, options.only):
            joint = obtain_exported(options, "joint").path
            yield Side(name, "joint_graph", joint, slow=True, batch_size=batch_size)


def _write_texts(bundle: CompiledBundle, work: Path) -> None:
    """Write tokens and class embeddings, for the sides without a text tower."""
    (work / "sides").mkdir(parents=True, exist_ok=True)
    with Model(bundle) as encoder:
        embeddings = encoder.classifier(LABELS, [TEMPLATE], cache=False).class_embeddings
        tokens = encoder.tokenizer([TEMPLATE.format(label) for label in LABELS])
    np.save(work / "sides" / "class-embeddings.npy", embeddings)
    np.save(work / "sides" / "tokens.npy", tokens)


def _measure(
    sides: list[Side], files: list[str], threads: int, options: argparse.Namespace, left_out: dict[str, str]
) -> dict[str, Any]:
    """Measure all sides with a number of threads."""
    with ExitStack() as stack:
        running = _start_all(sides, files, threads, options, left_out, stack)
        times: dict[str, list[float]] = {name: [] for name in running}
        staged = [side.name for side in sides if side.entry == "clipmlu_side" and side.name in running]
        stages: dict[str, dict[str, list[float]]] = {name: {stage: [] for stage in STAGES} for name in staged}
        progress = Progress(name for _ in range(options.rounds) for name in running)
        for number in range(options.rounds):
            for name in rotated(list(running), number):
                try:
                    times[name].append(_per_image(running[name], "run"))
                    for stage, taken in stages.get(name, {}).items():
                        taken.append(_per_image(running[name], stage))
                except SideError as error:
                    left_out[name] = f"failed in round {number + 1}: {error}"
                    for records in (running, times, stages):
                        records.pop(name, None)
                    progress.drop(name, left_out[name])
                else:
                    rate = len(times[name]) / sum(times[name])
                    progress.step(name, f"round {number + 1} of {options.rounds}, {rate:.2f} images/s so far")
        report = _report(running, times, stages, threads, left_out)
        return report | ({"targets": _print_targets(times)} if options.quick else {})


def _start_all(
    sides: list[Side],
    files: list[str],
    threads: int,
    options: argparse.Namespace,
    left_out: dict[str, str],
    stack: ExitStack,
) -> dict[str, SideProcess]:
    """Start the sides; ``left_out`` gets the reasons of those that cannot run here, and ``stack`` ends the others."""
    running: dict[str, SideProcess] = {}
    progress = Progress(side.name for side in sides)
    for side in sides:
        try:
            running[side.name] = _start(side, files, threads, options)
        except SideError as error:
            left_out[side.name] = str(error)
            progress.drop(side.name, left_out[side.name])
            continue
        stack.callback(running[side.name].close)
        progress.step(side.name, f"started, {len(running)} of {len(sides)} sides so far")
    return running


def _start(side: Side, files: list[str], threads: int, options: argparse.Namespace) -> SideProcess:
    batch_size = side.batch_size or options.batch_size
    count = max(options.slow_count, side.batch_size or 1) if side.slow else options.count
    settings = Settings(
        side=f"_sides:{side.entry}",
        files=tuple(files[:count]),
        labels=LABELS,
        threads=threads,
        batch_size=batch_size,
        bundle=str(side.bundle),
        work=str(options.work / "sides"),
        option=side.option,
    )
    return SideProcess(side.name, settings, options.optimum_python if side.foreign else sys.executable)


def _per_image(side: SideProcess, action: str) -> float:
    sample = side.run(action)
    return sample.seconds / sample.items


def _report(
    running: dict[str, SideProcess],
    times: dict[str, list[float]],
    stages: dict[str, dict[str, list[float]]],
    threads: int,
    left_out: dict[str, str],
) -> dict[str, Any]:
    rows = compare(times) if times else []
    first = next(iter(running.values()), None)
    print(f"### {threads} thread(s) on {threads} core(s)\n")
    print_table(
        [
            "side",
            "images/s",
            "times as fast as the first (quartiles)",
            "same best",
            "set up, s",
            "of it compiling",
            "images",
        ],
        [
            (
                row.name,
                f"{row.rate:.2f}",
                row.spread,
                _same_best(first, running[row.name]),
                f"{running[row.name].setup_seconds:.1f}",
                _compile_text(running[row.name]),
                running[row.name].items,
            )
            for row in rows
        ],
    )
    bounds = {name: _bounds(times[name], taken, threads) for name, taken in stages.items()}
    if bounds:
        print()
        print_table(
            [
                "side",
                "decode, core-ms",
                "decode on all cores, core-ms",
                "tower, core-ms",
                "bound, images/s",
                "share of it",
                "bound, decoding on all cores",
                "share of it",
            ],
            [(name, *(f"{value:.3f}" for value in bound.values())) for name, bound in bounds.items()],
        )
    for name, reason in left_out.items():
        print(f"\nLeft out: {name}: {reason}")
    print()
    return {
        "threads": threads,
        "sides": [{**row._asdict(), "images_per_second": row.rate, "times": times[row.name]} for row in rows],
        "set_up_seconds": {name: side.setup_seconds for name, side in running.items()},
        "facts": {name: side.facts for name, side in running.items()},
        "bounds": bounds,
        "stages": stages,
        "left_out": left_out,
    }


def _print_targets(times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Print the ratios of ``TARGETS`` of sides that ran."""
    rows = []
    for name, other, least in TARGETS:
        if name in times and other in times:
            row = compare({key: times[key] for key in (other, name)})[1]
            rows.append({**row._asdict(), "than": other, "target": least})
    print_table(
        ["side", "than", "times as fast (quartiles)", "at least"],
        [
            (
                row["name"],
                row["than"],
                f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
                row["target"] or "",
            )
            for row in rows
        ],
    )
    return rows


def _compile_text(side: SideProcess) -> str:
    return f"{side.facts['compile_seconds']:.1f}" if "compile_seconds" in side.facts else ""


def _same_best(first: SideProcess | None, side: SideProcess) -> str:
    """Return the share of images with the first side's best class; not for the Hugging Face models with other weights."""
    if first is None or "pipeline" in side.name:
        return ""
    pairs = list(zip(first.answer, side.answer, strict=False))
    return f"{sum(a == b for a, b in pairs) / len(pairs):.3f}"


def _bounds(times: list[float], taken: dict[str, list[float]], threads: int) -> dict[str, float]:
    """Return milliseconds and the resulting bounds; the share is the median of the shares of the rounds."""
    one = taken["decode, one thread"]
    every, tower = ([threads * seconds for seconds in taken[stage]] for stage in ("decode, all cores", "tower"))
    parts = {"one": one, "every": every, "tower": tower}
    result = {name: 1000 * statistics.median(values) for name, values in parts.items()}
    for name, decode in (("one", one), ("every", every)):
        limits = [threads / (d + t) for d, t in zip(decode, tower, strict=True)]
        result[f"bound_{name}"] = statistics.median(limits)
        result[f"share_{name}"] = statistics.median(1 / (s * limit) for s, limit in zip(times, limits, strict=True))
    return result


if __name__ == "__main__":
    main()
