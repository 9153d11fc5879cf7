"""The parts of a document: plain values without layout. ``html.document`` and ``markdown`` write them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import ClassVar

from clipmlu.display import EMULATED_MARK
from clipmlu.report.tables import Column


class Name(str):
    """A text of the user: the name of a class, a model or a file. It is never taken for a mark of ours."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """Sentences; a warning is something that the reader must not miss."""

    kind: ClassVar[str] = "paragraph"
    text: str
    warning: bool = False


@dataclasses.dataclass(frozen=True)
class Facts:
    """Names with values."""

    kind: ClassVar[str] = "facts"
    pairs: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: its columns.
        rows: one text for each column; an empty text is an empty cell.
        caption: what it shows.
        bars: the place of a column and, for each row, a fraction 0..1 that is drawn as a bar in it; None where there is none.
    """

    kind: ClassVar[str] = "table"
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str
    bars: tuple[int, tuple[float | None, ...]] | None = None


@dataclasses.dataclass(frozen=True)
class Shade:
    """A cell of a heat map: its text, colour, and the colour of the text; colours are ``#rrggbb``, or empty."""

    text: str
    colour: str = ""
    ink: str = ""


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """A table whose cells are coloured; the texts say the same as the colours."""

    kind: ClassVar[str] = "heatmap"
    caption: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Shade, ...]], ...]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A drawing, with the same numbers as a table.

    Attributes:
        title: its title.
        description: one sentence for those who do not see it.
        drawing: an SVG file whose colours are those of ``figures.style``.
        table: the numbers.
        emulated: some of it comes from the emulated vendor SDK.
    """

    kind: ClassVar[str] = "figure"
    title: str
    description: str
    drawing: str
    table: Table
    emulated: bool = False


@dataclasses.dataclass(frozen=True)
class Photo:
    """A thumbnail: its ``data:`` address, or empty if the image cannot be read here, and the image's id."""

    address: str
    id: str


@dataclasses.dataclass(frozen=True)
class Mistakes:
    """Pairs of classes that were confused, each with its number of images, and the first of these images."""

    kind: ClassVar[str] = "mistakes"
    caption: str
    pairs: tuple[tuple[str, str, int, tuple[Photo, ...]], ...]


@dataclasses.dataclass(frozen=True)
class Commands:
    """Command lines, to be copied."""

    kind: ClassVar[str] = "commands"
    lines: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Folded:
    """Blocks that a page shows when asked to; on paper they are shown."""

    kind: ClassVar[str] = "folded"
    title: str
    blocks: tuple[Block, ...]


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Figures beside each other, where there is room."""

    kind: ClassVar[str] = "gallery"
    figures: tuple[Figure, ...]


Block = Paragraph | Facts | Table | HeatMap | Figure | Mistakes | Commands | Folded | Gallery


@dataclasses.dataclass(frozen=True)
class Section:
    """A section with a heading.

    Attributes:
        title: the heading.
        blocks: its content.
        level: 2, or 3 for a part of the section before it.
        emulated: its results come from the emulated vendor SDK.
    """

    title: str
    blocks: tuple[Block, ...]
    level: int = 2
    emulated: bool = False


@dataclasses.dataclass(frozen=True)
class Highlight:
    """A number that stands above the document.

    Attributes:
        label: what it is.
        value: the number with its unit.
        note: a few words about it.
        emulated: it comes from the emulated vendor SDK.
    """

    label: str
    value: str
    note: str
    emulated: bool = False


@dataclasses.dataclass(frozen=True)
class Document:
    """A report.

    Attributes:
        title: its title.
        highlights: numbers that stand above it.
        sections: its sections.
        emulated: some of it comes from the emulated vendor SDK.
        generator: the program that writes it, with its version.
    """

    title: str
    highlights: tuple[Highlight, ...]
    sections: tuple[Section, ...]
    emulated: bool
    generator: str


def table(
    columns: Sequence[Column],
    rows: Iterable[Sequence[str]],
    caption: str,
    bars: tuple[int, Sequence[float | None]] | None = None,
) -> Table:
    """Return a table; see ``Table``."""
    place = None if bars is None else (bars[0], tuple(bars[1]))
    return Table(tuple(columns), tuple(map(tuple, rows)), caption, place)


def marked(section: Section) -> Section:
    """Return a section of which every table and every group of images says that it is emulated, if the section is."""
    if not section.emulated:
        return section
    return dataclasses.replace(section, blocks=tuple(map(_marked, section.blocks)))


def _marked(block: Block) -> Block:
    match block:
        case Table() | HeatMap() | Mistakes():
            caption = block.caption.removesuffix(EMULATED_MARK)
            return dataclasses.replace(block, caption=f"{caption}{EMULATED_MARK}")
        case Figure():
            return _marked_figure(block)
        case Gallery():
            return Gallery(tuple(map(_marked_figure, block.figures)))
        case Folded():
            return Folded(block.title, tuple(map(_marked, block.blocks)))
        case _:
            return block


def _marked_figure(figure: Figure) -> Figure:
    numbers = dataclasses.replace(figure.table, caption=f"{figure.table.caption}{EMULATED_MARK}")
    return dataclasses.replace(figure, emulated=True, table=numbers)


def sentence(text: str) -> str:
    """Return a text that begins with a capital letter."""
    return text[:1].upper() + text[1:]


@dataclasses.dataclass(frozen=True)
class MainFigure:
    """The most important number of a report.

    Attributes:
        label: what it is, in one word or two.
        value: the number with its unit; empty if there is none to show.
        note: what goes on after it, such as an interval.
    """

    label: str
    value: str
    note: str
