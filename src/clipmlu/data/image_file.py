"""Reading of image files: regular files only, small ones at once."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import IO
from urllib.parse import unquote

from clipmlu.data.formats import FORMATS, reason_of
from clipmlu.data.label_lines import shortened
from clipmlu.errors import InputError
from clipmlu.file_names import name_from_path

EXPECTED_FILE = f"Expected an image file ({', '.join(FORMATS)})."
_NAME_CHARACTERS = 300
_WHOLE_FILE_BYTES = 64 << 20  # larger files are read during decoding
_SCHEME = re.compile(
    r"(data(?=:)|[a-z][a-z0-9+.-]+(?=:/)):", re.IGNORECASE
)  # two letters or more: not a drive of Windows
_READ_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def read_image_file(source: str | os.PathLike[str]) -> bytes | Path:
    """Return the content of a file, or the path of one above 64 MiB.

    Raises:
        InputError: the file cannot be read.
    """
    content = _read_plain_file(source)
    if content is not None:
        return content
    if not os.fspath(source):  # as a path it would be the current folder
        raise InputError(f"Cannot read image '': the path is empty. {EXPECTED_FILE}")
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
    where = f"image '{shortened(name_from_path(path), _NAME_CHARACTERS)}'"
    try:
        kind = path.stat().st_mode
        # Reading a pipe would block; the error for a directory differs between operating systems.
        if stat.S_ISDIR(kind):
            raise InputError(
                f"Cannot read {where}: it is a directory. Expected an image file; in Python give the files in it: "
                f"list(Path('{shortened(name_from_path(path))}').glob('*.jpg'))."
            )
        if not stat.S_ISREG(kind):
            raise InputError(f"Cannot read {where}: it is not a regular file. {EXPECTED_FILE}")
        return path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = _no_path_reason(str(path))
        if reason is None:
            missing = dangling_reason(path) if isinstance(error, FileNotFoundError) else reason_of(error)
            reason = f"{missing}. {EXPECTED_FILE}"
        raise InputError(f"Cannot read {where}: {reason}") from error


def _no_path_reason(text: str) -> str | None:
    """Return why a text that is no path of a file was not meant as one, and what to give instead; None for others.

    Args:
        text: as ``pathlib`` writes it, with one slash for several.
    """
    scheme = _SCHEME.match(text)
    if scheme is not None:
        kind, rest = scheme[1].lower(), text[scheme.end() :]
        if kind in ("http", "https"):
            return "it is a URL, which is fetched only by a call that has allow_urls=True."
        if kind == "file":
            return f"it is a file URL. Give the path '{unquote(rest)}'."
        if kind == "data":
            return "it is a data URL. Give the bytes in it: base64.b64decode(url.partition(',')[2])."
        return f"addresses that begin with '{kind}:' are not read. Download the file, and give its path or bytes."
    if text != text.strip() and os.path.lexists(text.strip()):
        return "there is no such file, but one without the white space around the name. Give path.strip()."
    if "*" in text or "?" in text:
        return f"there is no such file, and a pattern is none. In Python give glob.glob('{shortened(text)}')."
    return None


def dangling_reason(path: Path) -> str:
    """Return why there is no file at a path: a dangling link, or nothing there."""
    try:
        return f"it is a link to '{name_from_path(os.readlink(path))}', which does not exist"
    except OSError:
        return "there is no such file"
