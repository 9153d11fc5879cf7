"""Access to files that a client names."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Sequence
from typing import Any

from .errors import DriverError
from .values import show_value

CHUNK = 16 << 20
_SYSTEM_FOLDERS = ("/proc", "/sys", "/dev")


class FileAccess:
    """Checks which files a client can access.

    Args:
        roots: folders with readable files; None allows all files, for a client that started this process.
        hidden: files that cannot be read, under any name.
    """

    def __init__(self, roots: Sequence[str] | None = None, hidden: Sequence[str] = ()) -> None:
        self._roots = None if roots is None else [os.path.realpath(root) for root in roots]
        self._hidden = list(hidden)

    @property
    def limited(self) -> bool:
        """Whether some files are not readable for the client."""
        return self._roots is not None

    def open(self, given: Any) -> Any:
        """Open a regular file for reading; the checks apply to the opened file, even if its path is changed meanwhile.

        Raises:
            DriverError: the file is outside the folders, hidden, not regular, or cannot be read.
        """
        path = as_path(given)
        try:
            real = os.path.realpath(path)
            self._check_inside(path, real)
            stream = open_regular(real)
        except (OSError, ValueError) as error:
            raise unreadable(path, getattr(error, "strerror", None) or str(error)) from error
        try:
            self._check_opened(path, stream.fileno())
        except BaseException:
            stream.close()
            raise
        return stream

    def readable(self, given: Any) -> str:
        """Return the path of a readable file, without links, for a library that opens it itself."""
        self.open(given).close()
        real: str = os.path.realpath(given)
        return real

    def folder(self, given: Any) -> str:
        """Return the path of a permitted folder, without links."""
        path = as_path(given)
        real: str = os.path.realpath(path)
        self._check_inside(path, real)
        if self.limited and not os.path.isdir(real):
            raise unreadable(path, "it is no folder")
        return real if self.limited else path

    def _check_inside(self, path: str, real: str) -> None:
        if self._roots is None:
            return
        inside = [root for root in self._roots if _lies_in(real, root)]
        system = [top for top in _SYSTEM_FOLDERS if _lies_in(real, top)]
        if not inside or any(not _lies_in(root, top) for root in inside for top in system):
            raise unreadable(path, "it is outside the folders that this worker was given (--root)")

    def _check_opened(self, path: str, descriptor: int) -> None:
        if not self.limited:
            return
        if os.path.isdir("/proc/self/fd"):  # its true path, if a folder was replaced by a link meanwhile
            self._check_inside(path, os.path.realpath(f"/proc/self/fd/{descriptor}"))
        facts = os.fstat(descriptor)
        for hidden in self._hidden:
            with contextlib.suppress(OSError):
                if os.path.samestat(facts, os.stat(hidden)):
                    raise unreadable(path, "this worker keeps it to itself")
        if facts.st_nlink != 1:
            raise unreadable(path, "it has more than one name, and another one may lie outside")


def as_path(given: Any) -> str:
    """Check that a value from a client can be a path.

    Raises:
        DriverError: it cannot.
    """
    if not isinstance(given, str) or not given or "\0" in given:
        raise DriverError("request", f"{show_value(given)} is no path", kind="spec")
    try:
        os.fsencode(given)
    except UnicodeEncodeError:
        raise DriverError("request", f"{show_value(given)} is no path", kind="spec") from None
    return given


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def unreadable(path: str, reason: str) -> DriverError:
    """Return the error for a file that cannot or must not be read."""
    return DriverError("read", f"'{path}' cannot be read: {reason}", kind="spec")


def open_regular(path: str) -> Any:
    """Open a file for reading; links, pipes and devices raise OSError without being opened, which could block."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise OSError(0, "it is no regular file")
    flags = os.O_RDONLY
    for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY", "O_BINARY"):
        flags |= getattr(os, name, 0)
    stream = os.fdopen(os.open(path, flags), "rb")
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError(0, "it is no regular file")
    return stream


def digest_of(path: str) -> str:
    """Return the SHA-256 of a file, in hex."""
    with open(path, "rb") as stream:
        return digest_of_stream(stream)


def digest_of_stream(stream: Any) -> str:
    """Return the SHA-256 of the rest of an open file, in hex."""
    digest = hashlib.sha256()
    for piece in iter(lambda: stream.read(1 << 20), b""):
        digest.update(piece)
    return digest.hexdigest()
