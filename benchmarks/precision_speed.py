"""The image towers of several compiled bundles, in alternation in one run: images per second, and ratio to the first.

    python benchmarks/precision_speed.py BUNDLE BUNDLE... [--batch-size N] [--rounds N] [--threads N]

For instance one bundle for each precision. The bundles alternate within each round; the ratio is the median of the
ratios of the rounds. Results of the emulated SDK are marked, and do not predict those of a card.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from clipmlu.backends import SessionOptions
from clipmlu.bundle.directory import open_compiled
from clipmlu.bundle.manifest import emulated_mark
from clipmlu.embed.encoder import Encoder

WARM_UP = 3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    with ExitStack() as stack:
        encoders = [
            stack.enter_context(Encoder(open_compiled(path), SessionOptions(threads=options.threads)))
            for path in options.bundles
        ]
        spec = encoders[0].bundle.manifest.preprocess
        shape = (options.batch_size, 3, spec.height, spec.width)
        pixels = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        times: list[list[float]] = [[] for _ in encoders]
        for number in range(WARM_UP + options.rounds):
            for encoder, taken in zip(encoders, times, strict=True):
                start = time.perf_counter()
                encoder.submit_images(pixels).result()
                if number >= WARM_UP:
                    taken.append(time.perf_counter() - start)
        print(f"{'bundle':40} {'precision':22} {'images/s':>9} {'ratio':>7}")
        for encoder, taken in zip(encoders, times, strict=True):
            facts = encoder.bundle.compilation
            ratio = statistics.median(first / own for first, own in zip(times[0], taken, strict=True))
            rate = options.batch_size / statistics.median(taken)
            mark = emulated_mark(facts.emulated)
            print(f"{encoder.bundle.path!s:40} {facts.precision.value:22} {rate:9.1f} {ratio:7.2f}{mark}")


if __name__ == "__main__":
    main()
