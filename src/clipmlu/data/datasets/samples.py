"""Pictures and a list of class names to try the commands with."""

from __future__ import annotations

import io
import os
from pathlib import Path

from clipmlu.arguments import as_path
from clipmlu.data.datasets.demo import DemoDataset
from clipmlu.files.publish import write_files

_COUNT = 10


def write_samples(folder: str | os.PathLike[str], *, overwrite: bool = False) -> tuple[Path, Path]:
    """Write ten drawn pictures to ``FOLDER/photos``, and their class names to ``FOLDER/labels.txt``, one on each line.

    Args:
        folder: it is made if it is missing.
        overwrite: replace these files; other files stay.

    Returns:
        The paths of the folder of pictures and of the list.

    Raises:
        OutputExistsError: one of the files already exists; nothing is written.
        OutputError: a file cannot be written.
    """
    photos, labels = as_path(folder, "the folder") / "photos", as_path(folder, "the folder") / "labels.txt"
    dataset = DemoDataset(size=_COUNT)
    names = [dataset.class_names[dataset.label(index)] for index in range(_COUNT)]
    contents = {photos / f"{name.replace(' ', '-')}.png": _png(dataset, index) for index, name in enumerate(names)}
    write_files({**contents, labels: "".join(f"{name}\n" for name in names).encode()}, overwrite=overwrite)
    return photos, labels


def _png(dataset: DemoDataset, index: int) -> bytes:
    buffer = io.BytesIO()
    dataset.image(index).save(buffer, "PNG")
    return buffer.getvalue()
