"""The registry of datasets: one file per source, one name each."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from clipmlu.data.datasets.base import Dataset, spread_over_classes
from clipmlu.errors import OptionError, UnknownNameError
from clipmlu.file_names import expand_home

__all__ = [
    "DATASETS",
    "DEMO_SIZE",
    "Dataset",
    "DatasetInfo",
    "locate_dataset",
    "open_dataset",
    "open_folder",
    "spread_over_classes",
]

DEMO_SIZE = 1000
_FOLDER_PREFIX = "imagefolder:"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What ``clipmlu datasets`` shows of one dataset."""

    name: str
    splits: tuple[str, ...]
    classes: str
    description: str


DATASETS: dict[str, DatasetInfo] = {
    info.name: info
    for info in (
        DatasetInfo(
            name="demo",
            splits=("train", "test"),
            classes="colour-shape pairs",
            description="drawn shapes, made on the fly; the test split has only pairs that the demo model never saw",
        ),
        DatasetInfo(name="cifar100", splits=("train", "test"), classes="100", description="CIFAR-100, 32 x 32 photos"),
        DatasetInfo(name="cifar10", splits=("train", "test"), classes="10", description="CIFAR-10, 32 x 32 photos"),
        DatasetInfo(
            name="imagefolder:PATH",
            splits=("any",),
            classes="sub-folders",
            description="a folder with one sub-folder of images per class",
        ),
    )
}


def open_dataset(
    name: str,
    split: str = "test",
    *,
    data_dir: Path | None = None,
    download: bool = True,
    size: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Open a dataset by name.

    Args:
        name: ``cifar100``, ``cifar10``, ``demo`` or ``imagefolder:PATH``.
        split: which part of it.
        data_dir: where to look for its files; see ``CifarDataset``.
        download: fetch what is not on this machine.
        size: number of images of a generated dataset; None for its default.
        seed: seed of a generated dataset.

    Raises:
        UnknownNameError: there is no such dataset.
        OptionError: there is no such split.
        InputError: its files cannot be found, read or downloaded.
    """
    if name.startswith(_FOLDER_PREFIX):
        from clipmlu.data.datasets.imagefolder import ImageFolder

        return ImageFolder(expand_home(name.removeprefix(_FOLDER_PREFIX)), split)
    if name not in DATASETS:
        raise UnknownNameError("dataset", name, DATASETS)
    if split not in DATASETS[name].splits:
        raise OptionError(f"Dataset '{name}' has no split '{split}'; it has {', '.join(DATASETS[name].splits)}.")
    if name == "demo":
        from clipmlu.data.datasets.demo import DemoDataset

        return DemoDataset(split, size=DEMO_SIZE if size is None else size, seed=seed)
    from clipmlu.data.datasets.cifar import CIFAR10, CIFAR100, CifarDataset

    source = CIFAR100 if name == "cifar100" else CIFAR10
    return CifarDataset(source, split, data_dir=data_dir, download=download)


def open_folder(path: Path, split: str) -> Dataset:
    """Open a folder of images, with one sub-folder per class or without any.

    Args:
        path: the folder.
        split: a sub-folder of that name is read instead, if there is one.

    Raises:
        InputError: there is no such folder, or no image in it.
    """
    from clipmlu.data.datasets.imagefolder import ImageFolder, UnlabelledFolder
    from clipmlu.data.finding import LeftOut, sub_folders

    root = path / split if (path / split).is_dir() else path
    has_classes = root.is_dir() and any(found.error is None for found in sub_folders(root, LeftOut()))
    return ImageFolder(path, split) if has_classes else UnlabelledFolder(root)


def locate_dataset(name: str) -> str:
    """Where a dataset is on this machine, in words; nothing is read or downloaded."""
    if name == "demo":
        return "generated"
    if name not in ("cifar10", "cifar100"):
        return "yours"
    from clipmlu.data.datasets.cifar import CIFAR10, CIFAR100, find_folder

    folder = find_folder(CIFAR100 if name == "cifar100" else CIFAR10, None)
    return "not here; downloaded on first use" if folder is None else str(folder)
