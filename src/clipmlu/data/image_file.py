"""Reading of image files: regular files only, small ones at once."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO

from clipmlu.data.formats import FORMATS, reason_of
from clipmlu.errors import InputError
from clipmlu.file_names import name_from_path

EXPECTED_FILE = f"Expected an image file ({', '.join(FORMATS)})."
_WHOLE_FILE_BYTES = 64 << 20  # larger files are read during decoding
_READ_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def read_image_file(source: str | os.PathLike[str]) -> bytes | Path:
    """Return the content of a file, or the path of one above 64 MiB.

    Raises:
        InputError: the file cannot be read.
    """
    content = _read_plain_file(source)
    if content is not None:
        return content
    path = Path(source)
    with open_image_file(path) as stream:
        try:
            if os.fstat(stream.fileno()).st_size > _WHOLE_FILE_BYTES:
                return path
            return stream.read()
        except OSError as error:
            raise InputError(
                f"Cannot read image '{name_from_path(path)}': {reason_of(error)}. {EXPECTED_FILE}"
            ) from error


def _read_plain_file(path: str | os.PathLike[str]) -> bytes | None:
    """Read a regular file of at most 64 MiB; None if that fails, or for anything else.

    It calls the system four times, a third as often as Python's file objects. Each call releases the interpreter's
    lock, which many threads would then have to take again.
    """
    try:
        descriptor = os.open(path, _READ_FLAGS)
    except (OSError, ValueError):
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= _WHOLE_FILE_BYTES:
            return None  # a file below /proc has the size 0
        content = os.read(descriptor, status.st_size)
        return content if len(content) == status.st_size else None
    except OSError:
        return None
    finally:
        os.close(descriptor)


def open_image_file(path: Path) -> IO[bytes]:
    """Open a regular file.

    Raises:
        InputError: it cannot be opened, or is a directory or a device.
    """
    where = f"image '{name_from_path(path)}'"
    try:
        kind = path.stat().st_mode
        # Reading a pipe would block; the error for a directory differs between operating systems.
        if stat.S_ISDIR(kind):
            raise InputError(f"Cannot read {where}: it is a directory. {EXPECTED_FILE}")
        if not stat.S_ISREG(kind):
            raise InputError(f"Cannot read {where}: it is not a regular file. {EXPECTED_FILE}")
        return path.open("rb")
    except FileNotFoundError as error:
        raise InputError(f"Cannot read {where}: {dangling_reason(path)}. {EXPECTED_FILE}") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise InputError(f"Cannot read {where}: {reason_of(error)}. {EXPECTED_FILE}") from error


def dangling_reason(path: Path) -> str:
    """Return why there is no file at a path: a dangling link, or nothing there."""
    try:
        return f"it is a link to '{name_from_path(os.readlink(path))}', which does not exist"
    except OSError:
        return "there is no such file"
