"""An error in a notebook in a few lines: its type, its message, and the line of the user's program that led to it."""

from __future__ import annotations

import linecache
import os
import sysconfig
import traceback
from types import TracebackType

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_LIBRARIES = tuple(
    os.path.abspath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


def short_traceback(error: BaseException) -> list[str]:
    """Return the lines that a notebook shows for an error, instead of every frame of its traceback."""
    lines = [f"{type(error).__name__}: {error}"]
    place = users_line(error.__traceback__)
    if place is not None:
        name, number, code = place
        lines += ["", f"{name}, line {number}:", *([f"    {code}"] if code else [])]
    return [*lines, *(f"note: {note}" for note in getattr(error, "__notes__", ()))]


def users_line(trace: TracebackType | None) -> tuple[str, int, str] | None:
    """Return file, line number and text of the last line outside of libraries before the call into clipmlu, or None."""
    found: tuple[str, int] | None = None
    for frame, number in traceback.walk_tb(trace):
        name = frame.f_code.co_filename
        if name.startswith(_PACKAGE):
            break
        if not name.startswith(_LIBRARIES):
            found = name, number
    if found is None:
        return None
    name, number = found
    return _shown_name(name), number, linecache.getline(name, number).strip()


def _shown_name(name: str) -> str:
    """Return the name of a file; a cell of a notebook has a temporary name that says nothing."""
    is_cell = name.startswith("<ipython-input-") or os.path.basename(os.path.dirname(name)).startswith("ipykernel_")
    return "this cell" if is_cell else name
