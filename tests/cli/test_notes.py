"""Notes on a terminal: broken between words, with numbers whole and commands in one piece."""

from __future__ import annotations

import contextlib

import pytest

from clipmlu.cli._notes import note
from screen import Screen

LONG = "Wrote 12345 rows in 678 shard(s) to /a/b; 12345 images in 93.9 s, 131.5 images/s"


def _noted(message: str, monkeypatch: pytest.MonkeyPatch, columns: int) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    screen = Screen()
    with contextlib.redirect_stderr(screen):
        note(message)
    return screen.getvalue().splitlines()


def test_long_note_is_broken_between_words_with_numbers_beside_their_units(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["Wrote 12345 rows in 678 shard(s) to /a/b;", "12345 images in 93.9 s, 131.5 images/s"]
    assert _noted(LONG, monkeypatch, 48) == lines
    assert _noted(LONG, monkeypatch, 120) == [LONG]


def test_command_and_path_are_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    command = "Next: clipmlu compile demo --precision qint8_mixed_float32 --calib calibration -o DIR"
    assert _noted(command, monkeypatch, 40) == [command]
    path = "/a" * 30
    assert _noted(f"skipped: {path} is empty", monkeypatch, 40) == ["skipped:", path, "is empty"]


def test_note_without_a_terminal_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    note(LONG)
    assert capsys.readouterr().err == f"{LONG}\n"
