"""Tables, name-value pairs, sentences and JSON on stdout, laid out for the width of the terminal.

No number, unit or mark is cut: a table that does not fit becomes one block of ``name: value`` for each row, and texts
are broken at spaces. Without a terminal tables are laid out for 120 columns, and a fact or a sentence is one line.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

from clipmlu.files.publish import encode_json
from clipmlu.report.wrapping import NARROWEST, Whole, cells, longest_piece, pad, shown, wrap

if TYPE_CHECKING:
    from clipmlu.backends.provenance import Provenance

_WIDTH_WITHOUT_TERMINAL = 120
_GAP = 2
_INDENT = 2
_PAIR_GAP = 3
_SHORT = 20  # texts up to this width stand side by side in a block
_COMFORTABLE = 24  # texts of a table get at least this width before a table is chosen


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: its heading; may be empty.
        figures: the cells are numbers with their units: never broken, and right-aligned.
        optional: left out, with a line that says so, if the table fits without the optional columns only.
    """

    heading: str
    figures: bool = False
    optional: bool = False


def words(*headings: str) -> tuple[Column, ...]:
    """Return columns of texts."""
    return tuple(Column(heading) for heading in headings)


def figures(*headings: str) -> tuple[Column, ...]:
    """Return columns of numbers."""
    return tuple(Column(heading, figures=True) for heading in headings)


def optional(columns: Iterable[Column]) -> tuple[Column, ...]:
    """Return columns that a narrow terminal does not show."""
    return tuple(dataclasses.replace(column, optional=True) for column in columns)


def echo_json(value: object) -> None:
    """Print a report, record or list as JSON on stdout; see ``encode_json``."""
    click.echo(encode_json(value).decode().rstrip("\n"))


def describe_provenance(provenance: Provenance) -> str:
    """Return the model, target and precision in one line, with the mark of emulated figures."""
    from clipmlu.bundle.manifest import emulated_mark

    parts = [str(provenance.model), provenance.target]
    if provenance.precision is not None:
        parts.append(provenance.precision.value)
    return ", ".join(parts) + emulated_mark(provenance.emulated)


def terminal_width() -> int | None:
    """Return the columns of the terminal, ``NARROWEST`` at least, or None if stdout is no terminal."""
    if not sys.stdout.isatty():
        return None
    return max(shutil.get_terminal_size().columns, NARROWEST)


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print (name, value) pairs on stdout; a value with a word that does not fit beside its name begins below it."""
    pairs = [(shown(name), shown(value)) for name, value in facts]
    indent = max((cells(name) for name, _value in pairs), default=0) + _GAP
    for name, value in pairs:
        _print_named(pad(name, indent), value, indent)


def print_sentences(sentences: Iterable[str]) -> None:
    """Print sentences on stdout; the second and later lines of each are indented."""
    for sentence in map(shown, sentences):
        lines = _broken(sentence, _INDENT)
        for number, line in enumerate(lines):
            _print(" " * _INDENT * bool(number) + line)


def print_table(
    columns: Sequence[Column], rows: Iterable[Sequence[str]], *, title: str | None = None, keys: int = 1
) -> None:
    """Print a table on stdout, or a block for each row where the terminal is too narrow; print nothing without rows.

    Args:
        columns: the columns.
        rows: one text for each column; ``Whole`` ones, such as paths, are not broken at spaces.
        title: title above the table, with an empty line before it; or None.
        keys: number of the first columns that name a row; they are the heading of its block.
    """
    texts = [tuple(map(shown, row)) for row in rows]
    if not texts:
        return
    if title is not None:
        _print("")
        for line in _broken(shown(title)):
            _print(line, bold=line)
    width = terminal_width() or _WIDTH_WITHOUT_TERMINAL
    widths = _column_widths(columns, texts, width)
    if widths is None and (fewer := _without_optional(columns, texts, width)):
        _print_rows(*fewer)
        left_out = ", ".join(column.heading for column in columns if column.optional)
        print_sentences([f"not shown at this width: {left_out}; --json has all"])
    elif widths is None:
        _print_blocks(columns, texts, keys, width)
    else:
        _print_rows(columns, texts, widths)


def row_lines(path: str, path_width: int, texts: Sequence[str], width: int | None) -> list[str]:
    """Return the lines of a row whose table is printed while it grows: one, or a block where the terminal is too narrow.

    Args:
        path: first cell, or the heading of the block; never broken where it fits in a line.
        path_width: width of its column in cells, if the line then fits.
        texts: other cells, padded to the widths of their columns.
        width: width of the terminal in cells, or None if a line may have any length.
    """
    padded, line = (
        (" " * _GAP).join([first, *map(shown, texts)]) for first in (pad(shown(path), path_width), shown(path))
    )
    if width is None or cells(padded) <= width:
        return [padded]
    if cells(line) <= width:
        return [line]
    return [*wrap(Whole(shown(path)), width), *_side_by_side([shown(text) for text in texts], width)]


def _column_widths(columns: Sequence[Column], rows: Sequence[Sequence[str]], available: int) -> list[int] | None:
    """Return the widths of a table's columns, or None if some text would have to be broken inside a word or number."""
    smallest, wanted = [], []
    for number, column in enumerate(columns):
        texts = [row[number] for row in rows]
        full = max(map(cells, texts))
        least = full if column.figures else max(*map(longest_piece, texts), min(full, _COMFORTABLE))
        smallest.append(max(least, longest_piece(column.heading)))
        wanted.append(max(full, cells(column.heading)))
    spare = available - sum(smallest) - _GAP * (len(columns) - 1)
    if spare < 0:
        return None
    widths = smallest
    while spare and widths != wanted:
        neediest = max(range(len(columns)), key=lambda number: wanted[number] / max(widths[number], 1))
        widths[neediest] += 1
        spare -= 1
    return widths


