"""Selection of images, and checks for overlap with the calibration."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
from PIL import Image

from clipmlu.data.images import content_digest
from clipmlu.errors import InputError, OptionError, OverlapError
from clipmlu.specs import Spec


class SkippedImage(Spec, frozen=True, kw_only=True):
    """An image that could not be read, and the reason."""

    id: str
    reason: str


class ImageCollection(Protocol):
    """Images of which some are chosen."""

    @property
    def name(self) -> str:
        """Name of the collection, for messages."""

    @property
    def split(self) -> str:
        """Name of its split."""

    def __len__(self) -> int:
        """Return the number of images."""


def choose_images(dataset: ImageCollection, samples: int | None, *, shuffle: bool, seed: int) -> list[int]:
    """Return the positions of the selected images: the first ones, or random ones.

    Args:
        dataset: the images.
        samples: number of images; None for all.
        shuffle: select randomly.
        seed: random seed of the selection.

    Raises:
        OptionError: the dataset has fewer images.
        InputError: the dataset has no images.
    """
    available = len(dataset)
    if available == 0:
        raise InputError(
            f"'{dataset.name}' has no images in its split '{dataset.split}'. Give another split or dataset."
        )
    count = available if samples is None else samples
    if count > available:
        where = f" in its split '{dataset.split}'" if dataset.split else ""
        raise OptionError(f"samples is {count}, but '{dataset.name}' has {available} images{where}")
    if not shuffle:
        return list(range(count))
    order = np.random.default_rng(seed).permutation(available)
    return [int(index) for index in order[:count]]


class Overlap:
    """Detects images that a bundle was calibrated with; several threads may share it.

    Args:
        known: content digests of the calibration images.
        owner: name of the calibrated bundle, for messages.
        instead: advice on other images, for messages.
        allowed: accept such images, and list them.

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
        """Raise for an image that a bundle was calibrated with, or list it if that is allowed.

        Raises:
            OverlapError: it is such an image, and that is not allowed.
        """
        if self._known:
            self.check_digest(name, content_digest(image))

    def check_digest(self, name: str, digest: str) -> None:
        """Check an image by its content digest; see ``check``."""
        if digest in self._known:
            if not self._allowed:
                raise OverlapError(
                    f"Image '{name}' is one that {self._owner} was calibrated with. "
                    f"{self._instead}. Only 'clipmlu eval --allow-overlap' and 'clipmlu compare --allow-overlap' take it, and "
                    "mark the report."
                )
            self.found.append(name)
