"""How files that may be anybody's are read: only regular ones, up to a size, and JSON with one kind of error.

A pipe or a device would block, or never end. All refusals are ``OSError`` with a ``strerror``, as those of the operating
system, or ``msgspec.DecodeError``; what they mean to the user is for the caller to say.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

import msgspec

from clipmlu.errors import reason_of
from clipmlu.keys import value_digest

SMALL_FILE_BYTES = 64 << 20
"""More than any list, report or option file of a person or of ours holds."""

Decoded = TypeVar("Decoded")
_SEAL = "seal"


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading, without ever waiting for another process.

    Raises:
        OSError: it cannot be opened, or is a directory, a pipe, a device or a socket.
    """
    try:
        _check_regular(os.stat(path).st_mode)
        # The path may be exchanged in between: opened without waiting, and asked again.
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
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
        OSError: as ``open_regular``, or the file is larger.
    """
    with open_regular(path) as stream:
        too_large = os.fstat(stream.fileno()).st_size > limit
        # A growing file, or one below /proc, has more than it says.
        content = b"" if too_large else stream.read(limit + 1)
    if too_large or len(content) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes, which is not what it should be")
    return content


def read_json(path: str | os.PathLike[str], kind: type[Decoded], limit: int = SMALL_FILE_BYTES) -> Decoded:
    """Read a small JSON file as a value of one type.

    Raises:
        OSError: as ``read_small_file``.
        msgspec.DecodeError: as ``decode_json``.
    """
    return decode_json(read_small_file(path, limit), kind)


def decode_json(content: bytes, kind: type[Decoded]) -> Decoded:
    """Decode JSON as a value of one type.

    Raises:
        msgspec.DecodeError: it is no JSON, or another value; also where msgspec has other exceptions for that.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except RecursionError as error:
        raise msgspec.DecodeError("it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"it is not UTF-8 text at byte {error.start}") from error


def sealed(value: msgspec.Struct) -> dict[str, Any]:
    """What to write of a value for ``read_kept``: its fields, and their digest."""
    content: dict[str, Any] = msgspec.to_builtins(value)
    return {_SEAL: value_digest(content), **content}


def read_kept(path: str | os.PathLike[str], kind: type[Decoded], on_note: Callable[[str], None]) -> Decoded | None:
    """What an earlier run kept in a JSON file, see ``sealed``; None where there is none, or, with a note, none to be used."""
    try:
        content = read_json(path, dict[str, Any])
        if content.pop(_SEAL, None) != value_digest(content):
            raise msgspec.DecodeError("it is not as it was written")
        return msgspec.convert(content, kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        on_note(f"making '{path}' anew, which is damaged or of another version: {reason_of(error)}")
        return None


def _check_regular(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a directory")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a regular file")
