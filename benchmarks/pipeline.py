"""The whole pipeline relative to its slowest stage: preprocessing alone, the device alone, and both together.

    python benchmarks/pipeline.py [--bundle BUNDLE...] [--latency-ms MS...] [--devices N...] [--in-workers]
        [--workers N] [--threads N] [--rounds N] [--json FILE]

Each round measures every device three times with the same images: a pool with as many workers as the pipeline decodes
and preprocesses the images and discards them; the same number of batches is submitted to the device, as many in flight as
the pipeline has; and
``embed_items`` does both. "whole / slower stage" is the rate of the whole relative to the slower of the two: the median
of the ratios of the rounds. 1 means that the pipeline adds no time to its slowest stage.

Devices, besides the bundles given:

    sleeping   a replacement of a card that sleeps MS per batch, and leaves the cores to the host
    emulated   the emulated SDK with MS added to each batch, in this process; its own computing, although the graph is
               small, and the copies of the pixels use the host's cores too

Both run a tiny model, created here. No figure was measured on a card. With a bundle for the CPU both stages need the
same cores, so that the whole cannot reach its slowest stage; ``end_to_end.py`` has the bound for that case. With
``--small`` the images are 32 x 32 arrays for a model of that size that takes uint8 pixels: preparing them is cheap, so
that a slow device is the slower stage. ``--devices 1 2 4`` measures so many emulated cards that share the batches, each
on a thread of this process, or with ``--in-workers`` in a process of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import statistics
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _bundles import DEFAULT_WORK
from _images import obtain_images
from _progress import Progress
from _timing import cores, print_machine, print_table, rotated, row_from_ratios, write_json

from clipmlu import CompileOptions, ExportOptions, compile_bundle, export_model
from clipmlu.backends import Session, SessionOptions
from clipmlu.backends.base import Feeds
from clipmlu.bundle.directory import CompiledBundle, open_compiled, open_exported
from clipmlu.bundle.manifest import Tower
from clipmlu.clock import now
from clipmlu.data.feeds import Array
from clipmlu.data.images import ImageSource
from clipmlu.data.tokenizer import write_stand_in_tokenizer
from clipmlu.embed.encoder import Encoder
from clipmlu.embed.images import embed_items
from clipmlu.embed.items import item_from_source
from clipmlu.magicmind.backend import emulated_worker
from clipmlu.magicmind.emulator import NOTICE
from clipmlu.specs import TowerName

IN_FLIGHT = 2
SMALL_SIDE = 32
STAGES = ("host", "device", "whole")
TINY_TEXT = {
    "context_length": 8,
    "vocab_size": 300,
    "width": 16,
    "heads": 1,
    "layers": 1,
    "hf_tokenizer_name": "own",
}


class Device(NamedTuple):
    """One device to measure: its name, its encoder, and its environment variables."""

    name: str
    encoder: Encoder
    environment: dict[str, str]


class SleepingSession(Session):
    """A card with a fixed time per batch, which returns zeros."""

    def __init__(self, tower: Tower, seconds: float) -> None:
        super().__init__(tower, "The sleeping device")
        self._seconds = seconds
        self._worker = ThreadPoolExecutor(max_workers=1)

    def _start(self, feeds: Feeds) -> Future[dict[str, Array]]:
        """Queue one batch."""
        return self._worker.submit(self._run, len(next(iter(feeds.values()))))

    def _release(self) -> None:
        """Stop its thread."""
        self._worker.shutdown()

    def _run(self, rows: int) -> dict[str, Array]:
        start = now()
        time.sleep(self._seconds)
        self.clock.add({"compute": now() - start}, rows)
        return {name: np.zeros((rows, int(spec.shape[1])), np.float32) for name, spec in self.outputs.items()}


class SleepingEncoder(Encoder):
    """An encoder on a sleeping card."""

    def __init__(self, bundle: CompiledBundle, seconds: float) -> None:
        super().__init__(bundle, check_results=False)
        self._sleeping = SleepingSession(bundle.tower("image"), seconds)

    def close(self) -> None:
        """Release the sleeping card."""
        self._sleeping.close()

    def _session(self, tower: TowerName) -> Session:
        return self._sleeping


def main() -> None:
    """Measure and print."""
    options = _parse()
    sources = _sources(options)
    with ExitStack() as stack:
        devices = _devices(options)
        for device in devices:
            stack.callback(device.encoder.close)
        times = _measure(devices, sources, options)
    print_machine()
    if any(device.encoder.bundle.compilation.emulated for device in devices):
        print(f"{NOTICE}\n")
    rows = [_row(name, taken) for name, taken in times.items()]
    print_table(
        [
            "device",
            "host, images/s",
            "device, images/s",
            "whole, images/s",
            "slower",
            "whole / slower stage (quartiles)",
        ],
        [(row["name"], *(f"{row[stage]:.1f}" for stage in STAGES), row["slower"], row["ratio_text"]) for row in rows],
    )
    write_json(options.json, {"benchmark": "pipeline", "small": options.small, "rows": rows})


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="where things are made and kept")
    parser.add_argument("--bundle", type=Path, nargs="*", default=[], help="compiled bundles to measure too")
    parser.add_argument("--latency-ms", type=float, nargs="*", default=[0.5, 2.0, 10.0])
    parser.add_argument("--devices", type=int, nargs="*", default=[1], help="numbers of emulated cards")
    parser.add_argument("--in-workers", action="store_true", help="each emulated card in a process of its own")
    parser.add_argument("--no-sleeping", action="store_true", help="only the emulated cards")
    parser.add_argument("--images", type=Path, help="folder of the JPEGs; made and kept there")
    parser.add_argument("--image-count", type=int, default=2000, help="JPEGs in the folder")
    parser.add_argument("--count", type=int, default=512, help="images of a run")
    parser.add_argument("--small", action="store_true", help="32 x 32 arrays instead of JPEGs")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _sources(options: argparse.Namespace) -> list[ImageSource]:
    if options.small:
        generator = np.random.default_rng(0)
        return [generator.integers(0, 256, (SMALL_SIDE, SMALL_SIDE, 3), dtype=np.uint8) for _ in range(options.count)]
    paths = obtain_images(options.images or options.work / "images", options.image_count)
    return [paths[number % len(paths)] for number in range(options.count)]


def _devices(options: argparse.Namespace) -> list[Device]:
    session = SessionOptions(threads=options.threads, in_flight=IN_FLIGHT)
    devices = [
        Device(f"{path.name} ({bundle.compilation.target})", Encoder(bundle, session), {})
        for path in options.bundle
        for bundle in [open_compiled(path, verify=False)]
    ]
    stand_in, emulated = (
        _tiny_bundle(options.work, SMALL_SIDE if options.small else 224, target) for target in ("cpu", "emulated-mlu")
    )
    for latency_ms in [] if options.no_sleeping else options.latency_ms:
        devices.append(Device(f"sleeping, {latency_ms:g} ms", SleepingEncoder(stand_in, latency_ms / 1000), {}))
    return devices + [
        _emulated(emulated, session, latency_ms, count, in_workers=options.in_workers)
        for latency_ms in options.latency_ms
        for count in options.devices
    ]


def _emulated(
    bundle: CompiledBundle, session: SessionOptions, latency_ms: float, count: int, *, in_workers: bool
) -> Device:
    settings = {"latency_ms": latency_ms, "threads": 1, "devices": count}
    if in_workers:
        session = dataclasses.replace(session, worker=emulated_worker(**settings))
    name = f"emulated, {latency_ms:g} ms" + (f", {count} cards" if count > 1 else "")
    environment = {f"CLIPMLU_EMULATOR_{key.upper()}": str(value) for key, value in settings.items()}
    return Device(name, Encoder(bundle, session, devices=range(count)), environment)


def _tiny_bundle(work: Path, side: int, target: str) -> CompiledBundle:
    """Return a bundle whose computing time is negligible beside the transfer of its pixels."""
    compiled_name = f"{target}-uint8" if side == SMALL_SIDE else target
    folder, exported, compiled = (work / f"tiny-{side}-{name}" for name in ("source", "exported", compiled_name))
    if not exported.exists():
        folder.mkdir(parents=True, exist_ok=True)
        vision = {"image_size": side, "layers": 1, "width": 16, "head_width": 16, "patch_size": side // 2}
        model = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TINY_TEXT}
        content = {"model_cfg": model, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
        (folder / "open_clip_config.json").write_text(json.dumps(content))
        write_stand_in_tokenizer(folder / "tokenizer.json", 300)
        export_model(f"local-dir:{folder}", exported, ExportOptions(random_weights=True))
    if not compiled.exists():
        options = CompileOptions(target=target, uint8_input=side == SMALL_SIDE)
        compile_bundle(open_exported(exported), compiled, options)
    return open_compiled(compiled, verify=False)


def _measure(
    devices: list[Device], sources: list[ImageSource], options: argparse.Namespace
) -> dict[str, dict[str, list[float]]]:
    """Map each device and stage to the seconds per image of each round; the first round is the warm-up."""
    times: dict[str, dict[str, list[float]]] = {device.name: {stage: [] for stage in STAGES} for device in devices}
    by_name = {device.name: device for device in devices}
    rounds = range(1 + options.rounds)
    progress = Progress(name for _ in rounds for name in by_name)
    for number in rounds:
        for name in rotated(list(by_name), number):
            device = by_name[name]
            os.environ.update(device.environment)
            actions: dict[str, Callable[[], None]] = {
                "host": functools.partial(_prepare, device.encoder, sources, options.workers),
                "device": functools.partial(_submit, device.encoder, len(sources), options.batch_size),
                "whole": functools.partial(_embed, device.encoder, sources, options),
            }
            for stage in rotated(STAGES, number):
                start = time.perf_counter()
                actions[stage]()
                if number:
                    times[name][stage].append((time.perf_counter() - start) / len(sources))
            rates = [f"{stage} {len(taken) / sum(taken):.1f}" for stage, taken in times[name].items() if taken]
            progress.step(
                name, f"round {number} of {options.rounds}, {', '.join(rates)} images/s" if rates else "warm-up"
            )
    return times


def _prepare(encoder: Encoder, sources: list[ImageSource], workers: int) -> None:
    """Decode and preprocess; each thread writes all images to the same buffer."""
    preprocessor, dtype = encoder.preprocessor, encoder.pixel_dtype

    def prepare(part: list[ImageSource]) -> None:
        place = np.empty(preprocessor.shape, dtype)
        for source in part:
            preprocessor.write(preprocessor.decode(source), place)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(prepare, [sources[first::workers] for first in range(workers)]))


def _submit(encoder: Encoder, count: int, batch_size: int) -> None:
    pixels = np.zeros((batch_size, *encoder.preprocessor.shape), encoder.pixel_dtype)
    pending: deque[Any] = deque()
    for start in range(0, count, batch_size):
        pending.append(encoder.submit_images(pixels[: count - start]))
        if len(pending) > encoder.batches_in_flight:
            pending.popleft().result()
    for batch in pending:
        batch.result()


def _embed(encoder: Encoder, sources: list[ImageSource], options: argparse.Namespace) -> None:
    items = (item_from_source(source, number) for number, source in enumerate(sources))
    for outcome in embed_items(encoder, items, batch_size=options.batch_size, workers=options.workers):
        outcome.require_row()


def _row(name: str, taken: dict[str, list[float]]) -> dict[str, Any]:
    middle = {stage: statistics.median(taken[stage]) for stage in STAGES}
    slowest = map(max, taken["host"], taken["device"])
    row = row_from_ratios(name, taken["whole"], [a / b for a, b in zip(slowest, taken["whole"], strict=True)])
    return {
        "name": name,
        **{stage: 1 / middle[stage] for stage in STAGES},
        "slower": "host" if middle["host"] > middle["device"] else "device",
        "ratio": row.ratio,
        "ratio_text": row.spread,
        "times": taken,
    }


if __name__ == "__main__":
    main()
