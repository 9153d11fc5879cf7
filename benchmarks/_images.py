"""Draws a folder of JPEGs with the decoding cost of photos: sizes, noise of many scales, edges, 4:2:0 at quality 90.

    python benchmarks/_images.py FOLDER [--count N] [--seed S]

Sides are 320 to 1,200 pixels, about 0.58 megapixels in the mean. A folder with the same seed is reused if it holds
enough images. Every image is a crop of one of a few large textures, so that thousands take a minute or two.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

MARKER = "generated.json"
VERSION = 1
SMALLEST, LARGEST = 320, 1200
QUALITY = 90
_TEXTURES = 16
_TEXTURE_SIDE = 1600
_OCTAVES = range(2, 11)
_ROUGHNESS = 0.95  # amplitude falls with frequency to this power, as in photos

Pixels = npt.NDArray[np.float32]


def obtain_images(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Return the paths of ``count`` images in ``folder``; create missing ones."""
    paths = [folder / f"{number:06}.jpg" for number in range(count)]
    marker = folder / MARKER
    facts = json.loads(marker.read_text()) if marker.is_file() else {}
    same = (facts.get("seed"), facts.get("version")) == (seed, VERSION)
    if not same or facts["count"] < count:
        folder.mkdir(parents=True, exist_ok=True)
        _write_images(paths, seed)
        marker.write_text(json.dumps({"seed": seed, "version": VERSION, "count": count, **_measure(paths)}) + "\n")
    return paths


def _write_images(paths: list[Path], seed: int) -> None:
    """Write images; each depends on the seed and its number only, so that a longer run begins with the same images."""
    textures = [_draw_texture(np.random.default_rng([seed, 0, number])) for number in range(min(_TEXTURES, len(paths)))]
    for number, path in enumerate(paths):
        generator = np.random.default_rng([seed, 1, number])
        width, height = (int(side) for side in generator.integers(SMALLEST, LARGEST + 1, size=2))
        left, top = (int(generator.integers(0, _TEXTURE_SIDE - side + 1)) for side in (width, height))
        picture = textures[number % len(textures)].crop((left, top, left + width, top + height))
        if generator.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        picture.save(path, quality=QUALITY, subsampling="4:2:0")


def _draw_texture(generator: np.random.Generator) -> Image.Image:
    grey = _noise(generator)
    tints = [_noise(generator) for _ in range(3)]
    channels = np.stack([128 + 55 * grey + 18 * tint for tint in tints], axis=-1)
    picture = Image.fromarray(np.clip(channels, 0, 255).astype(np.uint8))
    _draw_shapes(picture, generator)
    pixels = np.asarray(picture, dtype=np.float32)
    grain = generator.normal(0, 3.5, size=(*pixels.shape[:2], 1)).astype(np.float32)
    return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))


def _noise(generator: np.random.Generator) -> Pixels:
    """Return a sum of smooth noise over octaves: zero mean, unit variance."""
    total = np.zeros((_TEXTURE_SIDE, _TEXTURE_SIDE), np.float32)
    for octave in _OCTAVES:
        cells = generator.standard_normal((2**octave, 2**octave)).astype(np.float32)
        smooth = Image.fromarray(cells).resize((_TEXTURE_SIDE, _TEXTURE_SIDE), Image.Resampling.BICUBIC)
        total += np.asarray(smooth) / np.float32(2 ** (octave * _ROUGHNESS))
    unit: Pixels = (total - total.mean()) / total.std()
    return unit


def _draw_shapes(picture: Image.Image, generator: np.random.Generator) -> None:
    """Draw half-transparent discs and polygons with edges as sharp as in photos."""
    for _ in range(60):
        mask = Image.new("L", picture.size, 0)
        draw = ImageDraw.Draw(mask)
        x, y = generator.integers(0, _TEXTURE_SIDE, size=2)
        radius = int(generator.integers(20, 220))
        strength = int(generator.integers(60, 200))
        if generator.random() < 0.5:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=strength)
        else:
            corners = generator.integers(-radius, radius + 1, size=(int(generator.integers(3, 7)), 2))
            draw.polygon([(int(x + dx), int(y + dy)) for dx, dy in corners], fill=strength)
        colour = tuple(int(value) for value in generator.integers(0, 256, size=3))
        box = (max(0, x - radius - 4), max(0, y - radius - 4), x + radius + 4, y + radius + 4)
        soft = mask.crop(box).filter(ImageFilter.GaussianBlur(0.8))
        picture.paste(colour, (int(box[0]), int(box[1])), soft)


def _measure(paths: list[Path]) -> dict[str, float]:
    pixels = 0
    for path in paths:
        with Image.open(path) as picture:
            pixels += picture.width * picture.height
    size = sum(path.stat().st_size for path in paths)
    return {"mean_megapixels": round(pixels / len(paths) / 1e6, 4), "bytes_per_pixel": round(size / pixels, 4)}


def main() -> None:
    """Create a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    obtain_images(options.folder, options.count, options.seed)
    print((options.folder / MARKER).read_text(), end="")


if __name__ == "__main__":
    main()
