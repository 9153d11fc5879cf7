"""Images in the rows of Arrow IPC files, such as those that Hugging Face's ``save_to_disk`` writes, mapped into memory by ``pyarrow``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipmlu.data.containers.columns import Columns, choose_columns, import_pyarrow, split_name
from clipmlu.data.containers.entry import Entry
from clipmlu.data.containers.rows import arrow_errors, cut_batches, row_entries
from clipmlu.data.containers.table import Groups, check_counts, damaged, file_size
from clipmlu.data.url.options import UrlOptions
from clipmlu.errors import first_line
from clipmlu.file_names import name_from_path
from clipmlu.files.read import open_regular

_FILE_MAGIC = b"ARROW1"
_CONTINUATION = b"\xff\xff\xff\xff"
_END = _CONTINUATION + bytes(4)


def read_arrow_counts(
    path: Path, image_column: str | None = None, id_column: str | None = None
) -> tuple[Columns, Groups]:
    """Return the columns to read, and the number of rows of each record batch; the rows themselves are not read.

    Args:
        path: the file: a stream or a file of Arrow IPC.
        image_column: see ``choose_columns``.
        id_column: see ``choose_columns``.

    Raises:
        InputError: the file cannot be read, is damaged before its first row, or has no such columns or no rows.
        OptionError: as for ``choose_columns``.
        MissingDependencyError: pyarrow is not installed.
    """
    size = file_size(path)
    columns = choose_columns(_read_schema(path), name_from_path(path), image_column, id_column)
    counts: list[int] = []
    error = None
    try:
        for batch in _batches(path, columns):
            batch.validate()
            counts.append(batch.num_rows)
    except arrow_errors() as failure:
        error = damaged(
            path, f"it is damaged after row {sum(counts):,}: {first_line(failure)}; the rows after it are lost"
        )
    check_counts(path, counts, size)
    if not sum(counts):
        raise error or damaged(path, "it holds no rows")
    return columns, Groups(tuple(counts), error)


def arrow_entries(
    path: Path, columns: Columns, first: int, count: int, urls: UrlOptions | None = None
) -> Iterator[Entry]:
    """Yield one entry for each of ``count`` rows, in order.

    The file is mapped into memory, of which the system keeps as much as fits. Rows that are damaged are entries that cannot be read, and
    so are the rows of the same record batch, or all rows after them.

    Args:
        path: the file.
        columns: the columns to read.
        first: number of the first row, from 0.
        count: number of rows.
        urls: limits for fetching URLs among the paths; None if that is not allowed.

    Raises:
        MissingDependencyError: pyarrow is not installed.
    """
    parts = cut_batches(_batches(path, columns), first, first + count, "the file")
    yield from row_entries(parts, path, columns, first, urls)


def _read_schema(path: Path) -> Any:
    """Return the ``pyarrow.Schema`` of a file.

    Raises:
        InputError: it is no Arrow file, or its beginning is damaged.
    """
    try:
        return _open_ipc(_map(path)).schema
    except arrow_errors() as error:
        raise damaged(path, f"it is no Arrow file, or its schema is damaged: {first_line(error)}") from error


def _batches(path: Path, columns: Columns) -> Iterator[Any]:
    """Yield the record batches with the chosen columns.

    Raises:
        One of ``arrow_errors``: the file is damaged, ends early, or cannot be opened.
    """
    source = _map(path)
    schema = _open_ipc(source).schema
    names = {split_name(schema, name)[0] for name in (columns.image, columns.id) if name is not None}
    reader = _open_ipc(source, sorted(schema.get_field_index(name) for name in names))
    if hasattr(reader, "get_batch"):
        yield from map(reader.get_batch, range(reader.num_record_batches))
        return
    while True:
        try:
            yield reader.read_next_batch()
        except StopIteration:
            break
    _check_end(source)


def _check_end(source: Any) -> None:
    """Check that a stream was read up to an end mark at the end of its file; one cut between two batches has none.

    Raises:
        ValueError: it was not.
    """
    at, size = source.tell(), source.size()
    source.seek(0)
    mark = _END if source.read(len(_CONTINUATION)) == _CONTINUATION else bytes(4)  # before Arrow 0.15
    source.seek(max(0, at - len(mark)))
    if source.read(len(mark)) != mark:
        raise ValueError("it ends without an end mark")
    if at != size:
        raise ValueError("more data follow its end mark")


def _map(path: Path) -> Any:
    """Map a file into memory.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    open_regular(path).close()  # a pipe would block
    return import_pyarrow().memory_map(os.fsencode(path))


def _open_ipc(source: Any, fields: list[int] | None = None) -> Any:
    """Return a reader of a file or of a stream, of all columns or of those at some positions."""
    ipc = import_pyarrow("pyarrow.ipc")
    options = ipc.IpcReadOptions(included_fields=fields, use_threads=False)
    source.seek(0)
    is_file = source.read(len(_FILE_MAGIC)) == _FILE_MAGIC
    source.seek(0)
    return (ipc.open_file if is_file else ipc.open_stream)(source, options=options)
