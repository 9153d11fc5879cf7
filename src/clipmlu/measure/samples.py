"""Which images are measured, which were seen before, which cannot be read."""

from __future__ import annotations

import numpy as np
from PIL import Image

from clipmlu.data.datasets import Dataset
from clipmlu.data.images import content_digest
from clipmlu.embed.encoder import Encoder
from clipmlu.errors import OptionError, OverlapError
from clipmlu.specs import Spec


class SkippedImage(Spec, frozen=True, kw_only=True):
    """An image that could not be read, and why."""

    id: str
    reason: str


def choose_images(dataset: Dataset, samples: int | None, *, shuffle: bool, seed: int) -> list[int]:
    """Which images are looked at: the first ones, or some drawn at random.

    Args:
        dataset: the images.
        samples: how many; None for all.
        shuffle: draw them.
        seed: of the drawing.

    Raises:
        OptionError: there are not so many.
    """
    available = len(dataset)
    count = available if samples is None else samples
    if count > available:
        raise OptionError(
            f"samples is {count}, but '{dataset.name}' has {available} images in its split '{dataset.split}'"
        )
    if not shuffle:
        return list(range(count))
    order = np.random.default_rng(seed).permutation(available)
    return [int(index) for index in order[:count]]


class Overlap:
    """Looks for images that the bundle was calibrated with; used from several threads.

    Attributes:
        found: ids of such images.
    """

    def __init__(self, encoder: Encoder, *, allowed: bool) -> None:
        self._bundle = encoder.bundle
        self._known = frozenset(encoder.bundle.calibration_data().images)
        self._allowed = allowed
        self.found: list[str] = []

    def check(self, name: str, image: Image.Image) -> None:
        """Refuse or note an image that the bundle was calibrated with.

        Raises:
            OverlapError: it is one, and that is not allowed.
        """
        if self._known and content_digest(image) in self._known:
            if not self._allowed:
                raise OverlapError(
                    f"Image '{name}' is one that bundle '{self._bundle.path}' was calibrated with. "
                    "Evaluate others, or add --allow-overlap, which marks the report."
                )
            self.found.append(name)
