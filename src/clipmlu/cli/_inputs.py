"""Options that say which images a command reads, besides its arguments INPUT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from clipmlu.cli._completion import complete_dataset
from clipmlu.cli._groups import Option, OptionGroup, is_on_command_line
from clipmlu.cli._options import PATH, offline_option
from clipmlu.errors import OptionError

if TYPE_CHECKING:
    from clipmlu.data.datasets.choice import DatasetChoice
    from clipmlu.jobs.inputs import JobInput

_LIST = click.Path(dir_okay=False, allow_dash=True)
_OPTIONS = (
    Option(
        "--files-from",
        type=_LIST,
        metavar="FILE",
        help="A list of more inputs, one per line or separated by zero bytes; - for stdin.",
    ),
    Option(
        "--image-column",
        metavar="NAME",
        help="Column of the images in Parquet and Arrow files. [default: found by name]",
    ),
    Option("--id-column", metavar="NAME", help="Column of the ids in Parquet and Arrow files. [default: FILE#ROW]"),
    Option(
        "--dataset",
        shell_complete=complete_dataset,
        metavar="NAME",
        help="Read a dataset: cifar100, cifar10, imagefolder:PATH or demo.",
    ),
    Option("--split", help="Split of the dataset. [default: test, or all of a folder without splits]"),
    Option("--data-dir", envvar="CLIPMLU_DATA_DIR", type=PATH, help="Folder that holds the dataset."),
    offline_option,
)


def _input(given: Mapping[str, Any]) -> JobInput:
    from clipmlu.jobs.inputs import JobInput

    return JobInput(
        paths=given["inputs"],
        files_from=given["files_from"],
        dataset=_dataset(given),
        image_column=given["image_column"],
        id_column=given["id_column"],
    )


def _dataset(given: Mapping[str, Any]) -> DatasetChoice | None:
    if given["dataset"] is None:
        for name in ("split", "data_dir", "offline"):
            if given[name] and is_on_command_line(name):
                raise OptionError(f"--{name.replace('_', '-')} is about a --dataset; give one")
        return None
    from clipmlu.data.datasets.choice import DatasetChoice

    return DatasetChoice(
        name=given["dataset"],
        split=given["split"],
        data_dir=given["data_dir"],
        download=not given["offline"],
        max_pixels=given["max_pixels"],
    )


input_options = OptionGroup("images", _OPTIONS, _input, reads=("inputs", "max_pixels"), heading="Images")
"""Adds options for more inputs; the command gets ``images``, a ``JobInput``. It must have ``INPUT...`` and ``--max-pixels``."""
