"""The last line of the terminal on stderr, which is redrawn in place; everything else is printed above it.

It needs no escape codes, hides no cursor and changes no setting: a process that is killed leaves the terminal as it was.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Sequence
from typing import NamedTuple

import click

_COLUMNS = 80  # of a terminal that does not tell
_BAR = (8, 30)  # smallest and largest number of columns


class _Look(NamedTuple):
    """Characters of a status.

    Attributes:
        spinner: frames of the spinner.
        done, rest: the two parts of a bar.
        within: stands between a step and the step inside it.
        cut: stands where a label was cut.
    """

    spinner: str
    done: str
    rest: str
    within: str
    cut: str


_UNICODE = _Look("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "━", "─", " › ", "…")
_ASCII = _Look("|/-\\", "#", "-", " > ", "~")


class StatusLine:
    """A line on stderr that is replaced by the next one; any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._cells = 0

    def draw(self, text: str) -> None:
        """Show a text, which must be narrower than the terminal, instead of the one before."""
        from rich.cells import cell_len

        with self._lock:
            cells = cell_len(text)
            _write("\r" + text + " " * (self._cells - cells))
            self._cells = cells

    def erase(self) -> None:
        """Remove the line; the cursor stands at the beginning of an empty one."""
        with self._lock:
            if self._cells:
                _write("\r" + " " * min(self._cells, terminal_columns() - 1) + "\r")
                self._cells = 0

    def print(self, line: str) -> None:
        """Print a line, above the status if there is one."""
        with self._lock:
            self.erase()
            with contextlib.suppress(OSError):
                click.echo(line, err=True)


STATUS = StatusLine()
"""The one of this process."""


def can_redraw() -> bool:
    """Whether stderr is a terminal on which a line can be redrawn."""
    with contextlib.suppress(ValueError):  # closed
        return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    return False


def terminal_columns() -> int:
    """Return the present width of the terminal; ``COLUMNS`` overrides it."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return int(given)
    with contextlib.suppress(OSError, ValueError):
        return os.get_terminal_size(sys.stderr.fileno()).columns or _COLUMNS
    return _COLUMNS


def _write(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # the terminal is gone, or stderr is closed
        sys.stderr.write(text)
        sys.stderr.flush()


def compose(labels: Sequence[str], parts: Sequence[str], fraction: float | None, columns: int, frame: int) -> str:
    """Return a status: spinner, labels, bar and parts, as many as fit; what does not fit is left out, not cut.

    Args:
        labels: what runs, the outermost step first.
        parts: numbers and times of the innermost step, the most important first.
        fraction: finished part of it, from 0 to 1; None for no bar.
        columns: width; only a label that is wider is cut.
        frame: number of the spinner's frame.
    """
    from rich.cells import cell_len, set_cell_size

    look = _UNICODE if _can_encode("".join(_UNICODE)) else _ASCII
    spinner = look.spinner[frame % len(look.spinner)]
    amount, others = "".join(f"  {part}" for part in parts[:1]), [f", {part}" for part in parts[1:]]
    left = columns - cell_len(f"{spinner} {amount}")
    head = _fit_labels(labels, left, look)
    left -= cell_len(head)
    bar = "" if fraction is None else _draw_bar(fraction, left - cell_len("".join(others)) - 2, left - 2, look)
    left -= cell_len(bar)
    while others and cell_len("".join(others)) > left:
        others.pop()
    text = f"{spinner} {head}{bar}{amount}{''.join(others)}"
    return text if cell_len(text) <= columns else set_cell_size(text, columns)  # narrower than any number


def _fit_labels(labels: Sequence[str], columns: int, look: _Look) -> str:
    """Return the labels that fit, at least the innermost."""
    from rich.cells import cell_len, set_cell_size

    fitting = next(
        (text for first in range(len(labels)) if cell_len(text := look.within.join(labels[first:])) <= columns), None
    )
    return set_cell_size(labels[-1], max(0, columns - 1)) + look.cut if fitting is None else fitting


def _draw_bar(fraction: float, wanted: int, available: int, look: _Look) -> str:
    """Return a bar of at most ``wanted`` columns, but of the smallest size if that is available; empty otherwise."""
    smallest, largest = _BAR
    if available < smallest:
        return ""
    size = max(smallest, min(largest, wanted))
    filled = int(fraction * size)
    return f"  {look.done * filled}{look.rest * (size - filled)}"


def _can_encode(text: str) -> bool:
    """Whether stderr can show the characters of a text."""
    try:
        text.encode(getattr(sys.stderr, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
