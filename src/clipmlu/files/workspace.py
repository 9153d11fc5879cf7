"""Hidden folders beside an output, in which results are made before they are renamed into place.

A folder ``.clipmlu-<random>.tmp`` holds ``lock``, which its owner keeps locked while it lives; ``new-<i>``, what is being
made; and, while it replaces something that cannot be exchanged in one step, ``targets.json`` (the names in the parent
folder) and ``old-<i>``, what was moved aside. A lock that is free means a dead owner, whatever its process id is now: what it
had begun to put in place is then finished or taken back, and the folder is removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

if sys.platform != "win32":
    import fcntl

_PREFIX, _SUFFIX = ".clipmlu-", ".tmp"
_LOCK, _TARGETS = "lock", "targets.json"
_FOREIGN_SECONDS = 24 * 3600.0  # another host's lock may not be seen here: its folder is left alone for so long
_ATTEMPTS = 100
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


class Workspace:
    """A locked folder of one owner; leaving the block removes it.

    Args:
        parent: the folder in which the results shall be; what dead owners left there is swept up.

    Attributes:
        path: the folder.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, parent: Path) -> None:
        sweep(parent)
        self._lock: int | None = None
        for _ in range(_ATTEMPTS):
            self.path = parent / f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"
            try:
                self.path.mkdir()
                self._lock = _make_lock(self.path)
                return
            except FileNotFoundError:
                if not parent.is_dir():
                    raise
                # else it was swept up in the instant before it was locked: make another one
            except BaseException:
                self.discard()
                raise
        raise OSError(errno.EBUSY, "temporary folders are removed as soon as they are made")

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def new(self, number: int = 0) -> Path:
        """Where to make a result: a file or a directory of that name."""
        return self.path / f"new-{number}"

    def replace(self, targets: Sequence[Path]) -> None:
        """Put ``new(i)`` in the place of ``targets[i]``, all of which are in the parent folder.

        One file is replaced in one step, one directory too where the system can exchange two. Otherwise all that is there
        is moved aside first, the last one first, and the new ones follow, the first one first: at no time do new and old
        ones stand together, and what a kill interrupts is finished or taken back by the next ``sweep``.

        Raises:
            OSError: a file could not be moved; what was there is there again.
        """
        if len(targets) == 1:
            if not self.new().is_dir():
                os.replace(self.new(), targets[0])
                return
            if _exchange(self.new(), targets[0]):
                return
        names = json.dumps([os.fspath(target.name) for target in targets])
        (self.path / _TARGETS).write_text(names, encoding="utf-8", errors="surrogateescape")
        for number in reversed(range(len(targets))):
            with contextlib.suppress(FileNotFoundError):
                targets[number].rename(self.path / f"old-{number}")
        for number, target in enumerate(targets):
            self.new(number).rename(target)
        (self.path / _TARGETS).unlink()

    def discard(self) -> None:
        """Remove the folder; what cannot be removed now is left to the next ``sweep``."""
        with contextlib.suppress(OSError):
            _settle(self.path)
            _remove(self.path)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def sweep(parent: Path) -> None:
    """Remove the folders of dead owners, after what they had begun to put in place was finished or taken back."""
    if sys.platform == "win32":  # no locks of this kind
        return
    try:
        with os.scandir(parent) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(_PREFIX) and entry.name.endswith(_SUFFIX)]
    except OSError:
        return
    for name in names:
        with contextlib.suppress(OSError):  # not ours, still in use, or another one sweeps too
            _sweep_one(parent / name)


def place_file(new: Path, target: Path) -> None:
    """Give a file its name, unless that is taken.

    Raises:
        FileExistsError: it is.
        OSError: it cannot be done.
    """
    try:
        os.link(new, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without links: claim the name, then replace what is ours
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(new, target)
    else:
        new.unlink()


def place_directory(new: Path, target: Path) -> None:
    """Give a directory its name, unless that is taken by anything but an empty directory.

    Raises:
        FileExistsError: it is.
        OSError: it cannot be done.
    """
    try:
        new.rename(target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise FileExistsError(errno.EEXIST, "it exists") from error
        raise


def _make_lock(folder: Path) -> int:
    """Create and lock the lock file; returns its descriptor.

    Raises:
        FileNotFoundError: the folder was taken for a dead one's and removed.
    """
    path = folder / _LOCK
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        if sys.platform != "win32":
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FileNotFoundError(errno.ENOENT, "a sweep was faster") from None
            except OSError as error:  # a file system without locks, where nobody can sweep either
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                    raise
        if not _is_file_of(descriptor, path):
            raise FileNotFoundError(errno.ENOENT, "a sweep was faster")
        os.write(descriptor, _host().encode())
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _host() -> str:
    return "" if sys.platform == "win32" else os.uname().nodename


def _is_file_of(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except OSError:
        return False


def _sweep_one(folder: Path) -> None:
    """Remove one folder if its owner is dead.

    Raises:
        OSError: it is in use, somebody else's, or cannot be removed.
    """
    facts = os.lstat(folder)
    if not os.path.isdir(folder) or os.path.islink(folder) or facts.st_uid != os.geteuid():
        return
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        folder.rmdir()  # killed before it made a lock, or after it removed one: then it is empty
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_file_of(descriptor, folder / _LOCK):
            return
        host = os.read(descriptor, 1024).decode(errors="replace")
        if host not in ("", _host()) and time.time() - facts.st_mtime < _FOREIGN_SECONDS:
            return
        _settle(folder)
        _remove(folder)
    finally:
        os.close(descriptor)


def _settle(folder: Path) -> None:
    """Finish or take back a replacement that stopped half way; fills places that are empty, and touches no other.

    Raises:
        OSError: a file could not be moved.
    """
    try:
        names = json.loads((folder / _TARGETS).read_text(encoding="utf-8", errors="surrogateescape"))
    except FileNotFoundError:
        return
    except ValueError:  # killed while it wrote the list, before it moved anything
        (folder / _TARGETS).unlink()
        return
    targets = [folder.parent / os.path.basename(name) for name in names]
    fresh = [folder / f"new-{number}" for number in range(len(targets))]
    # The first new one is placed when all old ones are away.
    forward = not all(map(os.path.lexists, fresh)) or not any(map(os.path.lexists, targets))
    for number, target in enumerate(targets):
        source = fresh[number] if forward else folder / f"old-{number}"
        if os.path.lexists(source) and not os.path.lexists(target):
            source.rename(target)
    (folder / _TARGETS).unlink()


def _remove(folder: Path) -> None:
    """Remove a folder, the lock last, so that a kill on the way leaves what a sweep can tell.

    Raises:
        OSError: something is left.
    """
    if (folder / _TARGETS).exists():  # not settled: the old ones are still needed
        return
    for path in folder.iterdir():
        if path.name == _LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    (folder / _LOCK).unlink(missing_ok=True)
    folder.rmdir()


def _exchange(new: Path, target: Path) -> bool:
    """Exchange two directories in one step; False where the system cannot, or there is nothing to exchange."""
    rename = _renameat2()
    return rename is not None and rename(os.fsencode(new), os.fsencode(target)) == 0


@functools.cache
def _renameat2() -> Callable[[bytes, bytes], int] | None:
    """Linux's call that exchanges two names, as a function of them; None elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # musl before 1.2.5, glibc before 2.28
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    call.restype = ctypes.c_int
    return lambda new, target: int(call(_AT_FDCWD, new, _AT_FDCWD, target, _RENAME_EXCHANGE))
