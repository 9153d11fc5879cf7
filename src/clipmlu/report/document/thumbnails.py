"""Thumbnails of images that a report names, from the data set, if it is on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from clipmlu.data.datasets import DATASETS, FOLDER_PREFIX, Dataset, open_dataset
from clipmlu.data.images import load_image
from clipmlu.errors import ClipmluError
from clipmlu.file_names import expand_home, path_from_name, text_from_name
from clipmlu.report.document.blocks import Photo
from clipmlu.report.html.pictures import thumbnail_address

MOST_THUMBNAILS = 160
"""Thumbnails in one report: some 3 kB each."""
_EDGE = 96

FindImage = Callable[[str], Image.Image]


class Thumbnails:
    """Thumbnails of the images of data sets; an image that cannot be read here has none, without an error.

    Nothing is downloaded. Of a folder only the named files are opened, and only below it.

    Args:
        wanted: False makes none.
        trusted: images of folders are opened only in one of these folders and below: a report from somebody else could name
            any folder of this machine. None opens all.

    Attributes:
        withheld: folders, as the reports name them, with images outside the trusted ones; these have no thumbnail.
    """

    def __init__(self, *, wanted: bool = True, trusted: Sequence[Path] | None = None) -> None:
        self.withheld: set[str] = set()
        self._left = MOST_THUMBNAILS if wanted else 0
        self._trusted = None if trusted is None else [folder.resolve() for folder in trusted]
        self._finders: dict[tuple[str, str], FindImage | None] = {}

    def photo(self, dataset: str, split: str, key: str) -> Photo:
        """Return the thumbnail of an image.

        Args:
            dataset: name of the data set, as in reports.
            split: its split.
            key: the image's id.
        """
        if self._left <= 0:
            return Photo("", key)
        place = (dataset, split)
        if place not in self._finders:
            self._finders[place] = self._finder(dataset, split)
        find = self._finders[place]
        if find is None:
            return Photo("", key)
        try:
            address = thumbnail_address(find(key), _EDGE)
        except (
            ClipmluError,
            OSError,
            ValueError,
            IndexError,
        ):  # another data set of that name, or a file that has gone
            return Photo("", key)
        self._left -= 1
        return Photo(address, key)

    def _finder(self, dataset: str, split: str) -> FindImage | None:
        """Return the function that reads an image by its id; None if the data set is not here."""
        if dataset == "demo":
            return lambda key: _drawn(split, key)
        if dataset.startswith(FOLDER_PREFIX):
            return lambda key: self._from_folder(dataset, split, key)
        if dataset not in DATASETS:
            return None
        try:
            opened: Dataset = open_dataset(dataset, split, download=False)
        except ClipmluError:
            return None
        return lambda key: opened.image(_number(key))

    def _from_folder(self, dataset: str, split: str, key: str) -> Image.Image:
        path = _path_in_folder(dataset, split, key)
        if self._trusted is not None and not any(path.resolve().is_relative_to(each) for each in self._trusted):
            self.withheld.add(dataset)
            raise ValueError(f"'{key}' is outside the trusted folders")
        return load_image(path)


def _number(key: str) -> int:
    """Return the position in an id such as ``cifar100/test/000017``."""
    return int(key.rpartition("/")[2])


def _drawn(split: str, key: str) -> Image.Image:
    seed, number = int(key.split("/")[2]), _number(key)
    return open_dataset("demo", split, size=number + 1, seed=seed).image(number)


def _path_in_folder(dataset: str, split: str, key: str) -> Path:
    """Return the path of an image of a folder: its id is a path relative to the folder of the split."""
    root = expand_home(text_from_name(dataset.removeprefix(FOLDER_PREFIX)))
    relative = path_from_name(key)
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"'{key}' is no path below the folder")
    places = [folder / relative for folder in (root / split, root)]
    return next(filter(Path.is_file, places), places[-1])
