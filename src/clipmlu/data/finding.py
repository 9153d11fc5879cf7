"""Which files of a folder are images: nothing is left out in silence.

One home for all commands. A folder that cannot be listed and a link that leads nowhere are found too, as entries that cannot be
read; files of other types are counted by suffix.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import glob
import importlib.util
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from clipmlu.data.images import HEIF_HINT, HEIF_SUFFIXES, IMAGE_SUFFIXES, dangling_reason
from clipmlu.errors import InputError
from clipmlu.file_names import name_from_path

_MACOS_FOLDER, _MACOS_PREFIX = "__MACOSX", "._"
_SUFFIXES_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Found:
    """An image, or what cannot be read and might have been one, or have held some.

    Attributes:
        path: the file; or the folder or link of the error.
        error: why nothing can be read there, or None.
    """

    path: Path
    error: InputError | None = None

    @property
    def name(self) -> str:
        """The path as it is written in results; see ``name_from_path``."""
        return name_from_path(self.path)

    def source(self) -> Path:
        """The file.

        Raises:
            InputError: nothing can be read there.
        """
        if self.error is not None:
            raise self.error
        return self.path


class LeftOut:
    """Counts what is in folders and is not taken for an image.

    Attributes:
        suffixes: files of other types, by suffix in lower case, ``""`` for none.
        macos: files and folders that macOS puts beside others, ``._*`` and ``__MACOSX``.
        repeated: folders that were reached again, through links.
        hidden: folders beside class folders whose name begins with a dot.
        beside: images that lie beside class folders, in none of them.
    """

    def __init__(self) -> None:
        self.suffixes: Counter[str] = Counter()
        self.macos = 0
        self.repeated = 0
        self.hidden = 0
        self.beside = 0

    def note(self) -> str | None:
        """One line for people, or None where nothing was left out."""
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
        if not parts:
            return None
        hint = f" {HEIF_HINT}" if HEIF_SUFFIXES & self.suffixes.keys() else ""
        return f"Left out: {'; '.join(parts)}.{hint}"

    def _shown_suffixes(self) -> str:
        ranked = sorted(self.suffixes.items(), key=lambda pair: (-pair[1], pair[0]))
        shown = [f"{name_from_path(suffix) or 'without suffix'} {count}" for suffix, count in ranked[:_SUFFIXES_SHOWN]]
        others = sum(count for _, count in ranked[_SUFFIXES_SHOWN:])
        return ", ".join([*shown, *([f"others {others}"] if others else [])])


def find_images(folder: Path, left_out: LeftOut) -> Iterator[Found]:
    """Images below a folder: the files of each folder in sorted order, then its sub-folders; lazily.

    Links to folders are followed, as torchvision's ImageFolder follows them, but each real folder is read once, so that loops
    end.

    Args:
        folder: where to look; one that cannot be listed is an entry with an error itself.
        left_out: counts what is passed over, while the result is consumed.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        if not _first_time(current, seen):
            left_out.repeated += 1
            continue
        try:
            entries = list_folder(current)
        except InputError as error:
            yield Found(current, error)
            continue
        folders: list[Path] = []
        yield from _files(entries, folders, left_out)
        waiting += reversed(folders)


def _first_time(folder: Path, seen: set[tuple[int, int]]) -> bool:
    """Whether a real folder was not seen yet; one that cannot be asked is left to whoever lists it."""
    try:
        facts = os.stat(folder)
    except (OSError, ValueError):
        return True
    key = (facts.st_dev, facts.st_ino)
    first = key not in seen
    seen.add(key)
    return first


def list_folder(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, sorted by name.

    Raises:
        InputError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise _unlistable(folder, error) from error


def sub_folders(folder: Path, left_out: LeftOut) -> list[Found]:
    """Folders right in a folder, links to folders among them, sorted by name; hidden ones and macOS's own are left out.

    A link that leads nowhere may have led to a folder, unless it is called like an image: it is an entry with an error.

    Args:
        folder: where to look.
        left_out: counts what is passed over.

    Raises:
        InputError: the folder cannot be listed.
    """
    found = []
    for entry in list_folder(folder):
        if _is_of_macos(entry.name):
            left_out.macos += 1
            continue
        is_folder, error = _classify(entry)
        if not is_folder and (error is None or is_image_name(entry.name)):
            left_out.beside += is_image_name(entry.name)
        elif entry.name.startswith("."):
            left_out.hidden += 1
        else:
            found.append(Found(Path(entry.path), error))
    return found


def is_image_name(name: str) -> bool:
    """Whether a file is taken for an image, by its suffix."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in IMAGE_SUFFIXES or (suffix in HEIF_SUFFIXES and _reads_heif())


def _files(entries: list[os.DirEntry[str]], folders: list[Path], left_out: LeftOut) -> Iterator[Found]:
    """The images among some entries; folders are added to ``folders``."""
    for entry in entries:
        if _is_of_macos(entry.name):
            left_out.macos += 1
            continue
        is_folder, error = _classify(entry)
        if error is not None:
            yield Found(Path(entry.path), error)
        elif is_folder:
            folders.append(Path(entry.path))
        elif is_image_name(entry.name):
            yield Found(Path(entry.path))
        else:
            left_out.suffixes[os.path.splitext(entry.name)[1].lower()] += 1


def _is_of_macos(name: str) -> bool:
    return name == _MACOS_FOLDER or name.startswith(_MACOS_PREFIX)


def _classify(entry: os.DirEntry[str]) -> tuple[bool, InputError | None]:
    """Whether it is a folder; and why its link cannot be followed."""
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


def find_matches(pattern: str, left_out: LeftOut) -> Iterator[Found]:
    """What a glob pattern matches, as ``glob.glob(pattern, recursive=True)`` would, in sorted order; lazily.

    Other than there, a folder that cannot be listed on the way is an entry with an error, ``**`` reads each real folder once,
    and a part with brackets that is there as it is written stands for itself. Folders that match are searched for images.

    Args:
        pattern: with ``*``, ``?``, ``[...]`` or ``**``.
        left_out: counts what is passed over in folders that match.
    """
    path = Path(pattern)
    start, parts = (Path(path.anchor), path.parts[1:]) if path.anchor else (Path(), path.parts)
    given: set[str] = set()  # '**/*' matches a folder, and then what is in it
    for matched in _match(start, parts):
        is_folder = matched.error is None and os.path.isdir(matched.path)
        for found in find_images(matched.path, left_out) if is_folder else (matched,):
            real = os.path.realpath(found.path) if "**" in parts else str(found.path)
            if real not in given:
                given.add(real)
                yield found


def _match(folder: Path, parts: tuple[str, ...]) -> Iterator[Found]:
    """Paths below a folder that match the parts of a pattern, and folders that could not be looked into."""
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
    """Matches of the parts after a ``**``: in the folder and in all below it but hidden ones."""
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
