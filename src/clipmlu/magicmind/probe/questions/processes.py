"""Processes that end by themselves, crash or are ended, and what they leave."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile

from .findings import Fields, shorten

LOG_TAIL = 2000


def kill_group(child: subprocess.Popen[bytes]) -> None:
    """End a child and its children."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def describe_exit(code: int) -> str:
    """What a return code says; empty when all is well."""
    if code >= 0:
        return f"exit code {code}" if code else ""
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def read_notes(path: str) -> list[Fields]:
    """What a child noted; a last line that is cut short is left out."""
    found = []
    with open(path, encoding="utf-8") as stream:
        for line in stream:
            try:
                found.append(json.loads(line))
            except ValueError:
                break
    return found


def read_tail(path: str) -> str:
    """The end of a log."""
    with open(path, "rb") as stream:
        stream.seek(max(0, os.path.getsize(path) - LOG_TAIL))
        return stream.read().decode("utf-8", "replace").strip()


def cnmon_version() -> str | None:
    """What the vendor's monitor says of its version and the driver's (api 5), or None where it is not."""
    program = shutil.which("cnmon") or "/usr/bin/cnmon"
    if not os.access(program, os.X_OK):
        return None
    try:
        done = subprocess.run(  # noqa: S603
            [program, "version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return shorten(f"{type(error).__name__}: {error}")
    return shorten(done.stdout.decode("utf-8", "replace")) or f"exit code {done.returncode}"


def own_command() -> list[str]:
    """The command that starts this program again: the archive, or the installed package."""
    program = os.path.abspath(sys.argv[0])
    return [sys.executable, program] if zipfile.is_zipfile(program) else [sys.executable, "-m", str(__package__)]
