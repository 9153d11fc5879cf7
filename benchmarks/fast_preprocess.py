"""Effects of --fast-preprocess: pixels, embeddings and speed for photographs, and top-1 of a trained model.

    python benchmarks/fast_preprocess.py PHOTOS [--bundle BUNDLE --data-dir DIR --samples N --side N]

PHOTOS is a folder of JPEGs; both methods are timed in alternation and their pixels compared at 224 x 224, and with a
bundle also their embeddings. With a compiled bundle of a model trained on CIFAR-100, test images are enlarged to ``--side`` pixels and stored as JPEGs, and
both methods are evaluated on them: these are photographs, but without the detail of a camera image of that size.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from pathlib import Path

import numpy as np
from PIL import Image

from clipmlu.classify.probabilities import rank_classes
from clipmlu.data.datasets import open_dataset
from clipmlu.data.images import read_source
from clipmlu.data.jpeg import describe_decoder
from clipmlu.data.picture import picture_size
from clipmlu.data.preprocess import Preprocessor
from clipmlu.data.resize.kernel import describe_kernel
from clipmlu.embed.encoder import Encoder
from clipmlu.embed.images import embed_items
from clipmlu.embed.items import ImageItem, item_from_source
from clipmlu.model import load
from clipmlu.specs import PreprocessSpec

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SUFFIXES = (".jpg", ".jpeg")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--side", type=int, default=320)
    options = parser.parse_args()
    compare_pixels(options.photos, options.rounds)
    if options.bundle is not None:
        compare_embeddings(options)
        compare_accuracy(options)


def compare_pixels(folder: Path, rounds: int) -> None:
    """Print differences and times for each photograph, and the means."""
    spec = PreprocessSpec(height=224, width=224, mean=MEAN, std=STD)
    exact, fast = Preprocessor(spec), Preprocessor(spec, fast=True)
    print(f"{describe_decoder().found}; {describe_kernel()}\n")
    print("| photograph | pixels | decoded | largest difference, of 255 | mean | exact, ms | fast, ms | exact / fast |")
    print("|---|---|---|---|---|---|---|---|")
    times: list[list[float]] = []
    means = []
    for path in photographs(folder):
        content = read_source(path)
        pictures = [each.decode(content) for each in (exact, fast)]
        pixels = [each.pixels(picture).astype(np.int16) for each, picture in zip((exact, fast), pictures, strict=True)]
        difference = np.abs(pixels[0] - pixels[1])
        slow, quick, ratio = compare_times(exact, fast, content, rounds)
        sizes = " | ".join("x".join(map(str, picture_size(picture))) for picture in pictures)
        measured = f"{difference.max()} | {difference.mean():.3f} | {slow:.2f} | {quick:.2f} | {ratio:.2f}"
        print(f"| {path.name} | {sizes} | {measured} |")
        times.append([slow, quick])
        means.append(difference.mean())
    slow, quick = np.mean(times, axis=0)
    print(
        f"\nmean: difference {np.mean(means):.3f}, exact {slow:.2f} ms, fast {quick:.2f} ms, ratio {slow / quick:.2f}"
    )


def compare_times(exact: Preprocessor, fast: Preprocessor, content: object, rounds: int) -> tuple[float, float, float]:
    """Return the medians of a core's milliseconds of both methods, and of their ratio in each round."""
    times: list[list[float]] = [[], []]
    for _ in range(rounds):
        for each, taken in zip((exact, fast), times, strict=True):
            start = time.thread_time()
            each(each.decode(content))  # type: ignore[arg-type]
            taken.append(1000 * (time.thread_time() - start))
    slow, quick = (statistics.median(taken) for taken in times)
    return slow, quick, statistics.median(first / second for first, second in zip(*times, strict=True))


def photographs(folder: Path) -> list[Path]:
    """Return the JPEGs of a folder."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def compare_embeddings(options: argparse.Namespace) -> None:
    """Print how near the embeddings of the photographs are, for the bundle's model."""
    items = [item_from_source(path) for path in photographs(options.photos)]
    rows = []
    for fast in (False, True):
        with load(options.bundle, fast_preprocess=fast) as encoder:
            rows.append(embed(encoder, items))
    cosines = (rows[0] * rows[1]).sum(axis=1)
    print(
        f"\n{len(items)} photographs, cosine of the embeddings: mean {cosines.mean():.6f}, smallest {cosines.min():.4f}"
    )


def compare_accuracy(options: argparse.Namespace) -> None:
    """Print top-1 of both methods on the same files, and the share of equal classes."""
    dataset = open_dataset("cifar100", "test", data_dir=options.data_dir, download=False)
    count = min(options.samples or len(dataset), len(dataset))
    labels = np.array([dataset.label(index) for index in range(count)])
    items = [
        ImageItem(str(index), lambda index=index: enlarged(dataset.image(index), options.side))
        for index in range(count)
    ]  # type: ignore[misc]
    chosen, embeddings = [], []
    for fast in (False, True):
        with load(options.bundle, fast_preprocess=fast) as encoder:
            rows = embed(encoder, items)
            classifier = encoder.classifier(dataset.class_names)
            chosen.append(rank_classes(classifier.logits(rows), 1)[:, 0])
            embeddings.append(rows)
    cosines = (embeddings[0] * embeddings[1]).sum(axis=1)
    print(f"\n{count} test images of CIFAR-100, enlarged to {options.side} pixels and stored as JPEG of quality 90:")
    for name, best in zip(("exact", "fast"), chosen, strict=True):
        print(f"top-1 {name}: {np.mean(best == labels):.4f}")
    print(f"the same class: {np.mean(chosen[0] == chosen[1]):.4f}")
    print(f"cosine of the embeddings: mean {cosines.mean():.6f}, smallest {cosines.min():.4f}")


def embed(encoder: Encoder, items: list[ImageItem]) -> np.ndarray:
    """Return the embeddings of all items, shape (N, D)."""
    return np.stack([outcome.require_row() for outcome in embed_items(encoder, items)])


def enlarged(image: Image.Image, side: int) -> bytes:
    """Return a JPEG of an image at another size."""
    buffer = io.BytesIO()
    image.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
