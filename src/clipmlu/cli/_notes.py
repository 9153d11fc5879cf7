"""Notes, warnings of libraries and progress on stderr."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipmlu.data.skipping import SKIPPED
from clipmlu.file_names import name_from_path, printable

if TYPE_CHECKING:
    from clipmlu.data.finding import SkippedFiles


def note(message: str) -> None:
    """Print a message on stderr; a closed stderr is ignored."""
    with contextlib.suppress(OSError):
        click.echo(printable(message), err=True)


def note_inputs(broken: int, skipped_files: SkippedFiles) -> int:
    """Print the number of unreadable inputs and of skipped files, and return the exit code of the command."""
    passed_over = skipped_files.note()
    if passed_over is not None:
        note(passed_over)
    if broken:
        note(f"{broken} image(s) could not be read.")
    return 1 if broken else 0


def note_skipped(reasons: Iterable[str]) -> int:
    """Print why each skipped image could not be read, and return the exit code of the command."""
    code = 0
    for reason in reasons:
        note(f"skipped: {reason}")
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
            note(f"{content} is kept in {name_from_path(folder)}; the same command goes on from there.")
        raise


class LibraryNotes(logging.Handler):
    """Print the library's log records from ``WARNING`` on to stderr inside the block, each text once in one line.

    Attributes:
        skipped: an input was skipped because it could not be read.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.skipped = False
        self._printed: set[str] = set()

    def __enter__(self) -> LibraryNotes:
        logging.getLogger("clipmlu").addHandler(self)
        return self

    def __exit__(self, *_error: object) -> None:
        logging.getLogger("clipmlu").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message of a record if it is new."""
        message = " ".join(record.getMessage().split())
        self.skipped |= getattr(record, SKIPPED, False)
        if message not in self._printed:
            self._printed.add(message)
            note(message)
