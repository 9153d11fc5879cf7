"""Labelled datasets as the input of a job."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

from clipmlu.data.datasets import FOLDER_PREFIX, Dataset
from clipmlu.data.datasets.choice import DatasetChoice
from clipmlu.data.datasets.splits import find_split
from clipmlu.embed.items import ImageItem, item_from_dataset
from clipmlu.errors import InputError
from clipmlu.file_names import expand_home, name_from_path, path_from_name, text_from_name
from clipmlu.jobs.pieces import DatasetPiece
from clipmlu.keys import value_digest

DEFAULT_SPLIT = "test"


def cut_dataset(choice: DatasetChoice, shard_size: int) -> Iterator[DatasetPiece]:
    """Cut the images of a dataset into pieces of ``shard_size``; the last one may be shorter. Its class names do not matter.

    Raises:
        UnknownNameError, OptionError, InputError: as ``DatasetChoice.open``.
    """
    dataset = _open(choice)
    for first in range(0, len(dataset), shard_size):
        stop = min(first + shard_size, len(dataset))
        yield DatasetPiece(
            dataset=name_from_path(choice.name),
            split=None if choice.split is None else name_from_path(choice.split),
            data_dir=None if choice.data_dir is None else name_from_path(choice.data_dir),
            size=choice.size,
            seed=choice.seed,
            max_pixels=choice.max_pixels,
            first=first,
            images=stop - first,
            digest=_keys_digest(dataset, range(first, stop)),
        )


def dataset_items(piece: DatasetPiece) -> Iterator[ImageItem]:
    """Yield the images of a piece; missing files are not downloaded.

    Raises:
        InputError: the dataset cannot be opened, or has changed since the job was planned.
    """
    choice = DatasetChoice(
        name=text_from_name(piece.dataset),
        split=None if piece.split is None else text_from_name(piece.split),
        data_dir=None if piece.data_dir is None else path_from_name(piece.data_dir),
        size=piece.size,
        seed=piece.seed,
        max_pixels=piece.max_pixels,
        download=False,
    )
    dataset = _open_again(choice)
    indices = range(piece.first, piece.first + piece.images)
    if indices.stop > len(dataset) or _keys_digest(dataset, indices) != piece.digest:
        raise InputError(f"Dataset '{piece.dataset}' has changed since the job began. Give the command again.")
    for index in indices:
        yield item_from_dataset(dataset, index)


def _open(choice: DatasetChoice) -> Dataset:
    """Open a dataset; class folders may have any names, but folders of splits are no classes."""
    folder = choice.name.removeprefix(FOLDER_PREFIX)
    if folder == choice.name:
        return dataclasses.replace(choice, class_names=None, folder_names=False).open()
    find_split(expand_home(folder), choice.split, DEFAULT_SPLIT, folder_names=choice.folder_names)
    return dataclasses.replace(choice, class_names=None, folder_names=True).open(default_split=DEFAULT_SPLIT)


@functools.lru_cache(maxsize=1)
def _open_again(choice: DatasetChoice) -> Dataset:
    """Open a dataset, or return the one of the piece before."""
    return _open(choice)


def _keys_digest(dataset: Dataset, indices: range) -> str:
    return value_digest([dataset.key(index) for index in indices])
