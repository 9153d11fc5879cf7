"""A terminal of a given width in place of stdout, and what can be read on it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import unicodedata
from collections.abc import Callable
from unittest import mock

WIDTHS = (40, 60, 80, 120)


class Screen(io.StringIO):
    """Text that was written to a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def raw_on_terminal(columns: int, show: Callable[[], object], **environment: str) -> str:
    """Return what a function writes to a terminal."""
    screen = Screen()
    variables = {"COLUMNS": str(columns), "TERM": "xterm-256color", **environment}
    with mock.patch.dict(os.environ, variables), contextlib.redirect_stdout(screen):
        show()
    return screen.getvalue()


def on_terminal(columns: int, show: Callable[[], object]) -> list[str]:
    """Return the lines that a function prints, without the marks of bold type; no line is wider than the terminal."""
    lines = re.sub(r"\x1b\[[\d;]*m", "", raw_on_terminal(columns, show)).split("\n")
    assert lines.pop() == ""
    for line in lines:
        assert width_of(line) <= columns, line
    return lines


def width_of(text: str) -> int:
    """Cells of a text by Unicode's own property of each character; sequences of emoji are not supported."""
    return sum(
        0
        if unicodedata.combining(each)
        or "\u1160" <= each <= "\u11ff"
        or "\ud7b0" <= each <= "\ud7ff"  # within a Hangul syllable
        else 2
        if unicodedata.east_asian_width(each) in "WF"
        else 1
        for each in text
    )


def missing(texts: list[str], lines: list[str]) -> list[str]:
    """Those texts that no line holds unbroken: beside them stands neither a letter, a digit nor a point."""
    return [
        text
        for text in texts
        if not any(re.search(rf"(?<![\w.]){re.escape(text)}(?![\w%]|\.\d)", line) for line in lines)
    ]
