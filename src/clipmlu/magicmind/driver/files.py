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


class Reach:
    """Which files a client may name.

    Args:
        roots: folders whose files may be read; None for a client that started this process, and reads them itself as well.
        hidden: files that are never read, by whatever name.
    """

    def __init__(self, roots: Sequence[str] | None = None, hidden: Sequence[str] = ()) -> None:
        self._roots = None if roots is None else [os.path.realpath(root) for root in roots]
        self._hidden = list(hidden)

    @property
    def limited(self) -> bool:
        """Whether there are files that the client may not read."""
        return self._roots is not None

    def open(self, given: Any) -> Any:
        """Open a regular file for reading: the very file that was looked at, whatever its path leads to by then.

        Raises:
            DriverError: it is outside, hidden, no regular file, or cannot be read.
        """
        path = as_path(given)
        try:
            real = os.path.realpath(path)
            self._check_inside(path, real)
            stream = open_regular(real)
        except (OSError, ValueError) as error:
            raise unreadable(path, getattr(error, "strerror", None) or str(error)) from error
        try:
            self._check_opened(path, real, stream.fileno())
        except BaseException:
            stream.close()
            raise
        return stream

    def readable(self, given: Any) -> str:
        """The path of a file that may be read, without links, for a library that opens it itself."""
        self.open(given).close()
        real: str = os.path.realpath(given)
        return real

    def folder(self, given: Any) -> str:
        """The path of a folder that may be used, without links."""
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

    def _check_opened(self, path: str, real: str, descriptor: int) -> None:
        if not self.limited:
            return
        if os.path.isdir("/proc/self/fd"):  # where it really is, if a folder was exchanged for a link meanwhile
            self._check_inside(path, os.path.realpath(f"/proc/self/fd/{descriptor}"))
        facts = os.fstat(descriptor)
        for hidden in self._hidden:
            with contextlib.suppress(OSError):
                if os.path.samestat(facts, os.stat(hidden)):
                    raise unreadable(path, "this worker keeps it to itself")
        if facts.st_nlink != 1:
            raise unreadable(path, "it has more than one name, and another one may lie outside")


def as_path(given: Any) -> str:
    """A path of a client.

    Raises:
        DriverError: no path can look like that.
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
    """The error for a file that cannot be read, or may not be."""
    return DriverError("read", f"'{path}' cannot be read: {reason}", kind="spec")


def open_regular(path: str) -> Any:
    """A file opened for reading, unless it is a link, a pipe or a device; none of these is even opened, for it may wait."""
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
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as stream:
        return digest_of_stream(stream)


def digest_of_stream(stream: Any) -> str:
    """SHA-256 of what is left of an open file, in hex."""
    digest = hashlib.sha256()
    for piece in iter(lambda: stream.read(1 << 20), b""):
        digest.update(piece)
    return digest.hexdigest()
