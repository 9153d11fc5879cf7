"""Drawn shapes, generated on demand: "a red circle" on a noisy background. Data for the demo model and for tests.

Every image is a pure function of its class name, a seed and a side, so a dataset of any size has random access and
needs
no files. A quarter of the colour-shape pairs is held out of the train split and forms the test split: a model that
classifies them correctly has learned colours and shapes, not single pairs.

Colours are opaque and saturated (or black); backgrounds and distractors are light greys and pastels, so the colour of
the
shape is never ambiguous. Only uniform numbers of NumPy's PCG64 are drawn, in a fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from clipmlu.data.datasets.elements import DatasetBase
from clipmlu.data.images import DEFAULT_MAX_PIXELS

__all__ = ["CLASS_NAMES", "COLOURS", "HELD_OUT", "SHAPES", "DemoDataset", "draw", "draw_shape"]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 36),
    "orange": (244, 134, 22),
    "yellow": (240, 218, 30),
    "green": (34, 150, 54),
    "cyan": (24, 196, 210),
    "blue": (36, 66, 206),
    "purple": (132, 42, 168),
    "black": (22, 22, 24),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "moon")
CLASS_NAMES: tuple[str, ...] = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
# Two shapes of every colour and two colours of every shape: each still occurs six times in the train split.
HELD_OUT: frozenset[str] = frozenset(
    f"{colour} {shape}"
    for column, colour in enumerate(COLOURS)
    for row, shape in enumerate(SHAPES)
    if (column - row) % len(SHAPES) in (0, 3)
)

_SPLITS = ("train", "test")
_SUPERSAMPLING = 4
_SHADE = 14  # largest deviation of a channel from its colour, out of 255
_INDEX_BITS = 40

_Points = npt.NDArray[np.float64]


class DemoDataset(DatasetBase):
    """Drawn shapes with random access; see ``Dataset``.

    The classes alternate, so that any range of indices is balanced. The image at an index does not depend on ``size``.

    Args:
        split: ``train`` draws seen pairs only, ``test`` held-out pairs only. No image is in both.
        size: number of images, at least 1.
        seed: random seed of the dataset, at least 0.

    Attributes:
        name: ``"demo"``.
        split: as given.
        class_names: all pairs, seen and held out, for both splits.

    Raises:
        ValueError: there is no such split, ``size`` is below 1, or ``seed`` is below 0.
    """

    max_pixels = DEFAULT_MAX_PIXELS

    def __init__(self, split: str = "test", size: int = 1000, seed: int = 0) -> None:
        if split not in _SPLITS:
            raise ValueError(f"Dataset 'demo' has no split '{split}'; it has {', '.join(_SPLITS)}.")
        if not 1 <= size <= 1 << _INDEX_BITS:
            raise ValueError(f"Dataset 'demo' cannot have {size} images; expected at least 1.")
        if seed < 0:
            raise ValueError(f"Dataset 'demo' cannot have the seed {seed}; expected 0 or more.")
        self.name = "demo"
        self.split = split
        self.class_names: tuple[str, ...] = CLASS_NAMES
        self.original_names: tuple[str, ...] = CLASS_NAMES
        self._size = size
        self._seed = seed
        held_out = split == "test"
        self._labels = [label for label, name in enumerate(CLASS_NAMES) if (name in HELD_OUT) == held_out]

    def __len__(self) -> int:
        return self._size

    def label(self, index: int) -> int:
        """Return the class of an image, 0..63.

        Raises:
            IndexError: ``index`` is not in 0..len-1.
        """
        return self._labels[self._checked(index) % len(self._labels)]

    def image(self, index: int) -> Image.Image:
        """Return the image, RGB, 96 x 96 pixels.

        Raises:
            IndexError: ``index`` is not in 0..len-1.
        """
        name = CLASS_NAMES[self.label(index)]
        return draw(name, ((self._seed * len(_SPLITS) + _SPLITS.index(self.split)) << _INDEX_BITS) + index)

    def source(self, index: int) -> Image.Image:
        """Return the image itself."""
        return self.image(index)

    def key(self, index: int) -> str:
        """Return an identifier of split, seed and index, such as ``"demo/test/0/000017"``.

        Raises:
            IndexError: ``index`` is not in 0..len-1.
        """
        return f"{self.name}/{self.split}/{self._seed}/{self._checked(index):06d}"

    def _checked(self, index: int) -> int:
        if not 0 <= index < self._size:
            raise IndexError(f"Dataset 'demo' has no image {index}; expected 0..{self._size - 1}.")
        return index


def draw(class_name: str, seed: int, side: int = 96) -> Image.Image:
    """Draw one shape of one colour.

    Position, size, rotation, shade and background depend on the seed alone: two classes drawn with the same seed differ
    only
    in the class.

    Args:
        class_name: one of ``CLASS_NAMES``.
        seed: any integer from 0.
        side: width and height in pixels, at least 16.

    Returns:
        An RGB image.

    Raises:
        ValueError: there is no such class, or ``seed`` or ``side`` is too small.
    """
    if class_name not in CLASS_NAMES:
        raise ValueError(
            f"No class '{class_name}'; expected a colour ({', '.join(COLOURS)}) and a shape ({', '.join(SHAPES)})."
        )
    colour, shape = class_name.split()
    return draw_shape(shape, COLOURS[colour], seed, side)


def draw_shape(shape: str, colour: tuple[int, int, int], seed: int, side: int = 96) -> Image.Image:
    """Draw one shape in any colour; see ``draw``.

    Args:
        shape: one of ``SHAPES``.
        colour: red, green and blue, 0..255; the drawn shade differs a little from it.
        seed: any integer from 0.
        side: width and height in pixels, at least 16.

    Returns:
        An RGB image.

    Raises:
        ValueError: there is no such shape, or ``seed`` or ``side`` is too small.
    """
    if shape not in SHAPES:
        raise ValueError(f"No shape '{shape}'; expected one of {', '.join(SHAPES)}.")
    if seed < 0 or side < 16:
        raise ValueError(f"Cannot draw with the seed {seed} and the side {side}; expected at least 0 and 16.")
    rng = np.random.default_rng(seed)
    canvas = Image.fromarray(_background(rng, side))
    _scatter_distractors(canvas, rng)
    shade = tuple(_shaded(channel, drift) for channel, drift in zip(colour, rng.random(3), strict=True))
    canvas.paste(shade, mask=_mask(shape, rng, side))
    noise = (rng.random((side, side, 3)) - 0.5) * 24 * rng.random()
    return Image.fromarray(np.clip(np.asarray(canvas) + noise, 0, 255).astype(np.uint8))


def _shaded(channel: int, drift: float) -> int:
    return round(min(255.0, max(0.0, channel + (2 * drift - 1) * _SHADE)))


def _background(rng: np.random.Generator, side: int) -> npt.NDArray[np.uint8]:
    """Return a flat or graded light background, uint8, shape (side, side, 3): greys of 130..235, tinted by at most 20."""
    ends = 130 + 105 * rng.random((2, 1)) + 20 * (2 * rng.random((2, 3)) - 1)
    if rng.random() < 0.4:
        ends[1] = ends[0]
    angle = 2 * math.pi * rng.random()
    axis = np.linspace(-0.5, 0.5, side)
    along = 0.5 + (axis[None, :] * math.cos(angle) + axis[:, None] * math.sin(angle)) / math.sqrt(2)
    graded = ends[0] + (ends[1] - ends[0]) * along[..., None]
    ground: npt.NDArray[np.uint8] = np.clip(graded, 0, 255).astype(np.uint8)
    return ground


def _scatter_distractors(canvas: Image.Image, rng: np.random.Generator) -> None:
    """Draw up to five thin grey lines and up to seven grey dots."""
    pen = ImageDraw.Draw(canvas)
    side = canvas.width
    for _ in range(int(6 * rng.random())):
        x0, y0, x1, y1, level = rng.random(5)
        grey = round(105 + 145 * level)
        pen.line((x0 * side, y0 * side, x1 * side, y1 * side), fill=(grey, grey, grey), width=max(1, side // 64))
    for _ in range(int(8 * rng.random())):
        x, y, size, level = rng.random(4)
        grey, radius = round(105 + 145 * level), side * (0.01 + 0.015 * size)
        pen.ellipse(
            (x * side - radius, y * side - radius, x * side + radius, y * side + radius), fill=(grey, grey, grey)
        )


def _mask(shape: str, rng: np.random.Generator, side: int) -> Image.Image:
    """Return the coverage of the shape, mode L, anti-aliased.

    The shape's radius is 0.22..0.38 of the side, it is rotated by up to 30 degrees, and it lies inside the image.
    """
    radius = 0.22 + 0.16 * rng.random()
    centre = radius + (1 - 2 * radius) * rng.random(2)
    angle = math.pi / 6 * (2 * rng.random() - 1)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    large = side * _SUPERSAMPLING
    mask = Image.new("L", (large, large))
    pen = ImageDraw.Draw(mask)
    for points, ink in _OUTLINES[shape]():
        placed = (centre + radius * points @ turn.T) * large
        pen.polygon([(float(x), float(y)) for x, y in placed], fill=ink)
    return mask.reduce(_SUPERSAMPLING)


# Outlines within the unit circle, each as polygons to fill (255) or to cut out (0), float64, shape (corners, 2).

_Outline = list[tuple[_Points, int]]


def _around(radii: list[float], *, start: float = -0.25) -> _Points:
    """Return corners at equal angles, beginning at the top, at the given distances from the centre."""
    angles = 2 * math.pi * (start + np.arange(len(radii)) / len(radii))
    corners: _Points = np.array(radii)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return corners


def _disc(radius: float, *, shift: float = 0.0) -> _Points:
    corners: _Points = _around([radius] * 96) + np.array([shift, 0.0])
    return corners


def _cross() -> _Outline:
    arm, width = 0.95, 0.3
    right = np.array([[width, -width], [arm, -width], [arm, width]])
    quarter = np.array([[0.0, -1.0], [1.0, 0.0]])
    corners = [right]
    for _ in range(3):
        corners.append(corners[-1] @ quarter.T)
    return [(np.concatenate(corners), 255)]


def _heart() -> _Outline:
    """The curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t (https://mathworld.wolfram.com/HeartCurve.html)."""
    t = np.linspace(0, 2 * math.pi, 96, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [(np.stack([x, -y - 2.5], axis=1) / 17, 255)]


_OUTLINES: dict[str, Callable[[], _Outline]] = {
    "circle": lambda: [(_disc(0.95), 255)],
    "square": lambda: [(_around([1.0] * 4, start=-0.125), 255)],
    "triangle": lambda: [(_around([1.0] * 3), 255)],
    "star": lambda: [(_around([1.0, 0.4] * 5), 255)],
    "cross": _cross,
    "ring": lambda: [(_disc(0.98), 255), (_disc(0.58), 0)],
    "heart": _heart,
    "moon": lambda: [(_disc(0.98), 255), (_disc(0.85, shift=0.55), 0)],
}
