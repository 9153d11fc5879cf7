"""Pictures, a list of class names and captions to try the commands with."""

from __future__ import annotations

import io
import os
from pathlib import Path

from clipmlu.arguments import as_path
from clipmlu.data.datasets.demo import DemoDataset
from clipmlu.files.publish import write_files

_COUNT = 10
_CAPTIONS = ("a {}", "a drawing of a {}")


def write_samples(folder: str | os.PathLike[str], *, overwrite: bool = False) -> tuple[Path, Path]:
    """Write ten drawn pictures to ``FOLDER/photos``, and their class names to ``FOLDER/labels.txt``, one on each line.

    ``FOLDER/captions.csv`` has two captions for each picture, for an evaluation of retrieval.

    Args:
        folder: it is made if it is missing.
        overwrite: replace these files; other files stay.

    Returns:
        The paths of the folder of pictures and of the list.

    Raises:
        OutputExistsError: one of the files already exists; nothing is written.
        OutputError: a file cannot be written.
    """
    place = as_path(folder, "the folder")
    photos, labels = place / "photos", place / "labels.txt"
    dataset = DemoDataset(size=_COUNT)
    names = [dataset.class_names[dataset.label(index)] for index in range(_COUNT)]
    files = {name: f"{name.replace(' ', '-')}.png" for name in names}
    contents = {photos / files[name]: _png(dataset, index) for index, name in enumerate(names)}
    rows = [f"photos/{files[name]},{caption.format(name)}" for name in names for caption in _CAPTIONS]
    texts = {labels: names, place / "captions.csv": ["image,caption", *rows]}
    contents |= {path: "".join(f"{line}\n" for line in lines).encode() for path, lines in texts.items()}
    write_files(contents, overwrite=overwrite)
    return photos, labels


def _png(dataset: DemoDataset, index: int) -> bytes:
    buffer = io.BytesIO()
    dataset.image(index).save(buffer, "PNG")
    return buffer.getvalue()
