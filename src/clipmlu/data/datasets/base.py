"""What every dataset offers."""

from __future__ import annotations

from typing import Protocol

from PIL import Image


class Dataset(Protocol):
    """Labelled images with random access.

    Attributes:
        name: the dataset's name, such as ``"cifar100"``.
        split: which part of it.
        class_names: what the labels index, as words for prompts.
        original_names: the same, as the dataset itself spells them.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    original_names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of images."""

    def label(self, index: int) -> int:
        """The class of an image, 0..len(class_names)-1."""

    def image(self, index: int) -> Image.Image:
        """The image, decoded.

        Raises:
            InputError: it cannot be read.
        """

    def key(self, index: int) -> str:
        """A stable identifier of the image."""
