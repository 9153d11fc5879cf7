"""The images of consecutive rows of a table."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from clipmlu.data.containers.columns import Columns, image_fields, image_kind, import_pyarrow, split_name
from clipmlu.data.containers.entry import Entry, unreadable
from clipmlu.data.images import ImageSource
from clipmlu.data.url.found import FoundUrl
from clipmlu.data.url.location import is_url
from clipmlu.data.url.options import UrlOptions
from clipmlu.errors import InputError, first_line
from clipmlu.file_names import name_from_path

_OTHER_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class Rows(NamedTuple):
    """Consecutive rows of a table, or that they cannot be read.

    Attributes:
        length: number of rows, 1 or more.
        batch: the ``pyarrow.RecordBatch``, which has at least the chosen columns; None if the rows cannot be read.
        reason: why they cannot be read.
    """

    length: int
    batch: Any = None
    reason: str = ""


def cut_batches(batches: Iterable[Any], low: int, high: int, what: str) -> Iterator[Rows]:
    """Yield the rows from ``low`` to ``high`` of consecutive record batches: exactly as many, as far as needed as rows with an error.

    Args:
        batches: the record batches, read lazily; an exception is the end of what can be read.
        low: number of the first row, counted from the first batch.
        high: number of the row after the last one.
        what: what the batches are a part of, for messages, such as ``"row group 3"``.
    """
    at = 0
    reason = f"{what} has fewer rows than it declares"
    try:
        for batch in batches:
            start, stop = max(at, low), min(at + batch.num_rows, high)
            if start < stop:
                yield Rows(stop - start, batch.slice(start - at, stop - start))
            at, low = at + batch.num_rows, max(low, stop)
            if low >= high:
                return
    except arrow_errors() as error:
        reason = f"{what} is damaged: {first_line(error)}"
    yield Rows(high - low, reason=reason)


def row_entries(
    parts: Iterable[Rows], path: Path, columns: Columns, first: int, urls: UrlOptions | None = None
) -> Iterator[Entry]:
    """Yield one entry for each row, in order.

    An entry is called by the id in its row, or ``<file>#<row>``, counted from 0. A relative path in a row is looked up in the folder of
    the file, and then in the current folder.

    Args:
        parts: the rows.
        path: the file.
        columns: the columns to read.
        first: number of the first row.
        urls: limits for fetching URLs among the paths; None if that is not allowed.
    """
    where = name_from_path(path)
    for part in parts:
        rows = range(first, first + part.length)
        first = rows.stop
        reason = part.reason
        if part.batch is not None:
            try:
                values = _Values(part.batch, columns, path, urls)
            except arrow_errors() as error:
                reason = f"it is damaged: {first_line(error)}"
            else:
                yield from (values.entry(index, f"{where}#{row}") for index, row in enumerate(rows))
                continue
        yield from (unreadable(f"{where}#{row}", f"{reason}.") for row in rows)


def arrow_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that pyarrow raises for damaged data; some are of Python's own types."""
    return import_pyarrow().ArrowException, OSError, ValueError, MemoryError


class _Values:
    """The ids and images in a batch of rows."""

    def __init__(self, batch: Any, columns: Columns, path: Path, urls: UrlOptions | None) -> None:
        """Check the columns, so that damaged offsets are an error and never a read outside the buffers.

        Raises:
            One of ``arrow_errors``: the columns are damaged.
        """
        self._folder = path.parent
        self._urls = urls
        self._ids = None if columns.id is None else _column(batch, columns.id)
        image = _column(batch, columns.image)
        self._bytes, self._paths = None, None
        match image_kind(image.type):
            case "path":
                self._paths = _checked(image)
            case "bytes":
                self._bytes = _checked(image)
            case _:
                fields = image_fields(image.type)
                self._bytes = _checked(_field(image, "bytes")) if "bytes" in fields else None
                self._paths = _checked(_field(image, "path")) if "path" in fields else None
        self._ids = None if self._ids is None else _checked(self._ids)

    def entry(self, index: int, default_name: str) -> Entry:
        name = default_name
        if self._ids is not None and (value := self._ids[index]).is_valid:
            name = name_from_path(_text(value))
        content = None if self._bytes is None else self._bytes[index]
        if content is not None and content.is_valid:
            return Entry(name, content.as_py)
        path = None if self._paths is None else self._paths[index]
        if path is None or not path.is_valid:
            return unreadable(name, "its row holds no image (null).")
        text = _text(path)
        if is_url(text):
            return Entry(name, FoundUrl(text, self._urls).source)
        return Entry(name, lambda: self._locate(name, text))

    def _locate(self, name: str, text: str) -> ImageSource:
        if _OTHER_URL.match(text):
            raise InputError(
                f"Cannot read '{name}': its row holds '{name_from_path(text)}', which is neither a path nor an http or https URL."
            )
        if not text or "\0" in text:
            raise InputError(f"Cannot read '{name}': its row holds the path '{name_from_path(text)}'.")
        beside = self._folder / text
        if os.path.lexists(beside):
            return beside
        if os.path.lexists(text):
            return Path(text)
        places = f"'{name_from_path(beside)}'" + ("" if beside == Path(text) else f" or '{name_from_path(text)}'")
        raise InputError(f"Cannot read '{name}': there is no file {places}.")


def _column(batch: Any, name: str) -> Any:
    """Return the values of a column, or of a field ``column.field``, without dictionaries and extension types."""
    top, fields = split_name(batch.schema, name)
    column = _plain(batch.column(top))
    for field in fields:
        column = _field(column, field)
    return column


def _field(column: Any, name: str) -> Any:
    return _plain(import_pyarrow("pyarrow.compute").struct_field(column, name))


def _plain(column: Any) -> Any:
    pyarrow = import_pyarrow()
    column.validate()
    while True:
        if isinstance(column.type, pyarrow.BaseExtensionType):
            column = column.storage
        elif pyarrow.types.is_dictionary(column.type):
            column.validate(full=True)
            column = column.dictionary_decode()
        else:
            return column


def _checked(column: Any) -> Any:
    """Return a column whose offsets were checked; text as bytes, since paths need not be UTF-8."""
    pyarrow = import_pyarrow()
    types = pyarrow.types
    if types.is_string(column.type) or types.is_string_view(column.type):
        column = column.cast(pyarrow.binary() if types.is_string(column.type) else pyarrow.binary_view())
    elif types.is_large_string(column.type):
        column = column.cast(pyarrow.large_binary())
    column.validate(full=True)
    return column


def _text(value: Any) -> str:
    content = value.as_py()
    return os.fsdecode(content) if isinstance(content, bytes) else str(content)
