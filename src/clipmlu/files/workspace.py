"""Hidden temporary folders beside an output, in which results are written before they are renamed.

A folder ``.clipmlu-<random>.tmp`` contains ``lock``, locked by its process while that runs; ``new-<i>``, the new
results;
and, during a replacement that takes several steps, ``targets.json`` (their names in the parent folder) and ``old-<i>``,
the
previous files. If the lock is free, the process has ended, even if another process has its id now: the next call of
``sweep`` then completes or reverts its replacement and removes the folder.
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
_FOREIGN_SECONDS = 24 * 3600.0  # locks of other hosts may be invisible here, so their folders stay for this time
_ATTEMPTS = 100
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


class Workspace:
    """A locked temporary folder of one process; on exit the folder is removed.

    Args:
        parent: the folder of the results; folders of ended processes in it are removed first.

    Attributes:
        path: the temporary folder.

    Raises:
        OSError: the folder cannot be created.
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
                # Else another process removed the folder before it was locked: create another one.
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
        """Return the path at which to create result ``number``, a file or a directory."""
        return self.path / f"new-{number}"

    def replace(self, targets: Sequence[Path]) -> None:
        """Move each ``new(i)`` to ``targets[i]``; all targets are in the parent folder.

        A single file is replaced in one step, a single directory as well if the system can exchange two. Otherwise all
        existing
        targets are moved away first, in reverse order, and the new ones are moved in, in order: new and old files are
        never
        there at the same time. If the process is killed meanwhile, the next ``sweep`` completes or reverts the
        replacement.

        Raises:
            OSError: a file could not be moved; the previous files are restored.
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
        """Remove the folder; the next ``sweep`` removes what cannot be removed now."""
        with contextlib.suppress(OSError):
            _settle(self.path)
            _remove(self.path)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def is_workspace_name(name: str) -> bool:
    """Return whether a folder of this name is a temporary folder of this or another process."""
    return name.startswith(_PREFIX) and name.endswith(_SUFFIX)


def sweep(parent: Path) -> None:
    """Complete or revert the replacements of ended processes and remove their temporary folders."""
    if sys.platform == "win32":  # has no such locks
        return
    try:
        with os.scandir(parent) as entries:
            names = [entry.name for entry in entries if is_workspace_name(entry.name)]
    except OSError:
        return
    for name in names:
        with contextlib.suppress(OSError):  # of another user, still in use, or swept by another process
            _sweep_one(parent / name)


def place_file(new: Path, target: Path) -> None:
    """Rename a file to a target that does not exist.

    Raises:
        FileExistsError: the target exists.
        OSError: the file cannot be renamed.
    """
    try:
        os.link(new, target)
    except FileExistsError:
        raise
    except OSError:  # file system without hard links: create the target, then replace it
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(new, target)
    else:
        new.unlink()


def place_directory(new: Path, target: Path) -> None:
    """Rename a directory to a target that does not exist or is an empty directory.

    Raises:
        FileExistsError: the target exists.
        OSError: the directory cannot be renamed.
    """
    try:
        new.rename(target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise FileExistsError(errno.EEXIST, "it exists") from error
        raise


def _make_lock(folder: Path) -> int:
    """Create and lock the lock file, and return its descriptor.

    Raises:
        FileNotFoundError: the sweep of another process removed the folder.
    """
    path = folder / _LOCK
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        if sys.platform != "win32":
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FileNotFoundError(errno.ENOENT, "a sweep was faster") from None
            except OSError as error:  # a file system without locks, on which no process can sweep
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
    """Remove one temporary folder if its process has ended.

    Raises:
        OSError: the folder is in use, belongs to another user, or cannot be removed.
    """
    facts = os.lstat(folder)
    if not os.path.isdir(folder) or os.path.islink(folder) or facts.st_uid != os.geteuid():
        return
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        folder.rmdir()  # killed before it created the lock or after it removed it: the folder is empty
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
    """Complete or revert an interrupted replacement; existing targets are never changed.

    Raises:
        OSError: a file could not be moved.
    """
    try:
        names = json.loads((folder / _TARGETS).read_text(encoding="utf-8", errors="surrogateescape"))
    except FileNotFoundError:
        return
    except ValueError:  # killed while writing the list, before any file was moved
        (folder / _TARGETS).unlink()
        return
    targets = [folder.parent / os.path.basename(name) for name in names]
    fresh = [folder / f"new-{number}" for number in range(len(targets))]
    # The first new file is moved only after all old ones are away.
    forward = not all(map(os.path.lexists, fresh)) or not any(map(os.path.lexists, targets))
    for number, target in enumerate(targets):
        source = fresh[number] if forward else folder / f"old-{number}"
        if os.path.lexists(source) and not os.path.lexists(target):
            source.rename(target)
    (folder / _TARGETS).unlink()


def _remove(folder: Path) -> None:
    """Remove a folder, its lock file last, so that a later sweep recognises a folder that is partly removed.

    Raises:
        OSError: a file cannot be removed.
    """
    if (folder / _TARGETS).exists():  # replacement not completed: the old files are still needed
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
    """Exchange two directories in one step; return False if the system cannot or the target does not exist."""
    rename = _renameat2()
    return rename is not None and rename(os.fsencode(new), os.fsencode(target)) == 0


@functools.cache
def _renameat2() -> Callable[[bytes, bytes], int] | None:
    """Return Linux's system call that exchanges two names as a function of both, or None on other systems."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # musl before 1.2.5, glibc before 2.28
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    call.restype = ctypes.c_int
    return lambda new, target: int(call(_AT_FDCWD, new, _AT_FDCWD, target, _RENAME_EXCHANGE))
