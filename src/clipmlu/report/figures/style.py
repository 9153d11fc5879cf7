"""The style of all figures: size, fonts, and colours that follow the page, also a dark or a printed one.

Matplotlib knows no CSS variables, so each colour is drawn as a number that stands for one, and is replaced in the file. The same
values give the same bytes: the identifiers are numbered, and there is no date.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

from clipmlu.host import require

PURPOSE = "Drawing the figures of a report"
EXTRA = "report"
INK, FAINT, LINE, PAPER = "#010101", "#020202", "#030303", "#040404"
BLUE, ORANGE, GREEN, RED = "#050505", "#060606", "#070707", "#080808"
WASH = "#090909"
_VARIABLES = {
    INK: "--ink",
    FAINT: "--faint",
    LINE: "--line",
    PAPER: "--paper",
    BLUE: "--blue",
    ORANGE: "--orange",
    GREEN: "--green",
    RED: "--red",
    WASH: "--wash",
}
"""Maps the colour of a drawing to the variable of ``style.css`` that it stands for."""
WIDTH = 5.0  # inches, 72 points each: as wide as a phone, so that letters stay legible there
_FONT_POINTS = 10.5
_LARGEST = 1e12
_LONG_NUMBER = re.compile(r"\d+\.\d{3,}")


def draw(height: float, paint: Callable[[Any], None], width: float = WIDTH) -> str:
    """Return a drawing as SVG.

    Args:
        height: in inches.
        paint: draws on matplotlib's ``Figure``. Its texts are ASCII: matplotlib's font has no others.
        width: in inches.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    matplotlib = require("matplotlib", EXTRA, PURPOSE)
    figures = require("matplotlib.figure", EXTRA, PURPOSE)
    backend = require("matplotlib.backends.backend_svg", EXTRA, PURPOSE)
    settings = {
        **matplotlib.rcParamsDefault,
        "svg.fonttype": "none",
        "svg.hashsalt": "clipmlu",
        "font.family": "DejaVu Sans",
        "font.size": _FONT_POINTS,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": LINE,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "xtick.labelsize": _FONT_POINTS - 1,
        "ytick.labelsize": _FONT_POINTS - 1,
        "grid.color": LINE,
        "grid.linewidth": 0.7,
        "legend.frameon": False,
        "legend.fontsize": _FONT_POINTS - 1,
        "patch.linewidth": 0.0,
    }
    with matplotlib.rc_context(settings):
        figure = figures.Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_visible(False)
        paint(figure)
        stream = io.StringIO()
        # ``savefig`` would draw twice: once to find sizes that nothing here depends on.
        canvas = backend.FigureCanvasSVG(figure)
        canvas.print_svg(stream, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _cleaned(stream.getvalue())


def drawable(value: float) -> float:
    """Return a number of a report that matplotlib can draw: it fails, or warns, on the largest ones that JSON can hold."""
    return max(-_LARGEST, min(value, _LARGEST))


def _shortened(number: re.Match[str]) -> str:
    return f"{float(number.group()):.2f}".rstrip("0").rstrip(".")


def _cleaned(drawing: str) -> str:
    """Return an SVG element in the colours and fonts of a page, with only the identifiers that it uses."""
    element = drawing[drawing.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>\s*", "", element, flags=re.DOTALL)
    element = re.sub(r"<!--.*?-->\s*", "", element, flags=re.DOTALL)
    element = re.sub(
        r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>\s*", "", element, flags=re.DOTALL
    )  # it would hold for the page
    element = re.sub(r' transform="rotate\(-0 [^)]*\)"', "", element)
    element = re.sub(r"<[^>]+>", lambda tag: _LONG_NUMBER.sub(_shortened, tag.group()), element)
    element = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", element, count=1)
    element = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", element, count=1)
    used = dict.fromkeys(re.findall(r'(?:url\(|href=")#([^)"]+)', element))
    element = re.sub(r' id="([^"]+)"', lambda found: found.group() if found.group(1) in used else "", element)
    element = re.sub(r"font(-family)?: ([^;\"]*?)'DejaVu Sans'[^;\"]*", r"font\1: \2system-ui, sans-serif", element)
    for colour, variable in _VARIABLES.items():
        element = element.replace(colour, f"var({variable})")
    return re.sub(r"\n\s*", "\n", element).strip()
