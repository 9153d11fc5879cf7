"""The user's choice of a labelled dataset."""

from __future__ import annotations

import dataclasses
import os

from clipmlu.arguments import check_fields
from clipmlu.data.class_names import FolderNames
from clipmlu.data.datasets import Dataset, open_dataset
from clipmlu.data.images import DEFAULT_MAX_PIXELS
from clipmlu.specs import NaturalInt, PositiveInt


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetChoice:
    """A dataset and how to open it; validated on construction.

    Attributes:
        name: ``cifar100``, ``cifar10``, ``demo`` or ``imagefolder:PATH``.
        split: split of the dataset; None for its default.
        class_names: other names for its classes; see ``open_dataset``.
        folder_names: use the names of class folders even if they look like ids or splits.
        data_dir: folder of its files; see ``open_dataset``.
        download: download missing datasets.
        size: number of images of a generated dataset; None for its default.
        seed: seed of a generated dataset.
        max_pixels: largest width x height of an image of a folder that is decoded.
    """

    name: str
    split: str | None = None
    class_names: FolderNames | None = None
    folder_names: bool = False
    data_dir: str | os.PathLike[str] | None = None
    download: bool = True
    size: PositiveInt | None = None
    seed: NaturalInt = 0
    max_pixels: PositiveInt = DEFAULT_MAX_PIXELS

    def __post_init__(self) -> None:
        check_fields(self)

    def open(self, *, default_split: str = "test") -> Dataset:
        """Open the dataset.

        Args:
            default_split: see ``open_dataset``.

        Raises:
            UnknownNameError, OptionError, InputError: as ``open_dataset``.
        """
        return open_dataset(
            self.name,
            self.split,
            default_split=default_split,
            class_names=self.class_names,
            folder_names=self.folder_names,
            data_dir=self.data_dir,
            download=self.download,
            size=self.size,
            seed=self.seed,
            max_pixels=self.max_pixels,
        )
