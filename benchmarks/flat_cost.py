"""Time per image and peak memory, from 100 to 100,000 images.

    python benchmarks/flat_cost.py BUNDLE [--counts N...] [--rounds N] [--threads N] [--workers N] [--png] [--json FILE]

BUNDLE is a compiled one with a small image tower, such as the demo model's. The images are drawn, 32 x 32, and created
one by one on demand: arrays converted to images, or with ``--png`` the bytes of PNG files. Each count runs in its own
process, so that the peak of the resident memory belongs to that count; the counts alternate within each round. Loading
the bundle and a warm-up are not timed, but their memory counts.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _timing import cores, print_machine, print_table, rotated, write_json
from PIL import Image

from clipmlu.backends import SessionOptions
from clipmlu.bundle.directory import open_compiled
from clipmlu.data.images import load_image
from clipmlu.embed.encoder import Encoder
from clipmlu.embed.images import embed_items
from clipmlu.embed.items import ImageItem

SIDE = 32
DIFFERENT = 256
WARM_UP = 64


def main() -> None:
    """Measure and print; in a child process, measure one count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1_000, 10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--png", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(_embed(options, options.one)))
        return
    print_machine()
    taken: dict[int, list[dict[str, float]]] = {count: [] for count in options.counts}
    for number in range(options.rounds):
        for count in rotated([str(count) for count in options.counts], number):
            taken[int(count)].append(_run_child(count))
    rows = [_row(count, samples) for count, samples in taken.items()]
    print_table(
        ["images", "images/s", "ms per image", "peak memory, MiB"],
        [
            (f"{row['images']:,}", f"{row['rate']:.0f}", f"{1000 / row['rate']:.3f}", f"{row['peak_mib']:.0f}")
            for row in rows
        ],
    )
    ratios = [max(row[key] for row in rows) / min(row[key] for row in rows) for key in ("rate", "peak_mib")]
    print(f"\nLargest over smallest: images/s {ratios[0]:.3f}, peak memory {ratios[1]:.3f}")
    write_json(options.json, {"benchmark": "flat_cost", "rows": rows})


def _run_child(count: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--one", count]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    sample: dict[str, float] = json.loads(result.stdout)
    return sample


def _row(count: int, samples: list[dict[str, float]]) -> dict[str, Any]:
    middle = {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}
    return {"images": count, "rate": count / middle["seconds"], "peak_mib": middle["peak_mib"], "samples": samples}


def _embed(options: argparse.Namespace, count: int) -> dict[str, float]:
    """Embed a number of images, and discard the results."""
    sources = _draw(options.png)
    with Encoder(open_compiled(options.bundle, verify=False), SessionOptions(threads=options.threads)) as encoder:
        embed = functools.partial(embed_items, encoder, batch_size=options.batch_size, workers=options.workers)
        for outcome in embed(_items(sources, WARM_UP)):
            outcome.require_row()
        start = time.perf_counter()
        embedded = sum(outcome.row is not None for outcome in embed(_items(sources, count)))
        seconds = time.perf_counter() - start
    if embedded != count:
        raise SystemExit(f"{embedded} embeddings of {count} images.")
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "peak_mib": peak_kib / 1024}


def _draw(as_png: bool) -> list[bytes | np.ndarray]:
    generator = np.random.default_rng(0)
    arrays = generator.integers(0, 256, (DIFFERENT, SIDE, SIDE, 3), dtype=np.uint8)
    return [_png(array) if as_png else array for array in arrays]


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def _items(sources: list[Any], count: int) -> Iterator[ImageItem]:
    for number in range(count):
        yield ImageItem(str(number), functools.partial(load_image, sources[number % DIFFERENT]))


if __name__ == "__main__":
    main()
