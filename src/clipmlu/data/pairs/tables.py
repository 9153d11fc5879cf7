"""Pairs in CSV and TSV files: a line of column names, then one pair in each row; an image with several texts has several rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator

from clipmlu.data.images import ImageSource
from clipmlu.data.pairs.fields import PairFields, choose_fields
from clipmlu.data.pairs.pairs import PairRow
from clipmlu.data.textfile import split_lines
from clipmlu.errors import InputError

_SEPARATORS = ("\t", ",", ";")


def read_table(
    content: str,
    where: str,
    locate: Callable[[str], Callable[[], ImageSource]],
    *,
    tabs: bool,
    image: str | None,
    text: str | None,
) -> Iterator[PairRow]:
    """Yield the rows of a table.

    Cells may be quoted as in RFC 4180. If the text is in the last column, more cells are the rest of a text with separators in it
    that was not quoted, as in the annotations of Flickr8k.

    Args:
        content: the whole file.
        where: the file, for messages.
        locate: returns how to load the image of a path.
        tabs: cells are separated by tabs; False: by the first of tab, comma and semicolon that is in the first line, since the
            files of open_clip are called ``.csv`` and have tabs.
        image: see ``choose_fields``.
        text: see ``choose_fields``.

    Raises:
        InputError: a column is missing, or a row has another number of cells.
    """
    separator = "\t" if tabs else _separator(content)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    rows = _rows(reader, where)
    _line, names = next(rows, (1, []))
    if not names:
        raise InputError(
            f"{where} is empty. Expected column names in its first line, such as image,caption, and pairs below."
        )
    fields = choose_fields(names, where, image, text)
    for name in (fields.image, fields.text):
        if names.count(name) > 1:
            raise InputError(
                f"{where} has {names.count(name)} columns '{name}'; expected one, and a line for each text of an image."
            )
    for line, cells in rows:
        yield _row(
            _same_length(cells, names, fields, separator, f"Line {line} of {where}"), names, fields, locate, line, where
        )


def _rows(reader: Iterator[list[str]], where: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of the rows that are not blank."""
    while True:
        line = reader.line_num + 1  # type: ignore[attr-defined]
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f"Line {line} of {where} cannot be read: {error}. A quote that begins a cell must end it; inside it is doubled."
            ) from error
        if any(cell.strip() for cell in cells):
            yield line, cells


def _same_length(cells: list[str], names: list[str], fields: PairFields, separator: str, where: str) -> list[str]:
    """Return as many cells as there are columns."""
    if len(cells) > len(names) and fields.text == names[-1]:
        cells = [*cells[: len(names) - 1], separator.join(cells[len(names) - 1 :])]
    if len(cells) != len(names):
        raise InputError(
            f"{where} has {len(cells)} cells, but there are {len(names)} columns. Put cells that hold a separator in double quotes."
        )
    return cells


def _row(
    cells: list[str],
    names: list[str],
    fields: PairFields,
    locate: Callable[[str], Callable[[], ImageSource]],
    line: int,
    where: str,
) -> PairRow:
    values = dict(zip(names, cells, strict=True))
    path = values[fields.image].strip()
    if not path:
        raise InputError(f"Line {line} of {where} names no image: its column '{fields.image}' is empty.")
    split = None if fields.split is None else values[fields.split].strip()
    return PairRow(path, locate(path), (values[fields.text],), split)


def _separator(content: str) -> str:
    first = next(filter(None, split_lines(content)), "")
    return next((each for each in _SEPARATORS if each in first), ",")
