"""How results are published: built in a temporary sibling and renamed into place when they are complete.

A path thus holds a whole file or directory, or what it held before.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from clipmlu.errors import BundleExistsError, OptionError, OutputError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def as_path(path: object, what: str) -> Path:
    """A path that a caller of the library gave.

    Args:
        path: a string or a path object.
        what: what it stands for, the subject of the messages.

    Raises:
        TypeError: it is something else.
        OptionError: it is empty, which would be the working directory, or holds a null character.
    """
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise TypeError(f"{what} is {path!r}; expected a path: a string, or a path object such as pathlib.Path")
    if not text or "\0" in text:
        raise OptionError(f"{what} is {text!r}, which is no path")
    return Path(text)


@contextlib.contextmanager
def stage_directory(target: Path, kind: str, marker: str, *, overwrite: bool = False) -> Iterator[Path]:
    """Fill a temporary sibling of ``target`` and rename it into place when the block ends.

    On any exception, an interrupt included, the temporary directory is removed and ``target`` is as it was.

    Args:
        target: where the directory shall be.
        kind: what it is, for messages.
        marker: the file by which one of that kind is known; anything without it is never replaced.
        overwrite: replace one of that kind that is there already.

    Raises:
        BundleExistsError: ``target`` is taken.
        OutputError: the directory cannot be written, for instance because the disk is full.
    """
    check_directory_free(target, kind, marker, overwrite=overwrite)
    temporary = target.parent / f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        with output_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
        with disk_full_errors(target):
            yield temporary
        with output_errors(target):
            _replace_directory(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_directory_free(target: Path, kind: str, marker: str, *, overwrite: bool) -> None:
    """Refuse an output path that is taken, before anything slow begins; see ``stage_directory``.

    Raises:
        BundleExistsError: something is there that may not be replaced.
    """
    if not target.exists() and not target.is_symlink():
        return
    if target.is_dir() and not any(target.iterdir()):
        return
    if not (target / marker).is_file():
        raise BundleExistsError(f"Output '{target}' exists and is not a {kind}; it is left alone. Choose another path.")
    if not overwrite:
        raise BundleExistsError(
            f"{kind.capitalize()} '{target}' exists. Choose another path, or replace it with --overwrite."
        )


@contextlib.contextmanager
def output_errors(target: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the operating system's refusals to write into one clear ``OutputError`` that names ``target``."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise OutputError(_disk_full_message(target)) from error
        raise OutputError(f"Cannot write '{target}': {error.strerror}. Choose a path that can be written.") from error


@contextlib.contextmanager
def disk_full_errors(target: str | os.PathLike[str]) -> Iterator[None]:
    """Turn a full disk into one clear ``OutputError`` around code that may fail for many other reasons."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise OutputError(_disk_full_message(target)) from error
        raise


def _disk_full_message(target: str | os.PathLike[str]) -> str:
    return f"No space left on the disk of '{target}'; nothing was written. Free some and run again."


def write_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or not at all; see ``write_files``."""
    write_files({as_path(path, "the output"): content})


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write files that belong together, all or none: into temporary siblings first, then renamed into place.

    Raises:
        OutputError: one of the paths cannot be written.
    """
    staged: dict[Path, Path] = {}
    try:
        for target, content in contents.items():
            with output_errors(target):
                if target.is_dir():
                    raise IsADirectoryError(errno.EISDIR, "it is a directory")
                target.parent.mkdir(parents=True, exist_ok=True)
                staged[target] = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
                staged[target].write_bytes(content)
        for target, temporary in staged.items():
            with output_errors(target):
                temporary.replace(target)
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)


def _replace_directory(source: Path, target: Path) -> None:
    """Rename ``source`` to ``target``; an old ``target`` comes back if that fails."""
    if not target.exists():
        source.rename(target)
        return
    retired = source.with_suffix(".old")
    target.rename(retired)
    try:
        source.rename(target)
    except BaseException:
        retired.rename(target)
        raise
    shutil.rmtree(retired, ignore_errors=True)
