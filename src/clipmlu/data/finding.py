"""Finding images in folders and by patterns, with a count of everything that is skipped.

All commands use it. A folder that cannot be listed and a dangling link are returned as entries with an error; files of
other types are counted by suffix.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import glob
import importlib.util
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from clipmlu.data.containers.selection import Selection, select_containers
from clipmlu.data.formats import HEIF_HINT
from clipmlu.data.image_file import dangling_reason
from clipmlu.data.images import HEIF_SUFFIXES, IMAGE_SUFFIXES
from clipmlu.errors import InputError
from clipmlu.file_names import name_from_path
from clipmlu.files.workspace import is_workspace_name

_MACOS_FOLDER, _MACOS_PREFIX = "__MACOSX", "._"
_SUFFIXES_SHOWN = 10
JOB_FILE, SHARDS_FOLDER, RECORDS_FOLDER = "job.json", "shards", "records"
"""What a folder of a job holds: its tables are results and no input."""


@dataclasses.dataclass(frozen=True)
class Found:
    """An image file, or a file, folder or link that cannot be read.

    Attributes:
        path: the file, or the folder or link of the error.
        error: why it cannot be read, or None.
    """

    path: Path
    error: InputError | None = None

    @property
    def name(self) -> str:
        """The path as text for results; see ``name_from_path``."""
        return name_from_path(self.path)

    def source(self) -> Path:
        """Return the path.

        Raises:
            InputError: it cannot be read.
        """
        if self.error is not None:
            raise self.error
        return self.path


class SkippedFiles:
    """Counts of the folder entries that are not used as images.

    Attributes:
        suffixes: number of files of other types by lower-case suffix, ``""`` for none.
        macos: number of files and folders that macOS adds, ``._*`` and ``__MACOSX``.
        repeated: number of folders that links lead to a second time.
        hidden: number of folders beside class folders whose name begins with a dot.
        beside: number of images that lie beside the class folders.
        descriptions: number of Parquet files about images that are read from other files.
        jobs: number of folders of jobs, whose tables are results.
    """

    def __init__(self) -> None:
        self.suffixes: Counter[str] = Counter()
        self.macos = 0
        self.repeated = 0
        self.hidden = 0
        self.beside = 0
        self.descriptions = 0
        self.jobs = 0

    def note(self) -> str | None:
        """Return one line of text about the counts, or None if all are zero."""
        parts = []
        if self.suffixes:
            parts.append(f"{self.suffixes.total()} file(s) of other types ({self._shown_suffixes()})")
        if self.macos:
            parts.append(f"{self.macos} of macOS's own ({_MACOS_FOLDER}, {_MACOS_PREFIX}*)")
        if self.repeated:
            parts.append(f"{self.repeated} folder(s) reached again through a link")
        if self.hidden:
            parts.append(f"{self.hidden} hidden folder(s)")
        if self.beside:
            parts.append(f"{self.beside} image(s) beside the class folders")
        if self.descriptions:
            parts.append(f"{self.descriptions} Parquet file(s) about the images beside them")
        if self.jobs:
            parts.append(f"{self.jobs} folder(s) of jobs")
        if not parts:
            return None
        hint = f" {HEIF_HINT}" if HEIF_SUFFIXES & self.suffixes.keys() else ""
        return f"Left out: {'; '.join(parts)}.{hint}"

    def _shown_suffixes(self) -> str:
        ranked = sorted(self.suffixes.items(), key=lambda pair: (-pair[1], pair[0]))
        shown = [f"{name_from_path(suffix) or 'without suffix'} {count}" for suffix, count in ranked[:_SUFFIXES_SHOWN]]
        others = sum(count for _, count in ranked[_SUFFIXES_SHOWN:])
        return ", ".join([*shown, *([f"others {others}"] if others else [])])


def find_images(folder: Path, skipped_files: SkippedFiles, *, containers: bool = False) -> Iterator[Found]:
    """Yield the images below a folder lazily: the sorted files of each folder, then its sub-folders.

    Links to folders are followed, as in torchvision's ImageFolder, but each real folder is read once, so that loops
    end. Folders of jobs, and those in which a process writes its results before it renames them, are left out.

    Args:
        folder: the folder to search; if it cannot be listed, it is returned as an entry with an error.
        skipped_files: counts skipped entries while the result is consumed.
        containers: also yield the files that hold many images; see ``select_containers``.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        if not _first_time(current, seen):
            skipped_files.repeated += 1
            continue
        try:
            entries = list_folder(current)
        except InputError as error:
            yield Found(current, error)
            continue
        if _is_of_job(entries):
            skipped_files.jobs += 1
            continue
        folders: list[Path] = []
        selected = select_containers(current, entries, is_image_name) if containers else Selection(frozenset())
        yield from _files(entries, folders, skipped_files, selected)
        waiting += reversed(folders)


