"""A lock on a folder, so that one process at a time works in it."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from clipmlu.files.publish import missing_folders, output_errors, remove_empty

if sys.platform != "win32":
    import fcntl

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EBADF)  # EBADF: a folder on NFS


@contextlib.contextmanager
def lock_folder(folder: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a folder; another process, or thread, that calls this waits until the block or the process ends.

    On a system without such locks nothing is locked.

    Args:
        folder: the folder; it is created, and removed on exit if it was missing and is empty.
        on_wait: called before waiting for another process.

    Raises:
        OutputError: the folder cannot be created.
    """
    with contextlib.ExitStack() as stack:
        with output_errors(folder):
            descriptor, made = _lock(folder, on_wait)
        stack.callback(os.close, descriptor)
        stack.callback(remove_empty, made)  # before the lock is released
        yield


def _lock(folder: Path, on_wait: Callable[[], None]) -> tuple[int, list[Path]]:
    """Lock a folder; return the descriptor that holds the lock, and the folders that were created, innermost first.

    Raises:
        OSError: the folder cannot be opened.
    """
    while True:
        missing = missing_folders(folder)  # the last process may have removed it
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            continue
        try:
            _take(descriptor, on_wait)
            if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
                return descriptor, missing
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _take(descriptor: int, on_wait: Callable[[], None]) -> None:
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_wait()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def is_locked(folder: Path) -> bool | None:
    """Return whether a process on this machine holds the lock of a folder; None if the system cannot tell.

    Raises:
        OSError: the folder cannot be opened.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(
            descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB
        )  # released at once; who wants the lock then waits that long
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    finally:
        os.close(descriptor)
    return False
