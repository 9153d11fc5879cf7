"""The command line in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from clipmlu.cli import main

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line; returns the exit code and the last line on stderr."""

    def run_command(*arguments: object) -> tuple[int, str]:
        code = main([str(argument) for argument in arguments])
        lines = capsys.readouterr().err.splitlines()
        return code, lines[-1] if lines else ""

    return run_command
