"""The worker's program: the driver as one file, for another machine or for a local process."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from clipmlu.files.publish import StagedFiles, output_errors
from clipmlu.magicmind.archive import make_archive, package_files
from clipmlu.magicmind.driver import FILE_NAME

PACKAGE = "clipmlu_worker"
ENTRY = f"{PACKAGE}.command:main"


@functools.cache
def worker_program() -> bytes:
    """Return the content of the worker's file; equal versions of the driver give equal bytes on every machine."""
    return make_archive(package_files("clipmlu.magicmind.driver", PACKAGE), ENTRY)


@functools.cache
def worker_digest() -> str:
    """Return the SHA-256 of the worker's file, in hex; both sides of a connection must have the same."""
    return hashlib.sha256(worker_program()).hexdigest()


def write_worker(path: Path, *, overwrite: bool = False) -> Path:
    """Write the worker's file atomically and make it executable.

    Args:
        path: the file, or a directory for ``clipmlu_worker.pyz``.
        overwrite: replace an existing file.

    Returns:
        The file.

    Raises:
        OutputExistsError: the file exists and ``overwrite`` is off.
        OutputError: the file cannot be written.
    """
    target = path / FILE_NAME if path.is_dir() else path
    with StagedFiles([target], overwrite=overwrite) as staged:
        with output_errors(target):
            staged.paths[0].write_bytes(worker_program())
            staged.paths[0].chmod(0o755)
        staged.publish()
    return target


@contextlib.contextmanager
def open_program(file: Path | None) -> Iterator[tuple[str, list[int]]]:
    """Yield the path of the worker's program for a new process, and the descriptors that the process must inherit.

    The program is a file without a name, in memory if the system supports it: no other user can open it, nothing is
    left after a kill, and no folder has to be writable.

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
    except (AttributeError, OSError):  # not Linux, or memory files are not permitted
        return tempfile.TemporaryFile()
