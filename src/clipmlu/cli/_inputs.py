"""Which images a user means: files, folders, glob patterns, or a list on stdin."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from clipmlu.classify.bulk import ImageItem, item_from_source
from clipmlu.data.images import IMAGE_SUFFIXES
from clipmlu.errors import InputError

STDIN = "-"


def image_items(inputs: Iterable[str]) -> Iterator[ImageItem]:
    """Items for all inputs, lazily, folders in sorted order.

    A path that does not exist becomes an item that fails when it is loaded, so that it is reported like any image
    that cannot be read.

    Raises:
        InputError: a folder holds no image, or a pattern matches nothing.
    """
    for text in inputs:
        yield from (item_from_source(path) for path in _paths(text))


def _paths(text: str) -> Iterator[Path]:
    if text == STDIN:
        for line in sys.stdin:
            if line.strip():
                yield from _paths_of_existing(line.rstrip("\r\n"))
    else:
        yield from _paths_of_existing(text)


def _paths_of_existing(text: str) -> Iterator[Path]:
    path = Path(text)
    if path.is_dir():
        yield from _require(walk_images(path), f"Folder '{text}' holds no images.")
    elif glob.has_magic(text) and not path.exists():
        matches = (Path(match) for match in sorted(glob.glob(text, recursive=True)))
        yield from _require(
            (each for match in matches for each in _files_of(match)), f"Pattern '{text}' matches no image."
        )
    else:
        yield path


def _files_of(path: Path) -> Iterator[Path]:
    return walk_images(path) if path.is_dir() else iter((path,))


def walk_images(folder: Path) -> Iterator[Path]:
    """Image files below a folder, by suffix, in sorted order; links to folders are not followed."""
    for directory, subfolders, files in os.walk(folder):
        subfolders.sort()
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield Path(directory, name)


def _require(paths: Iterator[Path], message: str) -> Iterator[Path]:
    first = next(paths, None)
    if first is None:
        raise InputError(message)
    yield first
    yield from paths
