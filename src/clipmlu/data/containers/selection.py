"""Which of the files in a folder that hold many images are used, and not only describe others."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from clipmlu.data.containers.kinds import container_kind, container_stem
from clipmlu.data.containers.saved_dataset import STATE_NAME, read_data_files
from clipmlu.errors import InputError
from clipmlu.file_names import name_from_path

_METADATA_STEM = "metadata"


@dataclasses.dataclass(frozen=True)
class Selection:
    """The files of a folder that hold many images.

    Attributes:
        used: names of the files to read.
        descriptions: names of Parquet files whose rows are about images that are read from other files.
        errors: files that are missing or cannot be read, with the reason.
    """

    used: frozenset[str]
    descriptions: frozenset[str] = frozenset()
    errors: tuple[tuple[Path, InputError], ...] = ()


def select_containers(folder: Path, entries: Sequence[os.DirEntry[str]], is_image: Callable[[str], bool]) -> Selection:
    """Select the files of a folder that hold many images.

    Of the Arrow files of a dataset that was saved with ``save_to_disk``, those are used that its ``state.json`` lists. A Parquet file
    is a description if it is called like an archive or a folder beside it, as img2dataset writes them, or if it is called ``metadata``
    beside images, as for Hugging Face's ImageFolder.

    Args:
        folder: the folder.
        entries: its entries.
        is_image: returns whether a file is an image, by its name.
    """
    names = [entry.name for entry in entries]
    kinds = {name: kind for name in names if (kind := container_kind(name)) is not None}
    if not kinds:
        return Selection(frozenset())
    stems = {container_stem(name) for name in kinds}
    described = {container_stem(name) for name, kind in kinds.items() if kind == "tar"}
    described |= {entry.name for entry in entries if entry.name in stems and entry.is_dir()}
    if any(map(is_image, names)):
        described.add(_METADATA_STEM)
    descriptions = {name for name, kind in kinds.items() if kind == "parquet" and container_stem(name) in described}
    listed, errors = _listed_arrow_files(folder, names)
    used = {name for name, kind in kinds.items() if kind != "arrow" or listed is None or name in listed}
    return Selection(frozenset(used - descriptions), frozenset(descriptions), errors)


def _listed_arrow_files(folder: Path, names: list[str]) -> tuple[list[str] | None, tuple[tuple[Path, InputError], ...]]:
    """Return the Arrow files that ``state.json`` lists, or None without one, and the errors of those that are missing."""
    if STATE_NAME not in names:
        return None, ()
    state = folder / STATE_NAME
    try:
        listed = read_data_files(state)
    except InputError as error:
        return [], ((state, error),)
    present = frozenset(names)
    missing = [folder / name for name in listed or () if name not in present]
    message = "Cannot read '{}': there is no such file, and '{}' lists it."
    return listed, tuple(
        (path, InputError(message.format(name_from_path(path), name_from_path(state)))) for path in missing
    )
