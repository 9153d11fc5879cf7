"""Bounded reading of files that users give: regular files only, up to a size limit, and JSON with one kind of error.

Reading a pipe or device could block or never end. All errors are ``OSError`` with a ``strerror``, like those of the
operating system, or ``msgspec.DecodeError``; the caller converts them to a message for the user.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO, TypeVar

import msgspec

SMALL_FILE_BYTES = 64 << 20
"""Size limit in bytes for lists, reports and option files."""

Decoded = TypeVar("Decoded")


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading without blocking.

    Raises:
        OSError: it cannot be opened, or is a directory, a pipe, a device or a socket.
    """
    try:
        _check_regular(os.stat(path).st_mode)
        # The path may change after the check: open it without blocking, and check the open file again.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:
        raise OSError(errno.EINVAL, "the path holds a null character") from error
    try:
        _check_regular(os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_small_file(path: str | os.PathLike[str], limit: int = SMALL_FILE_BYTES) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes.

    Raises:
        OSError: as for ``open_regular``, or the file is larger.
    """
    with open_regular(path) as stream:
        too_large = os.fstat(stream.fileno()).st_size > limit
        # A file that grows, or one below /proc, holds more bytes than its size says.
        content = b"" if too_large else stream.read(limit + 1)
    if too_large or len(content) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes, the limit for such a file")
    return content


def read_json(path: str | os.PathLike[str], kind: type[Decoded], limit: int = SMALL_FILE_BYTES) -> Decoded:
    """Read a small JSON file as a value of type ``kind``.

    Raises:
        OSError: as for ``read_small_file``.
        msgspec.DecodeError: as for ``decode_json``.
    """
    return decode_json(read_small_file(path, limit), kind)


def decode_json(content: bytes, kind: type[Decoded]) -> Decoded:
    """Decode JSON as a value of type ``kind``.

    Raises:
        msgspec.DecodeError: the content is not JSON or not of that type; replaces other exceptions that msgspec raises.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except RecursionError as error:
        raise msgspec.DecodeError("it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"it is not UTF-8 text at byte {error.start}") from error


def _check_regular(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a directory")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a regular file")
