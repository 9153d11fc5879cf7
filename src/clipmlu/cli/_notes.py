"""Notes and warnings on stderr, and how many of them are shown: ``--quiet`` and ``--verbose``."""

from __future__ import annotations

import contextlib
import enum
import logging
import re
import shlex
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipmlu.cli._status import STATUS, terminal_columns
from clipmlu.data.skipping import SKIPPED
from clipmlu.errors import OptionError
from clipmlu.file_names import name_from_path, printable
from clipmlu.report.wrapping import NARROWEST, wrap

if TYPE_CHECKING:
    from clipmlu.data.finding import SkippedFiles

_COMMAND = re.compile(r"\b(clipmlu|pip|python[\d.]*) [-\w]")


class Verbosity(enum.IntEnum):
    """How much a command prints on stderr; results on stdout do not depend on it, except that ``info`` shows more."""

    QUIET = 0
    NORMAL = 1
    VERBOSE = 2


class _Chosen:
    """The verbosity of the running command; callbacks of other threads see it, too."""

    verbosity = Verbosity.NORMAL


def set_verbosity(verbosity: Verbosity) -> None:
    """Set the verbosity of the running command.

    Raises:
        OptionError: the other one of ``--quiet`` and ``--verbose`` was set before.
    """
    if {_Chosen.verbosity, verbosity} == {Verbosity.QUIET, Verbosity.VERBOSE}:
        raise OptionError("--quiet and --verbose exclude each other; leave out one of them")
    _Chosen.verbosity = verbosity


def is_quiet() -> bool:
    """Whether only results, warnings and errors are printed: no facts, no progress."""
    return _Chosen.verbosity is Verbosity.QUIET


def is_verbose() -> bool:
    """Whether all facts are printed."""
    return _Chosen.verbosity is Verbosity.VERBOSE


def note(message: str) -> None:
    """Print a fact on stderr, such as what was written where; ``--quiet`` hides it."""
    if not is_quiet():
        warn(message)


def warn(message: str) -> None:
    """Print a warning or an error on stderr: an input that was left out, or a result that is not as asked for.

    A closed stderr is ignored.
    """
    lines = printable(message).split("\n")
    STATUS.print("\n".join(part for line in lines for part in _fitted(line)))


def _fitted(line: str) -> list[str]:
    """Break a line at spaces if stderr is a terminal; a line with a command, or a long path, is left whole for copying."""
    if not sys.stderr.isatty() or _COMMAND.search(line):
        return [line]
    return wrap(line, max(terminal_columns(), NARROWEST), fold=False)


def note_next(*commands: Sequence[str | Path]) -> None:
    """Print commands that people may run next, each given by its words and quoted for a shell."""
    lines = [shlex.join(["clipmlu", *(name_from_path(word) for word in command)]) for command in commands]
    note("Next: " + "\n      ".join(lines))


def note_inputs(broken: int, skipped_files: SkippedFiles) -> int:
    """Print the number of unreadable inputs and of skipped files, and return the exit code of the command."""
    passed_over = skipped_files.note()
    if passed_over is not None:
        warn(passed_over)
    if broken:
        warn(f"{broken} image(s) could not be read.")
    return 1 if broken else 0


def note_skipped(reasons: Iterable[str]) -> int:
    """Print why each skipped image could not be read, and return the exit code of the command."""
    code = 0
    for reason in reasons:
        warn(f"skipped: {reason}")
        code = 1
    return code


@contextlib.contextmanager
def note_kept(folder: Path, content: str, *, named_by: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """If the block fails and the folder exists, print that it holds the content, from which the same command resumes.

    Args:
        folder: the folder.
        content: its content, as the beginning of a sentence.
        named_by: errors whose message names the folder; nothing is printed for them.
    """
    try:
        yield
    except named_by:
        raise
    except BaseException:
        if folder.is_dir():
            warn(f"{content} is kept in {name_from_path(folder)}; the same command goes on from there.")
        raise


class LibraryNotes(logging.Handler):
    """Print the library's log records from ``WARNING`` on to stderr inside the block, each warning once in one line.

    Errors are printed each time, with the traceback of their exception.

    The block begins and ends with the normal verbosity.

    Attributes:
        skipped: an input was skipped because it could not be read.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.skipped = False
        self._printed: set[str] = set()

    def __enter__(self) -> LibraryNotes:
        _Chosen.verbosity = Verbosity.NORMAL
        logging.getLogger("clipmlu").addHandler(self)
        return self

    def __exit__(self, *_error: object) -> None:
        _Chosen.verbosity = Verbosity.NORMAL
        logging.getLogger("clipmlu").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message of a record if it is new."""
        message = " ".join(record.getMessage().split())
        self.skipped |= getattr(record, SKIPPED, False)
        if record.levelno >= logging.ERROR:  # of a service, each time
            warn(message + _traceback(record))
        elif message not in self._printed:
            self._printed.add(message)
            warn(message)


def _traceback(record: logging.LogRecord) -> str:
    """Return the traceback of a record's exception as further lines; empty if it has none."""
    if record.exc_info is None or record.exc_info[0] is None:
        return ""
    return "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
