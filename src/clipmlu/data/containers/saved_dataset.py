"""Folders that Hugging Face's ``Dataset.save_to_disk`` writes: ``state.json`` lists the Arrow files."""

from __future__ import annotations

from pathlib import Path

import msgspec

from clipmlu.errors import InputError, reason_of
from clipmlu.file_names import name_from_path
from clipmlu.files.read import read_json

STATE_NAME = "state.json"


class _DataFile(msgspec.Struct):
    filename: str


class _State(msgspec.Struct):
    """The fields of ``state.json`` that matter here; source: ``save_to_disk`` of the package ``datasets``, versions 1 to 4."""

    data_files: list[_DataFile] | None = msgspec.field(name="_data_files", default=None)
    indices_files: list[_DataFile] = msgspec.field(name="_indices_data_files", default_factory=list)


def read_data_files(state: Path) -> list[str] | None:
    """Return the names of the data files that a ``state.json`` lists, or None if it is another program's.

    Raises:
        InputError: it cannot be read, or the rows have an order of their own (a selection of an early version of ``datasets``).
    """
    try:
        content = read_json(state, _State)
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"Cannot read '{name_from_path(state)}': {reason_of(error)}.") from error
    if content.indices_files:
        raise InputError(
            f"Cannot use '{name_from_path(state)}': it selects rows with a file of indices. Save the dataset again with a newer "
            "version of the package datasets."
        )
    return None if content.data_files is None else [Path(file.filename).name for file in content.data_files]
