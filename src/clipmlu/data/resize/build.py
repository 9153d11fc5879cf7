"""Compilation of the resize kernel: ``python -m clipmlu.data.resize.build``, or this file run as a program.

The build hook of the package runs this file where clipmlu's dependencies are not installed, so it needs the standard
library only.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("kernel.c")
COMPILERS = ("cc", "gcc", "clang")
COMPILER_VARIABLE = "CC"
# -ffp-contract=off: a fused multiply-add would round some of the weights differently from Pillow.
_FLAGS = ("-std=c99", "-O3", "-ffp-contract=off", "-fPIC", "-shared", "-fvisibility=hidden")
_SECONDS = 120


class BuildError(Exception):
    """The kernel could not be compiled; the message says why."""


def kernel_path(folder: Path = SOURCE.parent) -> Path:
    """Return the place of the compiled kernel; its name holds the platform, since a folder may be shared by several."""
    return folder / f"kernel-{sysconfig.get_platform()}.so"


def source_digest() -> str:
    """Return the digest of the kernel's source, which is compiled into the library.

    Raises:
        OSError: the source cannot be read.
    """
    return hashlib.sha256(SOURCE.read_bytes()).hexdigest()


def build(target: Path | None = None) -> Path:
    """Compile the kernel with the compiler of ``CC``, or the first of ``cc``, ``gcc`` and ``clang``.

    Args:
        target: the file to write; it is replaced in one step. None for ``kernel_path()``.

    Returns:
        The file.

    Raises:
        BuildError: there is no compiler, it fails, or this interpreter cannot load the result.
    """
    target = kernel_path() if target is None else target
    digest = source_digest()
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".kernel-") as folder:
            made = Path(folder) / target.name
            _run([*_compiler(), *_FLAGS, f'-DCLIPMLU_SOURCE_DIGEST="{digest}"', "-o", str(made), str(SOURCE), "-lm"])
            if digest_of(ctypes.CDLL(str(made))) != digest:
                raise BuildError("the compiled library does not answer")
            made.replace(target)
    except OSError as error:
        raise BuildError(f"'{target}' cannot be built: {error}") from error
    return target


def digest_of(library: ctypes.CDLL) -> str | None:
    """Return the digest of the source that a library was compiled from; None if it has none."""
    try:
        function = library.clipmlu_source_digest
    except AttributeError:
        return None
    function.restype = ctypes.c_char_p
    answer: bytes = function()
    return answer.decode("ascii", "replace")


def _compiler() -> list[str]:
    given = os.environ.get(COMPILER_VARIABLE, "")
    try:
        named = shlex.split(given)
    except ValueError as error:
        raise BuildError(f"{COMPILER_VARIABLE} is '{given}', which is no command: {error}") from error
    if named:
        return named
    for name in COMPILERS:
        if shutil.which(name):
            return [name]
    raise BuildError(f"there is no C compiler ({', '.join(COMPILERS)})")


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"'{command[0]}' cannot be run: {error}") from error
    if done.returncode:
        raise BuildError(f"'{command[0]}' failed: {' '.join(done.stderr.split())[:500]}")


if __name__ == "__main__":
    try:
        print(f"compiled '{build()}'")  # noqa: T201
    except BuildError as error:
        sys.exit(f"The resize kernel was not compiled: {error}. Pillow resizes instead, which is slower.")
