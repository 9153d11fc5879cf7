"""Sweep reports on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from clipmlu.report.tables import console

if TYPE_CHECKING:
    from clipmlu.tune.sweep_report import SweepReport


def show_sweep(report: SweepReport) -> None:
    """Print a sweep on stdout."""
    from rich.table import Table

    from clipmlu.tune.sweep_report import HEADINGS, row_cells, summary_lines

    table = Table(*HEADINGS)
    for column in table.columns:
        column.no_wrap = True
    for row in report.rows:
        table.add_row(*row_cells(row))
    console().print(table)
    for line in summary_lines(report):
        click.echo(line)
