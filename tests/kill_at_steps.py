"""Runs work in a forked process that is killed at one of its changes of files; for scripts that try every one of them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

_CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate"}


def run_forked(work: Callable[[], object], folder: Path, last_step: int | None) -> int:
    """Run in a forked process, and kill it when the audit event of a change below a folder comes.

    Returns:
        The number of its changes, or -1 if it was killed at ``last_step``.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        steps = 0

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal steps
            flags = arguments[2] if event == "open" else 0
            changes = event in _CHANGES or (isinstance(flags, int) and flags & (os.O_CREAT | os.O_TRUNC))
            if changes and str(folder) in str(arguments[0]):
                if steps == last_step:
                    os.kill(os.getpid(), signal.SIGKILL)
                steps += 1

        sys.addaudithook(count)
        work()
        os.write(writing, str(steps).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        text = stream.read()
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the work failed"
    return int(text) if text else -1


def content(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder, hidden ones too, and its empty folders."""
    return {
        str(path.relative_to(folder)): b"" if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() or not any(path.iterdir())
    }
