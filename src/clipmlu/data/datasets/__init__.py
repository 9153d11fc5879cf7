"""The registry of datasets: opening them by name."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path

from clipmlu.arguments import as_path, check_argument
from clipmlu.data.class_names import FolderNames, look_like_ids, name_folders
from clipmlu.data.datasets.base import Dataset, check_dataset, spread_over_classes
from clipmlu.data.datasets.elements import DatasetBase
from clipmlu.data.images import DEFAULT_MAX_PIXELS
from clipmlu.errors import OptionError, UnknownNameError
from clipmlu.file_names import expand_home, name_from_path
from clipmlu.specs import NaturalInt, PositiveInt

__all__ = [
    "DATASETS",
    "DEMO_SIZE",
    "FOLDER_PREFIX",
    "Dataset",
    "DatasetBase",
    "DatasetInfo",
    "check_dataset",
    "locate_dataset",
    "open_dataset",
    "open_folder",
    "spread_over_classes",
]

DEMO_SIZE = 1000
FOLDER_PREFIX = "imagefolder:"
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """One row of ``clipmlu datasets``."""

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
    split: str | None = None,
    *,
    default_split: str = "test",
    class_names: FolderNames | None = None,
    folder_names: bool = False,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
    size: int | None = None,
    seed: int = 0,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> DatasetBase:
    """Open a dataset by name.

    It has a length, elements (``dataset[5]`` is a ``LabelledImage``, which unpacks as image and label) and slices
    (``dataset[:100]``), which are datasets too.

    Args:
        name: ``cifar100``, ``cifar10``, ``demo`` or ``imagefolder:PATH``.
        split: name of the split, which must exist; None for ``default_split``, or for all images of a folder without
            splits.
        default_split: the split if ``split`` is None.
        class_names: other names for the classes: a file, names in the order of the classes, or a map from the dataset's
            own names (folder names) to new names; see ``name_folders``.
        folder_names: use the names of class folders even if they look like ids or splits.
        data_dir: folder of the dataset's files; see ``CifarDataset``.
        download: download missing files.
        size: number of images of a generated dataset; None for its default.
        seed: random seed of a generated dataset.
        max_pixels: largest width x height of a folder's images; larger images are errors.

    Raises:
        UnknownNameError: there is no such dataset.
        OptionError: there is no such split, or two options exclude each other.
        InputError: files cannot be found, read or downloaded, or the class names do not fit.
    """
    if not isinstance(name, str):
        raise OptionError(f"the dataset is {name!r}; expected a name, such as 'cifar100' or 'imagefolder:PATH'")
    for value, kind, what in (
        (split, str | None, "split"),
        (size, PositiveInt | None, "size"),
        (seed, NaturalInt, "seed"),
        (max_pixels, PositiveInt, "max pixels"),
        (folder_names, bool, "folder names"),
        (download, bool, "download"),
    ):
        check_argument(value, kind, what)
    folder = None if data_dir is None else as_path(data_dir, "the dataset's folder")
    if class_names is not None and folder_names:
        raise OptionError("class names and folder names exclude each other; leave --folder-names out")
    if name.startswith(FOLDER_PREFIX):
        from clipmlu.data.datasets.imagefolder import ImageFolder

        return ImageFolder(
            expand_home(name.removeprefix(FOLDER_PREFIX)),
            split,
            default_split=default_split,
            class_names=class_names,
            folder_names=folder_names,
            max_pixels=max_pixels,
        )
    if folder_names:
        raise OptionError(f"--folder-names is for imagefolder:PATH; '{name}' has names of its own")
    dataset = _open_named(name, default_split if split is None else split, folder, download, size, seed)
    if class_names is not None:
        dataset.class_names = name_folders(class_names, dataset.original_names)
    return dataset


def _open_named(
    name: str, split: str, data_dir: Path | None, download: bool, size: int | None, seed: int
) -> DatasetBase:
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


def open_folder(
    path: Path,
    *,
    class_names: FolderNames | None = None,
    folder_names: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> DatasetBase:
    """Open a folder of calibration images, with or without one sub-folder per class.

    Sub-folders named by ids, such as dates, are not classes unless ``class_names`` or ``folder_names`` is given.

    Args:
        path: the folder; if it has a sub-folder ``train``, that is read instead.
        class_names: see ``open_dataset``.
        folder_names: see ``open_dataset``.
        max_pixels: largest width x height of an image; larger images are errors.

    Raises:
        OptionError: the folder has splits, but not ``train``.
        InputError: the folder does not exist or has no images, or the class names do not fit.
    """
    from clipmlu.data.datasets.imagefolder import ImageFolder, UnlabelledFolder
    from clipmlu.data.datasets.splits import find_calibration_folder
    from clipmlu.data.finding import SkippedFiles, sub_folders

    root = find_calibration_folder(path)
    names = [found.path.name for found in sub_folders(root, SkippedFiles()) if found.error is None]
    if names and (class_names is not None or folder_names or not look_like_ids(names)):
        split = None if root == path else root.name
        return ImageFolder(
            path,
            split,
            default_split="train",
            class_names=class_names,
            folder_names=folder_names,
            max_pixels=max_pixels,
        )
    if names:
        _log.warning(
            "The sub-folders of '%s' are named by ids, such as '%s': they are not used as classes (--calib-class-names FILE, or "
            "--calib-folder-names).",
            name_from_path(root),
            name_from_path(names[0]),
        )
    elif class_names is not None:
        raise OptionError(f"'{name_from_path(root)}' has no class folders; leave the class names out")
    return UnlabelledFolder(root, max_pixels)


def locate_dataset(name: str) -> str:
    """Return the location of a dataset on this machine as text; nothing is read or downloaded."""
    if name == "demo":
        return "generated"
    if name not in ("cifar10", "cifar100"):
        return "yours"
    from clipmlu.data.datasets.cifar import CIFAR10, CIFAR100, find_folder

    folder = find_folder(CIFAR100 if name == "cifar100" else CIFAR10, None)
    return "not here; downloaded on first use" if folder is None else str(folder)
