"""Sweep reports on the terminal, and as a Markdown page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from clipmlu.bundle.manifest import emulated_mark
from clipmlu.display import counted
from clipmlu.files.publish import write_file
from clipmlu.measure.statistics import fraction_text
from clipmlu.report.markdown import escaped, markdown_table
from clipmlu.report.tables import figures, print_sentences, print_table, words
from clipmlu.tune.sweep_report import SweepReport, SweepRow

COLUMNS = (
    *words("precision"),
    *figures("batch", "images/s", "slowest", "fastest", "latency ms", "top-1", "MiB image/all"),
    *words("front"),
)


def show_sweep(report: SweepReport) -> None:
    """Print a sweep on stdout."""
    print_table(COLUMNS, map(row_cells, report.rows))
    print_sentences(summary_lines(report))


def row_cells(row: SweepRow) -> tuple[str, ...]:
    """Return the text of a row, one cell for each of ``COLUMNS``; emulated rows are marked."""
    mark = emulated_mark(row.emulated)
    if row.failure is not None:
        return (f"{row.precision.value}{mark}", *[""] * 7, "gate failed" if row.gate_failed else "failed")
    return (
        f"{row.precision.value}{mark}",
        str(row.batch_size),
        f"{row.images_per_second:.1f}",
        f"{row.slowest_images_per_second:.1f}",
        f"{row.fastest_images_per_second:.1f}",
        f"{row.latency_ms:.3f}",
        "" if row.top1 is None else fraction_text(row.top1),
        f"{_mebibytes(row.image_tower_bytes)}/{_mebibytes(row.bundle_bytes)}",
        "*" if row.on_front else "",
    )


def summary_lines(report: SweepReport) -> Iterator[str]:
    """Yield the lines below the table: how the columns were measured, and why rows failed."""
    origin = report.provenance
    mark = emulated_mark(origin.emulated)
    measured = (
        f"top-1 on {counted(report.images, 'image')} of {report.dataset}, {report.split}"
        if report.images
        else "no accuracy"
    )
    yield f"{origin.model}, {origin.target}{mark}: {measured}; {report.machine.cpu}, {counted(report.machine.cpus, 'CPU')}."
    yield (
        f"images/s: image tower, two batches in flight, median, slowest and fastest of {counted(report.repetitions, 'repetition')} of "
        f"{report.duration_ms} ms, in turns with all other rows. latency: one batch alone. front: no other row is better "
        "in accuracy, images/s and size together."
    )
    if origin.emulated:
        yield "Emulated: this is the speed of an emulator on this CPU, and says nothing about any card."
    for row in report.rows:
        if row.failure is not None:
            yield f"{row.precision.value} failed: {row.failure}"


def write_markdown(report: SweepReport, path: Path) -> None:
    """Write the report as a Markdown page; replace an older one.

    Raises:
        OutputError: the file cannot be written.
    """
    write_file(path, render_markdown(report).encode(), overwrite=True)


def render_markdown(report: SweepReport) -> str:
    """Render the report as a Markdown page."""
    headings = [column.heading for column in COLUMNS]
    rows = markdown_table(headings, map(row_cells, report.rows))
    lines = [f"# Sweep of {escaped(str(report.provenance.model))}", "", *rows, ""]
    return "\n".join([*lines, *(f"{escaped(line)}\n" for line in summary_lines(report))])


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.2f}"
