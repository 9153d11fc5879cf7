"""The worker's program: the driver as one file, for another machine or for a process that is started here."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from clipmlu.files.publish import output_errors, write_file
from clipmlu.magicmind.archive import make_archive, package_files
from clipmlu.magicmind.driver import FILE_NAME

PACKAGE = "clipmlu_worker"
ENTRY = f"{PACKAGE}.command:main"


@functools.cache
def worker_program() -> bytes:
    """The contents of the worker's file. Equal versions of the driver give equal bytes on every machine."""
    return make_archive(package_files("clipmlu.magicmind.driver", PACKAGE), ENTRY)


@functools.cache
def worker_digest() -> str:
    """SHA-256 of the worker's file, in hex. Both sides of a connection must have the same."""
    return hashlib.sha256(worker_program()).hexdigest()


def write_worker(path: Path, *, overwrite: bool = False) -> Path:
    """Write the worker's file, whole or not at all, and make it executable.

    Args:
        path: the file, or a directory to put ``clipmlu_worker.pyz`` into.
        overwrite: replace a file that is there.

    Returns:
        The file.

    Raises:
        OutputExistsError: there is one, and ``overwrite`` is off.
        OutputError: it cannot be written.
    """
    target = path / FILE_NAME if path.is_dir() else path
    write_file(target, worker_program(), overwrite=overwrite)
    with output_errors(target):
        target.chmod(0o755)
    return target


@contextlib.contextmanager
def open_program(file: Path | None) -> Iterator[tuple[str, list[int]]]:
    """Give the path of the worker's program for a new process, and the descriptors that the process must inherit.

    The program is a file without a name, in memory if the system supports it: no other user can open it, a kill leaves nothing
    behind, and no folder has to be writable.

    Args:
        file: a file to run instead; it needs no descriptor.
    """
    if file is not None:
        yield str(file), []
        return
    with _nameless_file() as stream:
        stream.write(worker_program())
        stream.flush()
        folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
        yield f"{folder}/{stream.fileno()}", [stream.fileno()]


def _nameless_file() -> IO[bytes]:
    try:
        return os.fdopen(os.memfd_create(FILE_NAME, os.MFD_CLOEXEC), "wb")
    except (AttributeError, OSError):  # no Linux, or one that refuses
        return tempfile.TemporaryFile()
