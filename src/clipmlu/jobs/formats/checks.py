"""Checks that all readers of shard files share."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clipmlu.errors import InputError, reason_of
from clipmlu.jobs.rows import ShardRows


@contextlib.contextmanager
def read_errors(path: Path, kind: type[Exception] = ValueError) -> Iterator[None]:
    """Convert errors of a damaged or foreign file to an ``InputError`` that names it.

    Args:
        path: the file.
        kind: exceptions of a library that reads it, besides OSError, ValueError and MemoryError.
    """
    try:
        with np.errstate(all="ignore"):  # a damaged number becomes infinite, which ``check_values`` refuses
            yield
    except (kind, OSError, ValueError, MemoryError) as error:
        raise InputError(f"Cannot read '{path}': {reason_of(error)}.") from error


def failed_rows(errors: list[str | None]) -> npt.NDArray[np.bool_]:
    """Return which rows belong to images that could not be read."""
    return np.array([error is not None for error in errors], bool)


def check_values(rows: ShardRows) -> ShardRows:
    """Return the rows, whose embeddings are finite and whose scores are 0..1; those of failed images are NaN.

    Raises:
        ValueError: they are not.
    """
    failed = failed_rows(rows.errors)
    for values, name, largest in ((rows.embeddings, "embeddings", math.inf), (rows.scores, "scores", 1)):
        if values is None:
            continue
        if not (np.isnan(values[failed]).all() and _are_within(values[~failed], largest)):
            raise ValueError(f"its {name} are not numbers of the expected range for the images without an error only")
    return rows


def _are_within(values: npt.NDArray[np.floating], largest: float) -> bool:
    return bool((np.isfinite(values) & (np.abs(values) <= largest)).all())