def _is_of_job(entries: list[os.DirEntry[str]]) -> bool:
    return {JOB_FILE, SHARDS_FOLDER, RECORDS_FOLDER} <= {entry.name for entry in entries}


def _first_time(folder: Path, seen: set[tuple[int, int]]) -> bool:
    """Return whether a real folder is new; True if its identity cannot be read."""
    try:
        facts = os.stat(folder)
    except (OSError, ValueError):
        return True
    key = (facts.st_dev, facts.st_ino)
    first = key not in seen
    seen.add(key)
    return first


def list_folder(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, sorted by name.

    Raises:
        InputError: the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise _unlistable(folder, error) from error


def sub_folders(folder: Path, skipped_files: SkippedFiles) -> list[Found]:
    """Return the direct sub-folders, links to folders included, sorted by name, without hidden ones and those of macOS.

    A dangling link may have pointed to a folder, so it is an entry with an error, unless it has the name of an image.

    Args:
        folder: the folder to search.
        skipped_files: counts skipped entries.

    Raises:
        InputError: the folder cannot be listed.
    """
    found = []
    for entry in list_folder(folder):
        if is_of_macos(entry.name):
            skipped_files.macos += 1
            continue
        is_folder, error = _classify(entry)
        if not is_folder and (error is None or is_image_name(entry.name)):
            skipped_files.beside += is_image_name(entry.name)
        elif entry.name.startswith("."):
            skipped_files.hidden += 1
        else:
            found.append(Found(Path(entry.path), error))
    return found


def is_image_name(name: str) -> bool:
    """Return whether the suffix of a file name is that of a readable image format."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in IMAGE_SUFFIXES or (suffix in HEIF_SUFFIXES and _reads_heif())


def _files(
    entries: list[os.DirEntry[str]], folders: list[Path], skipped_files: SkippedFiles, containers: Selection
) -> Iterator[Found]:
    """Yield the images and the selected containers among some entries; folders are appended to ``folders``."""
    for entry in entries:
        if is_of_macos(entry.name):
            skipped_files.macos += 1
            continue
        is_folder, error = _classify(entry)
        if error is not None:
            yield Found(Path(entry.path), error)
        elif is_folder:
            if not is_workspace_name(entry.name):
                folders.append(Path(entry.path))
        elif is_image_name(entry.name) or entry.name in containers.used:
            yield Found(Path(entry.path))
        elif entry.name in containers.descriptions:
            skipped_files.descriptions += 1
        else:
            skipped_files.suffixes[os.path.splitext(entry.name)[1].lower()] += 1
    for path, error in containers.errors:
        yield Found(path, error)


def is_of_macos(name: str) -> bool:
    """Return whether a file or folder of this name is one that macOS adds to folders and archives."""
    return name == _MACOS_FOLDER or name.startswith(_MACOS_PREFIX)


def _classify(entry: os.DirEntry[str]) -> tuple[bool, InputError | None]:
    """Return whether an entry is a folder, and the error of a link that cannot be followed."""
    try:
        if entry.is_dir():
            return True, None
        if entry.is_symlink():
            entry.stat()
    except OSError as error:
        reason = dangling_reason(Path(entry.path)) if isinstance(error, FileNotFoundError) else error.strerror
        return False, InputError(f"Cannot read '{name_from_path(entry.path)}': {reason}.")
    return False, None


def _unlistable(folder: Path, error: OSError | ValueError) -> InputError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return InputError(f"Cannot list the folder '{name_from_path(folder)}': {reason}.")


@functools.cache
def _reads_heif() -> bool:
    return importlib.util.find_spec("pillow_heif") is not None


def find_matches(pattern: str, skipped_files: SkippedFiles, *, containers: bool = False) -> Iterator[Found]:
    """Yield the images that a glob pattern matches, lazily and sorted, like ``glob.glob(pattern, recursive=True)``.

    Differences: a folder that cannot be listed is an entry with an error, ``**`` reads each real folder once, and a
    part with
    brackets that exists literally is not a pattern. Matching folders are searched for images.

    Args:
        pattern: a path with ``*``, ``?``, ``[...]`` or ``**``.
        skipped_files: counts skipped entries of matching folders.
        containers: see ``find_images``.
    """
    path = Path(pattern)
    start, parts = (Path(path.anchor), path.parts[1:]) if path.anchor else (Path(), path.parts)
    given: set[str] = set()  # '**/*' matches a folder, and then its content
    for matched in _match(start, parts):
        is_folder = matched.error is None and os.path.isdir(matched.path)
        inside = find_images(matched.path, skipped_files, containers=containers) if is_folder else (matched,)
        for found in inside:
            real = os.path.realpath(found.path) if "**" in parts else str(found.path)
            if real not in given:
                given.add(real)
                yield found


def _match(folder: Path, parts: tuple[str, ...]) -> Iterator[Found]:
    """Yield paths below a folder that match the parts of a pattern, and folders that cannot be listed."""
    if not parts:
        yield Found(folder)
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _match_below(folder, rest)
    elif part in (os.curdir, os.pardir):
        yield from _match(folder / part, rest)
    elif not glob.has_magic(part) or ("*" not in part and "?" not in part and os.path.lexists(folder / part)):
        if os.path.lexists(folder / part):
            yield from _match(folder / part, rest)
    elif os.path.isdir(folder):
        try:
            entries = list_folder(folder)
        except InputError as error:
            yield Found(folder, error)
            return
        for entry in entries:
            hidden = entry.name.startswith(".") and not part.startswith(".")
            if not hidden and fnmatch.fnmatchcase(entry.name, part):
                yield from _match(folder / entry.name, rest)


def _match_below(folder: Path, parts: tuple[str, ...]) -> Iterator[Found]:
    """Yield matches of the parts after a ``**`` in the folder and in all folders below it, except hidden ones."""
    if not parts:
        if os.path.isdir(folder):
            yield Found(folder)
        return
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        if not os.path.isdir(current) or not _first_time(current, seen):
            continue
        yield from _match(current, parts)
        try:
            entries = list_folder(current)
        except InputError as error:
            yield Found(current, error)
            continue
        waiting += [current / entry.name for entry in reversed(entries) if not entry.name.startswith(".")]


def list_images(folder: Path, on_note: Callable[[str], object]) -> tuple[tuple[Path, ...], list[str]]:
    """List the images of a folder.

    Args:
        folder: the folder, searched recursively.
        on_note: called with a line about what is in the folder and is no image.

    Returns:
        The images in sorted order, and why what might hold others cannot be read.
    """
    skipped_files = SkippedFiles()
    found = list(find_images(folder, skipped_files))
    if passed_over := skipped_files.note():
        on_note(passed_over)
    unreadable = [str(each.error) for each in found if each.error is not None]
    return tuple(each.path for each in found if each.error is None), unreadable
