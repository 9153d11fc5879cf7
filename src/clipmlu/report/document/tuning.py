"""Sweeps and searches in a document: accuracy against speed, and the trials until the chosen one."""

from __future__ import annotations

from collections.abc import Iterator

from clipmlu.bundle.manifest import emulated_mark
from clipmlu.display import counted
from clipmlu.measure.statistics import fraction_text
from clipmlu.report.document.blocks import Block, Facts, Figure, MainFigure, Name, Paragraph, Section, table
from clipmlu.report.document.speed import EMULATED_SPEED
from clipmlu.report.figures.accuracy import TrialPoint, draw_ladder
from clipmlu.report.figures.speed import MOST_LABELLED, Point, draw_pareto
from clipmlu.report.sweep import COLUMNS, row_cells, summary_lines
from clipmlu.report.tables import figures, words
from clipmlu.tune.sweep_report import SweepReport, SweepRow
from clipmlu.tune.trial import SearchReport, Trial, describe_quantisation

_SPEED_COLUMNS = (2, 3, 4, 5)  # of ``sweep.COLUMNS``: rates and latency
_POINT_COLUMNS = (*words("row", "precision"), *figures("images/s", "top-1"), *words("front"))
_TRIAL_COLUMNS = (
    *words("trial", "precision", "how", "verdict"),
    *figures("images", "top-1 or recall@1", "drop, points", "95 % at most", "agreement", "quantised MACs", "seconds"),
)


def sweep_sections(number: int, report: SweepReport) -> Iterator[Section]:
    """Yield the section of a sweep."""
    emulated = report.provenance.emulated
    title = Name(f"Result {number}: {report.provenance.model}, {report.provenance.target}")
    yield Section(title, tuple(_sweep_blocks(report)), level=3, emulated=emulated)


def _sweep_blocks(report: SweepReport) -> Iterator[Block]:
    if any(row.emulated for row in report.rows):
        yield Paragraph(EMULATED_SPEED, warning=True)
    columns = (*words("row"), *COLUMNS)
    rows = [(str(place), *_sweep_cells(row)) for place, row in enumerate(report.rows, 1)]
    yield table(columns, rows, "Each precision at each batch size; * is on the front")
    points = [_point(str(place), row) for place, row in enumerate(report.rows, 1) if row.top1 is not None]
    if points:
        labelled = " Only these have their number and intervals." if len(points) > MOST_LABELLED else ""
        some = any(row.emulated for row in report.rows)
        front = front_rows(report)
        fastest = f" The fastest of them has {_rate_and_accuracy(front[0])}." if front else ""
        yield Figure(
            "Accuracy against speed",
            "Each row of the sweep by images per second and top-1, with the 95 % interval of top-1 and the slowest and fastest "
            f"repetition. Filled marks are on the front: no other row is better in accuracy, speed and size together.{fastest}{labelled}"
            + (" Emulated rows stand at the left, without a speed." if some else ""),
            draw_pareto(points),
            table(_POINT_COLUMNS, map(_point_cells, points), "Accuracy and speed of the rows"),
            some,
        )
    lines = [line for line in summary_lines(report) if not line.startswith("Emulated:")]
    yield from map(Paragraph, lines)
    if report.skipped:
        yield Paragraph(f"{counted(len(report.skipped), 'image')} could not be read.")


def _sweep_cells(row: SweepRow) -> list[str]:
    """Return the texts of a row; an emulated one has no rates and no latency, and is on no front."""
    cells = list(row_cells(row))
    if row.emulated and row.failure is None:
        cells = [("" if place in _SPEED_COLUMNS else text) for place, text in enumerate(cells)]
        cells[-1] = ""
    return cells


def _point(label: str, row: SweepRow) -> Point:
    slowest, fastest = row.slowest_images_per_second, row.fastest_images_per_second
    rates = None if row.emulated or slowest is None or fastest is None else (slowest, fastest)
    interval = None if row.top1_interval is None else (row.top1_interval.low, row.top1_interval.high)
    return Point(
        label,
        row.precision.value,
        None if row.emulated else row.images_per_second,
        rates,
        row.top1 or 0.0,
        interval,
        row.on_front and not row.emulated,
    )


def _point_cells(point: Point) -> tuple[str, ...]:
    rate = "" if point.rate is None else f"{point.rate:.1f}"
    label = f"{point.label}{emulated_mark(point.rate is None)}"
    return label, point.series, rate, fraction_text(point.accuracy), "*" if point.on_front else ""


