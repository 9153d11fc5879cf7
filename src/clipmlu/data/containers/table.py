"""What Parquet and Arrow files have in common: rows in groups, and checks of the numbers that they declare."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from clipmlu.data.image_file import dangling_reason
from clipmlu.errors import InputError, reason_of
from clipmlu.file_names import name_from_path
from clipmlu.files.read import open_regular

_ROWS_PER_BYTE = 8


@dataclasses.dataclass(frozen=True)
class Groups:
    """The rows of a file in the groups in which they can be read.

    Attributes:
        counts: number of rows of each group.
        error: what follows the last group and cannot be read, or None; its number of rows is not known.
    """

    counts: tuple[int, ...]
    error: InputError | None = None


def file_size(path: Path) -> int:
    """Return the size of a regular file in bytes.

    Raises:
        InputError: it cannot be opened.
    """
    try:
        with open_regular(path) as stream:
            return os.fstat(stream.fileno()).st_size
    except FileNotFoundError:
        raise damaged(path, dangling_reason(path)) from None
    except OSError as error:
        raise damaged(path, reason_of(error)) from error


def check_counts(path: Path, counts: Sequence[int], size: int) -> None:
    """Check the numbers of rows that a file declares: a damaged number would make a job of countless errors.

    Raises:
        InputError: one is negative, or together they are more than the file has bits.
    """
    if any(count < 0 for count in counts) or sum(counts) > size * _ROWS_PER_BYTE:
        raise damaged(path, f"it declares {max(counts, key=abs):,} rows in {size:,} bytes; its metadata are damaged")


def damaged(path: Path, reason: str) -> InputError:
    """Return the error of a file that cannot be read."""
    return InputError(f"Cannot read '{name_from_path(path)}': {reason}.")
