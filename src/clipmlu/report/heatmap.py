"""Heat maps of a comparison: blocks x roles, coloured by the signal-to-noise ratio of the operators' results."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipmlu.errors import OptionError
from clipmlu.graph.roles import ROLES, Role
from clipmlu.host import require
from clipmlu.measure.compare.nodes import NodeComparison, TowerComparison
from clipmlu.specs import TowerName

FORMATS = (".png", ".svg")
_PURPOSE = "Drawing a heat map"
_EXTRA = "report"
_BAND_DB = 10.0  # the colour scale ends at multiples of this
_INCHES_PER_CELL = (0.62, 0.3)
_DARK_BELOW = 0.55  # share of the colour scale below which numbers are white
_DPI = 150


@dataclasses.dataclass(frozen=True)
class Cell:
    """The worst operator of one block and role.

    Attributes:
        snr_db: its signal-to-noise ratio in dB; None if it is exact or broken.
        broken: True if it has NaN or infinity where the reference has none.
    """

    snr_db: float | None
    broken: bool = False

    @property
    def text(self) -> str:
        """Text of the cell: dB without decimals, ``=`` for equal numbers, ``!`` for NaN or infinity."""
        if self.broken:
            return "!"
        return "=" if self.snr_db is None else f"{self.snr_db:.0f}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matrix:
    """One tower's operators by block and role.

    Attributes:
        rows: block numbers in order; None, which comes first, stands for operators outside the blocks.
        columns: the roles with operators, in the order of ``ROLES``.
        cells: maps (row, column) to a cell; pairs without an operator are missing.
    """

    rows: tuple[int | None, ...]
    columns: tuple[Role, ...]
    cells: Mapping[tuple[int | None, Role], Cell]


def matrix_of(tower: TowerComparison) -> Matrix:
    """Return the results of a tower's operators; of several with the same block and role, the worst."""
    cells: dict[tuple[int | None, Role], Cell] = {}
    for node in tower.nodes:
        if node.kind != "operator" or node.role is None:
            continue
        place, cell = (node.block, node.role), _cell(node)
        cells[place] = min(cells.get(place, cell), cell, key=_rank)
    blocks = sorted(block for block, _role in cells if block is not None)
    outside = [None] if any(block is None for block, _role in cells) else []
    present = {role for _block, role in cells}
    return Matrix(
        rows=(*outside, *dict.fromkeys(blocks)), columns=tuple(role for role in ROLES if role in present), cells=cells
    )


def check_drawable(path: Path) -> None:
    """Check, before slow work begins, that a file can be drawn.

    Raises:
        OptionError: its name does not end in .png or .svg.
        MissingDependencyError: matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise OptionError(f"heat map is '{path}'; expected a name that ends in .png or .svg")
    require("matplotlib", _EXTRA, _PURPOSE)


def draw_heatmap(towers: Mapping[TowerName, TowerComparison], title: str, file_format: str) -> bytes:
    """Draw one panel for each tower with nodes.

    Args:
        towers: the comparisons.
        title: title of the picture; two lines at most.
        file_format: ``png`` or ``svg``.

    Returns:
        The file's content.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    matplotlib = require("matplotlib", _EXTRA, _PURPOSE)
    figures = require("matplotlib.figure", _EXTRA, _PURPOSE)
    matrices = {name: matrix for name, tower in towers.items() if (matrix := matrix_of(tower)).cells}
    columns = [max(len(matrix.columns), 1) for matrix in matrices.values()] or [1]
    tallest = max((len(matrix.rows) for matrix in matrices.values()), default=1)
    low, high = colour_range(matrices)
    # Text stays text in SVG files; the user's matplotlib settings are ignored.
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, "svg.fonttype": "none", "svg.hashsalt": "clipmlu"}):
        width = sum(columns) * _INCHES_PER_CELL[0] + 1.3 * len(columns) + 1.2
        figure = figures.Figure(figsize=(max(width, 5.0), tallest * _INCHES_PER_CELL[1] + 2.4), layout="constrained")
        figure.suptitle(title, fontsize=10)
        colours = matplotlib.colormaps["viridis"].with_extremes(bad="white")
        norm = matplotlib.colors.Normalize(low, high)
        panels = figure.subplots(1, len(columns), squeeze=False, width_ratios=columns)[0]
        for panel, (name, matrix) in zip(panels, matrices.items(), strict=False):
            _draw_panel(panel, f"{name} tower", matrix, tallest, colours, norm)
        if matrices:
            scale = matplotlib.cm.ScalarMappable(norm, colours)
            figure.colorbar(scale, ax=list(panels), label="signal-to-noise ratio, dB", shrink=0.9)
        else:
            panels[0].text(0.5, 0.5, "no inner nodes to show", ha="center", va="center")
            panels[0].axis("off")
        stream = io.BytesIO()
        metadata = {"Date": None} if file_format == "svg" else {}
        figure.savefig(stream, format=file_format, dpi=_DPI, metadata=metadata)
    return stream.getvalue()


def _draw_panel(panel: Any, title: str, matrix: Matrix, rows: int, colours: Any, norm: Any) -> None:
    """Draw cells as coloured rectangles: broken ones red, exact ones like the best, white without an operator.

    All panels have the same number of rows, so that all cells have the same size.
    """
    broken = "#d62728"
    for (block, role), cell in matrix.cells.items():
        row, column = matrix.rows.index(block), matrix.columns.index(role)
        level = norm.vmax if cell.snr_db is None else cell.snr_db
        fill = broken if cell.broken else colours(norm(level))
        panel.fill_between([column - 0.5, column + 0.5], row - 0.5, row + 0.5, color=fill, linewidth=0)
        dark = cell.broken or norm(level) < _DARK_BELOW
        panel.text(column, row, cell.text, ha="center", va="center", fontsize=7.5, color="white" if dark else "black")
    panel.set_title(title, fontsize=9)
    panel.xaxis.tick_top()
    panel.set_xticks(range(len(matrix.columns)), [role.replace("_", "\n") for role in matrix.columns], fontsize=7)
    labels = ["outside" if block is None else str(block) for block in matrix.rows]
    panel.set_yticks(range(len(matrix.rows)), labels, fontsize=7.5)
    panel.set_ylabel("block", fontsize=8)
    panel.set_xlim(-0.5, len(matrix.columns) - 0.5)
    panel.set_ylim(rows - 0.5, -0.5)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)


def colour_range(matrices: Mapping[TowerName, Matrix]) -> tuple[float, float]:
    """Return the ratios in dB at the ends of the colour scale."""
    ratios = [cell.snr_db for matrix in matrices.values() for cell in matrix.cells.values() if cell.snr_db is not None]
    low = _BAND_DB * math.floor(min(ratios, default=0.0) / _BAND_DB)
    high = _BAND_DB * math.ceil(max(ratios, default=_BAND_DB) / _BAND_DB)
    return low, max(high, low + _BAND_DB)


def _cell(node: NodeComparison) -> Cell:
    return Cell(node.snr_db, broken=node.non_finite > 0)


def _rank(cell: Cell) -> float:
    if cell.broken:
        return -math.inf
    return math.inf if cell.snr_db is None else cell.snr_db