def sweep_figure(report: SweepReport) -> MainFigure:
    """Return the speed of the fastest row on the front with its accuracy; the number of rows if no speed can be shown."""
    front = front_rows(report)
    failed = sum(row.failure is not None for row in report.rows)
    notes = [f"{len(front)} of {counted(len(report.rows), 'row')} on the front" if front else ""]
    notes.append(f"{failed} failed" if failed else "")
    if not front:
        return MainFigure("Sweep", counted(len(report.rows), "row"), ", ".join(filter(None, notes)))
    best = front[0]
    accuracy = "" if best.top1 is None else f"top-1 {fraction_text(best.top1, 2, percent=True)}"
    what = [f"{best.precision.value}, batch {best.batch_size}", accuracy, *notes]
    return MainFigure("Fastest of the sweep", f"{best.images_per_second:,.1f} images/s", ", ".join(filter(None, what)))


def _rate_and_accuracy(row: SweepRow) -> str:
    accuracy = "" if row.top1 is None else f", top-1 {fraction_text(row.top1, 2, percent=True)}"
    return f"{row.images_per_second:,.1f} images/s{accuracy}"


def describe_row(row: SweepRow) -> str:
    """Return the precision, batch size, speed and accuracy of a row that was measured."""
    return f"{row.precision.value} with batch {row.batch_size}: {_rate_and_accuracy(row)}"


def front_rows(report: SweepReport) -> list[SweepRow]:
    """Return the rows on the front, the fastest first; no emulated one, whose speed is not that of a card."""
    rows = [row for row in report.rows if row.on_front and not row.emulated and row.images_per_second is not None]
    return sorted(rows, key=lambda row: -(row.images_per_second or 0.0))


def search_sections(number: int, report: SearchReport) -> Iterator[Section]:
    """Yield the section of a search."""
    title = Name(f"Result {number}: {report.provenance.model}, {report.provenance.target}")
    yield Section(title, tuple(_search_blocks(report)), level=3, emulated=report.provenance.emulated)


def _search_blocks(report: SearchReport) -> Iterator[Block]:
    facts = report.summary().facts
    yield Facts((*facts.items(), ("templates", report.templates)))
    if not report.trials:
        yield Paragraph("There were no trials.")
        return
    rows = [
        _trial_cells(place, trial, emulated=report.provenance.emulated) for place, trial in enumerate(report.trials, 1)
    ]
    points = [TrialPoint(trial.verdict, _points(trial.drop), _points(trial.drop_bound)) for trial in report.trials]
    yield Figure(
        "Trials of the search",
        "The loss of each trial against float32 on the same images, in points, up to the end of its 95 % interval. The "
        f"dashed line is the allowed loss, {100 * report.max_drop:g} points. The search ends with the first trial within it"
        f"{', which none was' if report.chosen is None else f': trial {len(report.trials)}'}.",
        draw_ladder(points, 100 * report.max_drop),
        table(_TRIAL_COLUMNS, rows, "Trials in order, the expected fastest first"),
        report.provenance.emulated,
    )
    failed = [(place, trial.reason) for place, trial in enumerate(report.trials, 1) if trial.reason]
    yield from (Paragraph(Name(f"Trial {place} failed: {reason}")) for place, reason in failed)


def _points(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction


def _judged(trial: Trial) -> str:
    """Return what a trial was judged by: top-1, or recall at 1 in both directions."""
    if trial.top1 is not None:
        return fraction_text(trial.top1)
    return (
        ""
        if trial.recall is None
        else f"{fraction_text(trial.recall.image_to_text)} / {fraction_text(trial.recall.text_to_image)}"
    )


def _trial_cells(place: int, trial: Trial, *, emulated: bool) -> tuple[str, ...]:
    """Return the texts of a trial; without its time if an emulator ran it."""
    numbers = [_points(trial.drop), _points(trial.drop_bound), trial.agreement]
    forms = ["{:z.2f}", "{:z.2f}", "{:.4f}"]
    share = trial.quantised_share
    return (
        str(place),
        f"{trial.precision.value}{emulated_mark(emulated)}",
        describe_quantisation(trial.quantisation) or "float",
        trial.verdict.replace("_", " "),
        f"{trial.images:,}",
        _judged(trial),
        *("" if value is None else form.format(value) for form, value in zip(forms, numbers, strict=True)),
        "" if share is None else f"{share:.1%}",
        "" if emulated else f"{trial.elapsed_s:.1f}",
    )


def search_figure(report: SearchReport) -> MainFigure:
    """Return the loss of the chosen trial, in points of top-1."""
    trials = counted(len(report.trials), "trial")
    if report.chosen is None:
        return MainFigure(
            "Drop of the search", "none found", f"{trials}, allowed drop {100 * report.max_drop:g} points"
        )
    drop = 100 * (report.chosen.drop or 0.0)
    return MainFigure(
        "Drop of the search",
        f"{drop:z.2f} points",
        f"{report.chosen.precision.value}, chosen after {trials}, allowed {100 * report.max_drop:g} points",
    )
