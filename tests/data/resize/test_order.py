"""The order of Pillow's passes."""

from __future__ import annotations

import PIL
import pytest
from PIL import Image

from clipmlu.data.resize.order import describe_pillow, pass_order, vertical_first


def test_order_is_that_of_the_installed_version() -> None:
    version = tuple(map(int, PIL.__version__.split(".")[:2]))
    expected = "vertical first if tall" if version >= (13, 0) else "vertical first if 100 times as tall"
    assert pass_order() == (expected if version >= (12, 2) else "horizontal first")
    assert describe_pillow() == f"{PIL.__version__} ({pass_order()})"


def test_unknown_order_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    resize = Image.Image.resize

    def transposed(self: Image.Image, size: tuple[int, int], resample: int) -> Image.Image:
        """The vertical pass first in all images, which no Pillow does."""
        return resize(resize(self, (self.width, size[1]), resample), size, resample)

    monkeypatch.setattr(Image.Image, "resize", transposed)
    assert pass_order.__wrapped__() == "unknown"


@pytest.mark.parametrize(
    ("size", "resized", "expected"),
    [
        ((500, 1200), (224, 537), True),  # 663 > 2 * 276
        ((20, 60), (11, 42), False),  # 18 = 2 * 9
        ((20, 60), (11, 41), True),
        ((20, 60), (30, 60), False),  # the height stays
        ((20, 60), (30, 59), True),
        ((20, 60), (30, 70), False),
    ],
)
def test_rule_of_pillow_13(size: tuple[int, int], resized: tuple[int, int], expected: bool) -> None:
    assert vertical_first("vertical first if tall", size, resized) is expected


@pytest.mark.parametrize(
    ("size", "resized", "expected"),
    [
        ((3, 301), (5, 300), True),
        ((3, 300), (5, 299), False),  # exactly 100 times
        ((3, 301), (5, 301), False),  # the height stays
        ((500, 1200), (224, 537), False),
    ],
)
def test_rule_of_pillow_12_2(size: tuple[int, int], resized: tuple[int, int], expected: bool) -> None:
    assert vertical_first("vertical first if 100 times as tall", size, resized) is expected
    assert vertical_first("horizontal first", size, resized) is False


def test_order_of_pillow_12_2_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for Pillow's ``resize`` that computes the passes one by one, in the order of 12.2."""
    resize = Image.Image.resize

    def in_two_steps(self: Image.Image, size: tuple[int, int], resample: int) -> Image.Image:
        tall = self.height > 100 * self.width and size[1] < self.height
        between = (self.width, size[1]) if tall else (size[0], self.height)
        return resize(resize(self, between, resample), size, resample)

    monkeypatch.setattr(Image.Image, "resize", in_two_steps)
    assert pass_order.__wrapped__() == "vertical first if 100 times as tall"
