"""What every dataset offers."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipmlu.arguments import shown
from clipmlu.data.images import ImageSource
from clipmlu.errors import OptionError


class Dataset(Protocol):
    """Labelled images with random access.

    Attributes:
        name: the dataset's name, such as ``"cifar100"``.
        split: which part of it.
        class_names: what the labels index, as words for prompts.
        original_names: the same, as the dataset itself spells them.
        max_pixels: largest width x height of an image that is decoded.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    original_names: tuple[str, ...]
    max_pixels: int

    def __len__(self) -> int:
        """Number of images."""

    def label(self, index: int) -> int:
        """The class of an image, 0..len(class_names)-1."""

    def image(self, index: int) -> Image.Image:
        """The image, decoded.

        Raises:
            InputError: it cannot be read.
        """

    def source(self, index: int) -> ImageSource:
        """What the image is decoded from: a file, or the image itself where there is none of its own."""

    def key(self, index: int) -> str:
        """A stable identifier of the image."""


def check_dataset(dataset: object) -> None:
    """Refuse what is no dataset, such as the name of one.

    Raises:
        OptionError: says how to open it.
    """
    members = ("name", "split", "class_names", "original_names", "max_pixels", "label", "image", "source", "key")
    if not all(hasattr(dataset, member) for member in (*members, "__len__")):
        name = dataset if isinstance(dataset, str) else "NAME"
        raise OptionError(
            f"dataset is {shown(dataset)}; expected an open dataset, such as clipmlu.open_dataset('{name}') gives"
        )


def spread_over_classes(dataset: Dataset, seed: int) -> npt.NDArray[np.int64]:
    """An order of a dataset's images of which every beginning holds all classes alike, as far as there are images.

    Args:
        dataset: the images.
        seed: of the order within each class, and of the classes within each round.

    Returns:
        int64, shape (len(dataset),): each index once.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(dataset))
    labels = np.array([dataset.label(int(index)) for index in order], np.int64)
    by_class = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[by_class], np.arange(labels.max(initial=-1) + 1))
    rounds = np.empty(len(order), np.int64)
    rounds[by_class] = np.arange(len(order)) - starts[labels[by_class]]
    return order[np.argsort(rounds, kind="stable")]
