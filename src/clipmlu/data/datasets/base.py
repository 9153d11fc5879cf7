"""The interface of all datasets."""

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
        split: name of the split.
        class_names: name of each class for prompts; a label is an index into it.
        original_names: name of each class in the dataset's own spelling.
        max_pixels: largest width x height of an image; larger images are errors.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    original_names: tuple[str, ...]
    max_pixels: int

    def __len__(self) -> int:
        """Return the number of images."""

    def label(self, index: int) -> int:
        """Return the class of an image, 0..len(class_names)-1."""

    def image(self, index: int) -> Image.Image:
        """Return the decoded image.

        Raises:
            InputError: the image cannot be read.
        """

    def source(self, index: int) -> ImageSource:
        """Return the image's file, or the image itself if it has no file of its own."""

    def key(self, index: int) -> str:
        """Return a stable identifier of the image."""


def check_dataset(dataset: object) -> None:
    """Check that a value is a dataset and not, for instance, a dataset's name.

    Raises:
        OptionError: it is not; the message says how to open a dataset.
    """
    members = ("name", "split", "class_names", "original_names", "max_pixels", "label", "image", "source", "key")
    if not all(hasattr(dataset, member) for member in (*members, "__len__")):
        name = dataset if isinstance(dataset, str) else "NAME"
        raise OptionError(
            f"dataset is {shown(dataset)}; expected an open dataset, such as clipmlu.open_dataset('{name}') gives"
        )


def spread_over_classes(dataset: Dataset, seed: int) -> npt.NDArray[np.int64]:
    """Return an order of the images in which every prefix contains all classes equally often, as far as possible.

    Args:
        dataset: the images.
        seed: random seed of the order within each class.

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
