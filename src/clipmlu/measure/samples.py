"""Which images are measured, which were seen before, which cannot be read."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image

from clipmlu.data.datasets import Dataset
from clipmlu.data.images import content_digest
from clipmlu.errors import InputError, OptionError, OverlapError
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
        InputError: there are none.
    """
    available = len(dataset)
    if available == 0:
        raise InputError(
            f"'{dataset.name}' has no images in its split '{dataset.split}'. Give another split or dataset."
        )
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
    """Looks for images that a bundle was calibrated with; used from several threads.

    Args:
        known: content digests of the images of the calibration.
        owner: the bundle that was calibrated with them, for messages.
        instead: what to do with other images, for messages.
        allowed: take such images too, and list them.

    Attributes:
        found: ids of such images.
    """

    def __init__(self, known: Iterable[str], owner: str, instead: str, *, allowed: bool) -> None:
        self._known = frozenset(known)
        self._owner = owner
        self._instead = instead
        self._allowed = allowed
        self.found: list[str] = []

    def check(self, name: str, image: Image.Image) -> None:
        """Refuse or list an image that a bundle was calibrated with.

        Raises:
            OverlapError: it is one, and that is not allowed.
        """
        if self._known and content_digest(image) in self._known:
            if not self._allowed:
                raise OverlapError(
                    f"Image '{name}' is one that {self._owner} was calibrated with. "
                    f"{self._instead}, or add --allow-overlap, which marks the report."
                )
            self.found.append(name)
