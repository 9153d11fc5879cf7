"""Documents as Markdown: the same texts and numbers as the page, without drawings and photos."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from clipmlu.display import EMULATED_MARK
from clipmlu.report.document.blocks import (
    Block,
    Commands,
    Document,
    Facts,
    Figure,
    Folded,
    Gallery,
    HeatMap,
    Mistakes,
    Paragraph,
    Section,
    Table,
)
from clipmlu.report.document.blocks import Name as UserName
from clipmlu.report.wrapping import shown

_SPECIAL = re.compile(r"([\\`*{}\[\]<>#|~!&$]|(?<![^\W_])_|_(?![^\W_]))")  # an underscore inside a word has no meaning
_MARK = " **(emulated)**"


def write_markdown(document: Document) -> str:
    """Return a document as Markdown, which ends with a line break."""
    return "\n".join(_lines(document)) + "\n"


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table."""
    yield _row(headings)
    yield f"|{'---|' * len(headings)}"
    yield from map(_row, rows)


def escaped(text: str) -> str:
    """Return a text as one line of Markdown that shows it unchanged; the mark of emulated results is bold."""
    line = shown(text)
    marked = not isinstance(text, UserName) and line.endswith(EMULATED_MARK)
    plain = _SPECIAL.sub(r"\\\1", line.removesuffix(EMULATED_MARK) if marked else line)
    return plain + (_MARK if marked else "")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(escaped, cells))} |"


def _lines(document: Document) -> Iterator[str]:
    yield f"# {escaped(document.title)}"
    if document.emulated:
        yield from (
            "",
            f"**Emulated.** Results marked{_MARK} come from the emulated vendor SDK on a CPU. They say nothing about",
        )
        yield "the speed of a card."
    if document.highlights:
        yield ""
    for each in document.highlights:
        note = f" {escaped(each.note)}" if each.note else ""
        yield f"- {escaped(each.label)}: **{escaped(each.value)}**{note}{_MARK if each.emulated else ''}"
    for section in document.sections:
        yield from _section(section)
    yield from ("", f"Written by {escaped(document.generator)}.")


def _section(section: Section) -> Iterator[str]:
    yield from ("", f"{'#' * section.level} {escaped(section.title)}{_MARK if section.emulated else ''}")
    for block in section.blocks:
        yield ""
        yield from _block(block)


def _block(block: Block) -> Iterator[str]:
    match block:
        case Paragraph():
            yield f"**{escaped(block.text)}**" if block.warning else escaped(block.text)
        case Facts():
            yield from markdown_table(("", ""), block.pairs)
        case Table():
            yield from _table(block)
        case HeatMap():
            rows = [(name, *(cell.text for cell in cells)) for name, cells in block.rows]
            yield from (f"{escaped(block.caption)}:", "")
            yield from markdown_table((block.corner, *block.columns), rows)
        case Figure():
            yield from (f"{escaped(block.title)}{_MARK if block.emulated else ''}. {escaped(block.description)}", "")
            yield from _table(block.table)
        case Gallery():
            yield from _separated(block.figures)
        case Mistakes():
            yield from (f"{escaped(block.caption)}:", "")
            pairs = [
                (UserName(name), UserName(predicted), f"{count:,}", UserName(", ".join(photo.id for photo in photos)))
                for name, predicted, count, photos in block.pairs
            ]
            yield from markdown_table(("class", "taken for", "images", "for example"), pairs)
        case Commands():
            yield from ("````sh", *map(shown, block.lines), "````")
        case Folded():
            yield from _separated(block.blocks)


def _separated(blocks: Sequence[Block]) -> Iterator[str]:
    for number, each in enumerate(blocks):
        if number:
            yield ""
        yield from _block(each)


def _table(block: Table) -> Iterator[str]:
    yield from (f"{escaped(block.caption)}:", "")
    yield from markdown_table([column.heading for column in block.columns], block.rows)