def _without_optional(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], available: int
) -> tuple[list[Column], list[list[str]], list[int]] | None:
    """Return the other columns, their cells and widths; None if nothing is optional or they do not fit either."""
    places = [place for place, column in enumerate(columns) if not column.optional]
    kept = [columns[place] for place in places]
    cut = [[row[place] for place in places] for row in rows]
    widths = _column_widths(kept, cut, available)
    return None if widths is None or len(kept) == len(columns) else (kept, cut, widths)


def _print_rows(columns: Sequence[Column], rows: Sequence[Sequence[str]], widths: Sequence[int]) -> None:
    for line in _table_lines(columns, [column.heading for column in columns], widths, bottom=True):
        _print(line, bold=line)
    rule = "─" if (sys.stdout.encoding or "").lower().startswith("utf") else "-"
    _print((" " * _GAP).join(rule * width for width in widths))
    for row in rows:
        for line in _table_lines(columns, row, widths):
            _print(line)


def _table_lines(
    columns: Sequence[Column], texts: Sequence[str], widths: Sequence[int], *, bottom: bool = False
) -> Iterator[str]:
    """Yield the lines of a row; with ``bottom``, short cells stand in its last line."""
    wrapped = [wrap(text, width) for text, width in zip(texts, widths, strict=True)]
    height = max(map(len, wrapped))
    for line in range(height):
        parts = []
        for column, lines, width in zip(columns, wrapped, widths, strict=True):
            place = line - (height - len(lines) if bottom else 0)
            parts.append(pad(lines[place] if 0 <= place < len(lines) else "", width, right=column.figures))
        yield (" " * _GAP).join(parts)


def _print_blocks(columns: Sequence[Column], rows: Sequence[Sequence[str]], keys: int, width: int) -> None:
    """Print for each row its keys as a heading, and below it ``name: value`` of its other cells that are not empty.

    Numbers and short texts stand side by side, at the same place in all rows; each longer text begins a line.
    """
    widest = [max(cells(row[place]) for row in rows) for place in range(len(columns))]
    for row in rows:
        for line in _broken((" " * _GAP).join(filter(None, row[:keys]))):
            _print(line, bold=line)
        pairs: list[str] = []
        for column, text, full in list(zip(columns, row, widest, strict=True))[keys:]:
            pair = f"{column.heading}: {pad(text, full, right=column.figures)}"
            if text and (column.figures or full <= _SHORT) and cells(pair) <= width - _INDENT:
                pairs.append(pair)
            elif text:
                _print_side_by_side(pairs, width)
                pairs = []
                _print_named(f"{' ' * _INDENT}{column.heading}: ", text, 2 * _INDENT)
        _print_side_by_side(pairs, width)


def _print_side_by_side(texts: Iterable[str], width: int) -> None:
    for line in _side_by_side(texts, width):
        _print(line)


def _side_by_side(texts: Iterable[str], width: int) -> Iterator[str]:
    """Yield indented lines of texts, as many in each as fit; a text that is wider than a line is broken."""
    line = ""
    for text in texts:
        longer = line + " " * _PAIR_GAP * bool(line) + text
        if line and _INDENT + cells(longer.rstrip(" ")) > width:
            yield (" " * _INDENT + line).rstrip(" ")
            longer = text
        line = longer
        if _INDENT + cells(line.rstrip(" ")) > width:
            yield from (" " * _INDENT + part for part in wrap(line, width - _INDENT))
            line = ""
    if line:
        yield (" " * _INDENT + line).rstrip(" ")


def _print_named(name: str, value: str, indent: int) -> None:
    """Print a bold name and a value, whose further lines are indented; the value begins below a name that leaves no room."""
    width = terminal_width()
    beside = width is None or max(longest_piece(value), min(cells(value), NARROWEST)) <= width - max(
        indent, cells(name)
    )
    if not beside:
        for line in _broken(name.rstrip()) if name.strip() else ():
            _print(line, bold=line)
        indent = _INDENT if longest_piece(value) + _INDENT <= (width or 0) else 0
    for number, line in enumerate(_broken(value, max(indent, cells(name)) if beside else indent)):
        if beside and number == 0:
            _print(name + line, bold=name)
        else:
            _print(" " * indent + line)


def _broken(text: str, indent: int = 0) -> list[str]:
    """Break a text into lines that fit the terminal after an indentation; without a terminal it is one line."""
    width = terminal_width()
    return wrap(text, None if width is None else width - indent)


def _print(line: str, *, bold: str = "") -> None:
    """Print a line whose first part is bold on a terminal."""
    from rich.console import Console
    from rich.text import Text

    text = Text(line.rstrip(" "))
    text.stylize("bold", 0, len(bold))
    # Class names and paths are shown unchanged: no [markup], no :emoji:.
    Console(highlight=False, markup=False, emoji=False).print(text, soft_wrap=True)
