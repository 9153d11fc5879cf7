"""Splits of an image folder: which sub-folders are splits such as ``train`` and ``val``, and not classes."""

from __future__ import annotations

import os
import re
from pathlib import Path

from clipmlu.arguments import is_there
from clipmlu.data.finding import SkippedFiles, sub_folders
from clipmlu.errors import InputError, OptionError
from clipmlu.file_names import name_from_path

WHOLE = "all"
"""Name of the split of a folder without splits."""

_SHOWN = 5
_TRAINING = re.compile(r"train(ing|val)?", re.IGNORECASE)
_SPLIT = re.compile(
    r"(train(ing|val)?|val(id(ation)?)?|test(ing)?|dev(el(opment)?)?|eval(uation)?|hold[-_ ]?out)"
    r"([-_ ]?(sets?|data|splits?|images?|imgs?|\d{1,4}))*",
    re.IGNORECASE,
)


def is_split_name(name: str) -> bool:
    """Return whether a folder name is that of a split rather than a class: ``val``, ``Training``, ``test2017``."""
    return _SPLIT.fullmatch(name) is not None


def find_split(root: Path, split: str | None, default: str, *, folder_names: bool) -> tuple[Path, str]:
    """Find the folder whose sub-folders are the classes.

    Args:
        root: the folder that the user gave.
        split: name of a sub-folder that must exist; None for ``default`` if it exists and has class folders, else for
            the root.
        default: the split if ``split`` is None.
        folder_names: treat sub-folders with names of splits as classes.

    Returns:
        The folder, and the name of its split.

    Raises:
        InputError: the root is not a folder, or cannot be listed.
        OptionError: there is no such split, or only others.
    """
    names = _folders(root)
    if split is not None:
        if not _is_inside(split) or not os.path.isdir(root / split):
            raise OptionError(_no_split(root, split, names))
        root = root / split
        names = _folders(root)
    elif _has_default(root, default, names):
        root, split = root / default, default
        names = _folders(root)
    if names and _are_splits(names) and not folder_names:
        raise OptionError(_no_split(root, default, names))
    return root, WHOLE if split is None else split


def find_calibration_folder(root: Path) -> Path:
    """Return the folder of calibration images: ``train``, or the root if it has no splits.

    Raises:
        InputError: the root cannot be listed.
        OptionError: it has splits, but not ``train``.
    """
    names = _folders(root)
    if _has_default(root, "train", names):
        return root / "train"
    if names and all(map(is_split_name, names)):
        raise OptionError(_no_split(root, "train", names))
    return root


def _folders(folder: Path) -> list[str]:
    if not is_there(folder, folder=True):
        raise InputError(
            f"Image folder '{_short(name_from_path(folder))}' does not exist. Expected a folder with one sub-folder per class."
        )
    return [found.path.name for found in sub_folders(folder, SkippedFiles()) if found.error is None]


def _has_default(root: Path, default: str, names: list[str]) -> bool:
    """Return whether the folder ``default`` is a split; beside class folders it may be a class of that name."""
    return default in names and (all(map(is_split_name, names)) or bool(_folders(root / default)))


def _is_inside(split: str) -> bool:
    parts = Path(split).parts
    return bool(parts) and not Path(split).is_absolute() and ".." not in parts


def _are_splits(names: list[str]) -> bool:
    """Return whether the folders are splits: all names are split names, or training and other splits are among them."""
    splits = [name for name in names if is_split_name(name)]
    training = [name for name in splits if _TRAINING.match(name)]
    return len(splits) == len(names) or bool(training and len(training) < len(splits))


def _no_split(root: Path, split: str, names: list[str]) -> str:
    shown = name_from_path(root)
    message = f"Image folder '{_short(shown)}' has no split '{_short(split)}'"
    splits = sorted(filter(is_split_name, names), key=lambda name: bool(_TRAINING.match(name)))
    if not splits:
        classes = ", ".join(map(name_from_path, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
        return f"{message}: its sub-folders are {classes or 'none'}. Leave --split out to read the folder itself."
    others = f" beside {len(names) - len(splits)} other folder(s)" if len(splits) < len(names) else ""
    return (
        f"{message}; it has {', '.join(sorted(splits))}{others}. Say which one: --split {splits[0]}, or imagefolder:{shown}/{splits[0]} "
        "(--folder-names if they are classes)."
    )


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:197]}..."
