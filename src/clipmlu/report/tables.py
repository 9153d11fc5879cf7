"""Tables, name-value pairs and JSON on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from clipmlu.files.publish import encode_json

if TYPE_CHECKING:
    from rich.console import Console

    from clipmlu.backends.provenance import Provenance


def echo_json(value: object) -> None:
    """Print a report, record or list as JSON on stdout; see ``encode_json``."""
    click.echo(encode_json(value).decode().rstrip("\n"))


def console() -> Console:
    """Return a console for stdout: as wide as the terminal, or 120 columns without a terminal."""
    from rich.console import Console

    # Class names and paths are shown unchanged: no [markup], no :emoji:.
    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 120)


def describe_provenance(provenance: Provenance) -> str:
    """Return the model, target and precision in one line, with the mark of emulated figures."""
    from clipmlu.bundle.manifest import emulated_mark

    parts = [str(provenance.model), provenance.target]
    if provenance.precision is not None:
        parts.append(provenance.precision.value)
    return ", ".join(parts) + emulated_mark(provenance.emulated)


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print (name, value) pairs on stdout, one per line."""
    from rich.table import Table

    table = Table(show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")  # a path or digest that is wider than the terminal goes on in the next line
    for name, value in facts:
        table.add_row(name, value)
    console().print(table)


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None, boxed: bool
) -> None:
    """Print a table of texts on stdout.

    Args:
        headings: headings of the columns.
        rows: one text for each column.
        title: title above the table, or None.
        boxed: with lines around the cells.
    """
    from rich.box import HEAVY_HEAD
    from rich.table import Table

    table = Table(*headings, box=HEAVY_HEAD if boxed else None, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console().print(table)


def show_table(title: str, words: Sequence[str], figures: Sequence[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table, unless it is empty; columns of figures are right-aligned."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in words:
        table.add_column(head, overflow="fold")
    for head in figures:
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(*row)
    if table.row_count:
        console().print(table)
