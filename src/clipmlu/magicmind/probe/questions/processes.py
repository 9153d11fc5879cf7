"""Child processes: how they are started and ended, and reading their exit codes, notes and logs."""

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
    """Kill a child process and those that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def describe_exit(code: int) -> str:
    """A return code in words; empty for 0."""
    if code >= 0:
        return f"exit code {code}" if code else ""
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def read_notes(path: str) -> list[Fields]:
    """Read the notes of a child, one JSON object a line; an incomplete last line is ignored."""
    found = []
    with open(path, encoding="utf-8") as stream:
        for line in stream:
            try:
                found.append(json.loads(line))
            except ValueError:
                break
    return found


def read_tail(path: str) -> str:
    """The last ``LOG_TAIL`` bytes of a log."""
    with open(path, "rb") as stream:
        stream.seek(max(0, os.path.getsize(path) - LOG_TAIL))
        return stream.read().decode("utf-8", "replace").strip()


def cnmon_version() -> str | None:
    """The output of ``cnmon version``, the vendor's monitor (api 5), or None where there is none."""
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
