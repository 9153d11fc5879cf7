"""The options of the commands that read a labelled dataset, as ``DatasetChoice``."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipmlu.cli._shared import PATH, Decorated, offline_option

if TYPE_CHECKING:
    from clipmlu.data.datasets import Dataset

_KNOWN = "cifar100, cifar10, imagefolder:PATH or demo."


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetChoice:
    """Which images a user means.

    Attributes:
        name: the dataset, or None where it may be left out.
        split: which part of it; None for the usual one.
        data_dir: where its files are.
        class_names: a file of names for its classes.
        folder_names: take the names of class folders as they are.
        offline: download nothing.
    """

    name: str | None
    split: str | None
    data_dir: Path | None
    class_names: Path | None
    folder_names: bool
    offline: bool

    @property
    def is_described(self) -> bool:
        """Whether an option says more than the name."""
        return any((self.split, self.data_dir, self.class_names, self.folder_names))

    def open(self, *, size: int | None, seed: int, max_pixels: int) -> Dataset:
        """The dataset; see ``open_dataset``."""
        from clipmlu.data.datasets import open_dataset

        assert self.name is not None, "asked for before"
        return open_dataset(
            self.name,
            self.split,
            class_names=self.class_names,
            folder_names=self.folder_names,
            data_dir=self.data_dir,
            download=not self.offline,
            size=size,
            seed=seed,
            max_pixels=max_pixels,
        )


def _names_options(prefix: str, whose: str) -> tuple[Callable[[Decorated], Decorated], ...]:
    return (
        click.option(
            f"--{prefix}class-names",
            type=PATH,
            metavar="FILE",
            help=f"Names for the classes{whose}: one a line in the order of the folders, a map folder -> name (JSON or tab-separated), "
            "or imagenet_class_index.json.",
        ),
        click.option(
            f"--{prefix}folder-names",
            is_flag=True,
            help=f"Take the names of class folders{whose} though they look like ids or splits.",
        ),
    )


calibration_names_options = _names_options("calib-", " of --calib")
"""``--calib-class-names FILE`` and ``--calib-folder-names``."""


def sampling_options(samples_help: str) -> Callable[[Decorated], Decorated]:
    """``--samples N``, ``--shuffle`` and ``--seed N`` of the commands that look at a part of a dataset."""

    def decorate(command: Decorated) -> Decorated:
        for option in (
            click.option(
                "--seed",
                type=click.IntRange(min=0),
                default=0,
                show_default=True,
                help="Seed of --shuffle and of the demo dataset.",
            ),
            click.option("--shuffle", is_flag=True, help="Draw the --samples at random instead."),
            click.option("--samples", type=click.IntRange(min=1), help=samples_help),
        ):
            command = option(command)
        return command

    return decorate


def dataset_options(**attributes: Any) -> Callable[[Decorated], Decorated]:
    """The options that say which images; the command gets ``images``, a ``DatasetChoice``.

    Args:
        attributes: of ``--dataset``, such as ``required`` and ``default``, or another ``help``.
    """

    def decorate(command: Decorated) -> Decorated:
        @functools.wraps(command)
        def wrapped(**parameters: Any) -> Any:
            chosen = {
                name: parameters.pop(name) for name in ("split", "data_dir", "class_names", "folder_names", "offline")
            }
            images = DatasetChoice(name=parameters.pop("dataset"), **chosen)
            return command(**parameters, images=images)

        decorated: Any = wrapped
        for option in (
            offline_option,
            *reversed(_names_options("", "")),
            click.option(
                "--data-dir",
                type=PATH,
                help="Folder that holds the dataset. [default: CIFAR100_DATASETS_PATH, then the cache]",
            ),
            click.option(
                "--split", help="Which part of the dataset. [default: test, or all of a folder without splits]"
            ),
            click.option("--dataset", metavar="NAME", **{"help": _KNOWN, **attributes}),
        ):
            decorated = option(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate
