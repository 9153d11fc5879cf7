"""Comparisons of two bundles in a document: figures, a heat map of the operators, roles in float, and changed images."""

from __future__ import annotations

from collections.abc import Iterator

from clipmlu.bundle.manifest import emulated_mark
from clipmlu.display import counted
from clipmlu.host import require
from clipmlu.measure.compare.compare import ComparisonReport
from clipmlu.measure.compare.nodes import TowerComparison
from clipmlu.measure.statistics import fraction_text
from clipmlu.report.comparison import (
    COST_COLUMNS,
    FLIP_COLUMNS,
    ablation_title,
    comparison_facts,
    cost_cells,
    flip_cells,
    flips_title,
    node_cells,
    node_columns,
    worst_nodes,
)
from clipmlu.report.document.blocks import (
    Block,
    Facts,
    HeatMap,
    MainFigure,
    Name,
    Paragraph,
    Section,
    Shade,
    sentence,
    table,
)
from clipmlu.report.figures.style import EXTRA, PURPOSE
from clipmlu.report.heatmap import Cell, colour_range, matrix_of
from clipmlu.specs import TowerName

_BROKEN = "#b42318"
_EMPTY = Shade("")


def comparison_sections(number: int, report: ComparisonReport) -> Iterator[Section]:
    """Yield the section of a comparison."""
    sides = f"{report.measured.describe()} against {report.reference.describe()}".replace(emulated_mark(True), "")
    title = Name(f"Result {number}: {report.model}, {sides}")
    yield Section(title, tuple(_blocks(report)), level=3, emulated=report.emulated)


def _blocks(report: ComparisonReport) -> Iterator[Block]:
    yield Facts(tuple((name, str(value)) for name, value in comparison_facts(report)))
    for name, tower in report.towers.items():
        yield from _tower(name, tower)
    if report.ablation is not None:
        rows = map(tuple, map(cost_cells, report.ablation.roles))
        yield table(COST_COLUMNS, rows, sentence(ablation_title(report.ablation)))
    predictions = report.predictions
    if predictions.flips:
        rows_ = [tuple(map(Name, flip_cells(flip))) for flip in predictions.flips]
        yield table(FLIP_COLUMNS, rows_, sentence(flips_title(predictions)))
    else:
        yield Paragraph("No image changed its class.")


def _tower(name: TowerName, tower: TowerComparison) -> Iterator[Block]:
    matrix = matrix_of(tower)
    if matrix.cells:
        low, high = colour_range({name: matrix})
        rows = tuple(
            (
                "outside" if block is None else f"block {block}",
                tuple(_shade(matrix.cells.get((block, role)), low, high) for role in matrix.columns),
            )
            for block in matrix.rows
        )
        caption = (
            f"{sentence(name)} tower: signal-to-noise ratio of the operators' results in dB, of several with one role the worst; "
            "= equal numbers, ! NaN or infinity. Dark is worse."
        )
        yield HeatMap(caption, "block", tuple(role.replace("_", " ") for role in matrix.columns), rows)
    worst = worst_nodes(tower)
    if worst:
        cells = [tuple(node_cells(node)) for node in worst]
        yield table(node_columns(whole=True), cells, f"{sentence(name)} tower: the worst nodes")


def _shade(cell: Cell | None, low: float, high: float) -> Shade:
    if cell is None:
        return _EMPTY
    if cell.broken:
        return Shade(cell.text, _BROKEN, "#ffffff")
    colours = require("matplotlib", EXTRA, PURPOSE)
    level = 1.0 if cell.snr_db is None else (cell.snr_db - low) / ((high - low) or 1.0)
    red, green, blue, _alpha = colours.colormaps["viridis"](level)
    return Shade(cell.text, colours.colors.to_hex((red, green, blue)), _readable_on(red, green, blue))


def _readable_on(red: float, green: float, blue: float) -> str:
    """Return black or white, whichever has the higher contrast on a colour (WCAG 2, relative luminance)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (red, green, blue)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "#ffffff"


def comparison_figure(report: ComparisonReport) -> MainFigure:
    """Return the share of images with the same class on both sides."""
    agreement = fraction_text(report.predictions.agreement, 2, percent=True)
    return MainFigure(
        "Agreement", agreement, f"same class as the {report.reference.describe()}, {counted(report.images, 'image')}"
    )
