"""A server in a process of its own, for measurements: started on a free port of loopback, and stopped again."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import IO

from clipmlu.errors import SessionError
from clipmlu.host import require_installed

_PROGRAM = """\
import sys, clipmlu
clipmlu.run_server({sys.argv[1]: sys.argv[2]}, port=0, on_listen=lambda url: print(url, flush=True))
"""
_STOP_S = 20.0
_REASON_LINES = 5


@contextlib.contextmanager
def started_server(name: str, bundle: str | os.PathLike[str]) -> Iterator[str]:
    """Serve a bundle while the context lasts; gives the server's URL.

    Args:
        name: name of the model in requests.
        bundle: directory of the compiled bundle.

    Raises:
        MissingDependencyError: FastAPI or uvicorn is not installed.
        SessionError: the server ends before it listens; the message has the end of its errors.
    """
    for package in ("fastapi", "uvicorn"):
        require_installed(package, "serve", "Serving over HTTP")
    with tempfile.TemporaryFile() as errors:
        command = [sys.executable, "-c", _PROGRAM, name, os.fspath(bundle)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True)  # noqa: S603
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if not url:
                process.wait()
                raise SessionError(f"The server for '{os.fspath(bundle)}' did not start: {_end_of(errors)}")
            yield url
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _end_of(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode(errors="replace").split("\n")
    return " ".join(line.strip() for line in lines[-_REASON_LINES:]).strip() or "it ended without a message"
