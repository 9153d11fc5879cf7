"""The command line in this process, and pictures to give it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import support
from clipmlu.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run_command(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five readable pictures, one broken, one file that is no image, some in a sub-folder."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for number in range(3):
        support.picture(number).save(folder / f"{number}.png")
    for number in (3, 4):
        support.picture(number).save(folder / "sub" / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff garbage")
    (folder / "notes.txt").write_text("x")
    return folder
