"""The public functions about this machine: what can be exported and evaluated, what works, and the emulated SDK."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from clipmlu.arguments import check_argument
from clipmlu.data import datasets
from clipmlu.doctor import Finding, examine
from clipmlu.errors import InputError, OptionError
from clipmlu.export import catalog
from clipmlu.magicmind.emulator.program import program_environment
from clipmlu.specs import Spec


class DatasetDescription(Spec, frozen=True, kw_only=True):
    """A dataset that ``evaluate`` reads.

    Attributes:
        name: its name for ``open_dataset``.
        splits: names of its splits.
        classes: number or kind of its classes.
        description: one line about it.
        location: where it is on this machine, as text.
    """

    name: str
    splits: tuple[str, ...]
    classes: str
    description: str
    location: str


def list_models(pattern: str = "") -> dict[str, tuple[str, ...]]:
    """Return the models that can be exported, as ``clipmlu models`` does.

    Args:
        pattern: part of the name; upper and lower case make no difference.

    Returns:
        Each name with the tags of its weights; besides these, ``hf-hub:org/name``, ``hf:org/name``, ``ms:org/name`` and ``local-dir:PATH`` can be exported.

    Raises:
        MissingDependencyError: open_clip is not installed.
    """
    part = str(check_argument(pattern, str, "pattern")).casefold()
    return {name: tags for name, tags in catalog.list_models().items() if part in name.casefold()}


def list_datasets() -> tuple[DatasetDescription, ...]:
    """Return the datasets that ``evaluate`` reads, with their locations, as ``clipmlu datasets`` does."""
    return tuple(
        DatasetDescription(
            name=info.name,
            splits=info.splits,
            classes=info.classes,
            description=info.description,
            location=datasets.locate_dataset(info.name),
        )
        for info in datasets.DATASETS.values()
    )


def check_machine() -> tuple[Finding, ...]:
    """Check what works on this machine, as ``clipmlu doctor`` does: each finding has a status, and advice where it helps."""
    return tuple(examine())


def run_emulated(command: Sequence[str], *, compat: bool = False, **settings: str | float) -> int:
    """Run a program in which ``import magicmind`` is the emulated SDK and ``mm_run`` the emulated tool, as ``clipmlu emulate`` does.

    Args:
        command: the program and its arguments, such as ``["python", "gen_model.py"]``.
        compat: add names that old scripts use and newer versions of NumPy, Pillow and Python lack.
        settings: variables of the emulator without their prefix, in lower case, such as ``mode="lenient"`` or ``devices=2``.

    Returns:
        Its exit code; negative if a signal ended it.

    Raises:
        OptionError: the command is empty or no list of texts, or there is no such setting.
        InputError: the program cannot be started.
    """
    if isinstance(command, str) or not command:
        raise OptionError(f"command is {command!r}; expected a list of texts, such as ['python', 'gen_model.py']")
    arguments: Sequence[str] = check_argument(command, Sequence[str], "command")
    check_argument(compat, bool, "compat")
    try:
        with program_environment(os.environ, compat=compat, **settings) as environment:
            return subprocess.run(list(arguments), env=environment, check=False).returncode  # noqa: S603 -- the caller's program
    except ValueError as error:
        raise OptionError(str(error)) from error
    except OSError as error:
        raise InputError(f"Cannot run '{arguments[0]}': {error.strerror}. Give a program that exists.") from error
