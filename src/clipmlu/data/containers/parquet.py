"""Images in the rows of Parquet files, read in row groups by ``pyarrow``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from clipmlu.data.containers.columns import Columns, choose_columns, import_pyarrow
from clipmlu.data.containers.entry import Entry
from clipmlu.data.containers.rows import Rows, arrow_errors, cut_batches, row_entries
from clipmlu.data.containers.table import Groups, check_counts, damaged, file_size
from clipmlu.data.url.options import UrlOptions
from clipmlu.errors import InputError, first_line
from clipmlu.file_names import name_from_path

_BATCH_BYTES = 8 << 20
_MOST_BATCH_ROWS = 1024
_BUFFER_BYTES = 1 << 16


def read_parquet_footer(
    path: Path, image_column: str | None = None, id_column: str | None = None
) -> tuple[Columns, Groups]:
    """Return the columns to read, and the number of rows of each row group; only the footer is read.

    Args:
        path: the file.
        image_column: see ``choose_columns``.
        id_column: see ``choose_columns``.

    Raises:
        InputError: the file cannot be read, is damaged, or has no such columns or no rows.
        OptionError: as for ``choose_columns``.
        MissingDependencyError: pyarrow is not installed.
    """
    size = file_size(path)
    file = _open(path)
    columns = choose_columns(file.schema_arrow, name_from_path(path), image_column, id_column)
    counts = tuple(file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups))
    check_counts(path, counts, size)
    if not sum(counts):
        raise damaged(path, "it holds no rows")
    if file.metadata.num_rows != sum(counts):
        raise damaged(path, f"its footer declares {file.metadata.num_rows:,} rows, and its row groups {sum(counts):,}")
    return columns, Groups(counts)


def parquet_entries(
    path: Path, columns: Columns, first: int, count: int, urls: UrlOptions | None = None
) -> Iterator[Entry]:
    """Yield one entry for each of ``count`` rows, in order; only the row groups that hold them are read.

    Memory holds a page of each column and some 8 MB of rows. If the first row lies inside a row group, the group is read from its
    beginning. Rows that are damaged are entries that cannot be read, and so are the rows
    after them in the same row group.

    Args:
        path: the file.
        columns: the columns to read.
        first: number of the first row, from 0.
        count: number of rows.
        urls: limits for fetching URLs among the paths; None if that is not allowed.

    Raises:
        MissingDependencyError: pyarrow is not installed.
    """
    yield from row_entries(_parts(path, columns, first, first + count), path, columns, first, urls)


def _open(path: Path) -> Any:
    """Open a file and read its footer.

    Raises:
        InputError: it cannot be read.
    """
    pyarrow, parquet = import_pyarrow(), import_pyarrow("pyarrow.parquet")
    try:
        file = parquet.ParquetFile(
            pyarrow.OSFile(os.fsencode(path)),  # a path as text would have to be UTF-8, and might be taken for a URL
            pre_buffer=False,
            buffer_size=_BUFFER_BYTES,
            page_checksum_verification=True,
        )
        _ = file.schema_arrow  # converted now
        return file
    except arrow_errors() as error:
        raise damaged(path, f"it is no Parquet file, or its footer is damaged: {first_line(error)}") from error


def _parts(path: Path, columns: Columns, first: int, end: int) -> Iterator[Rows]:
    """Yield the rows from ``first`` to ``end``: exactly as many as that."""
    try:
        file_size(path)
        file = _open(path)
    except InputError as error:
        yield Rows(end - first, reason=str(error))
        return
    counts = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    at = first
    for group, (start, stop) in enumerate(pairwise(accumulate(counts, initial=0))):
        low, high = max(start, at), min(stop, end)
        if low < high:
            yield from cut_batches(_batches(file, group, columns), low - start, high - start, f"row group {group}")
            at = high
    if at < end:
        yield Rows(end - at, reason=f"the file has only {sum(counts):,} rows now")


def _batches(file: Any, group: int, columns: Columns) -> Iterator[Any]:
    names = [name for name in (columns.image, columns.id) if name is not None]
    row_group = file.metadata.row_group(group)  # never row_group.column(): with damaged metadata it ends the process
    size = _BATCH_BYTES * max(1, row_group.num_rows) // max(1, row_group.total_byte_size)
    batch_rows = min(_MOST_BATCH_ROWS, max(1, size))
    yield from file.iter_batches(batch_size=batch_rows, row_groups=[group], columns=names, use_threads=False)
