"""Starting child processes, and describing how they ended."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from .log import LogTail


def start_child(
    command: Sequence[str], descriptors: Sequence[int], environment: dict[str, str], echo: bool
) -> tuple[subprocess.Popen[bytes], LogTail]:
    """Start a process that inherits descriptors; the last lines of its output are kept.

    The process ends with the thread that calls this (see ``die_with_parent``), so the thread must live as long as it is
    needed.
    """
    reading, writing = os.pipe()
    try:
        child = subprocess.Popen(  # noqa: S603 - an interpreter that the caller names, and this program
            command,
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            pass_fds=tuple(descriptors),
            env=environment,
            start_new_session=True,  # Ctrl-C is for the client, which then ends its worker
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return child, LogTail(os.fdopen(reading, "rb"), echo)


def die_with_parent() -> None:
    """Make the kernel kill this process when its parent ends, even if the SDK hangs."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG


def describe_exit(code: int | None) -> str:
    """Describe a return code."""
    if code is None:
        return "still running"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
