"""The order of Pillow's passes."""

from __future__ import annotations

import PIL
import pytest
from PIL import Image

from clipmlu.data.resize.order import describe_pillow, pass_order, vertical_first


def test_order_is_that_of_the_installed_version() -> None:
    major = int(PIL.__version__.partition(".")[0])
    assert pass_order() == ("vertical first if tall" if major >= 13 else "horizontal first")
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
def test_pillow_13s_rule(size: tuple[int, int], resized: tuple[int, int], expected: bool) -> None:
    assert vertical_first(size, resized) is expected
