"""Figures of speed: accuracy against throughput, the distribution of latencies, and the cost of the pipeline's stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from clipmlu.report.figures.style import BLUE, FAINT, GREEN, INK, LINE, ORANGE, RED, WASH, draw, drawable

_MOST_BINS = 40
_COLOURS = (BLUE, ORANGE, GREEN, RED, INK, FAINT)
_MARKERS = ("o", "s", "^", "v", "P", "X", "D")
_ROW_INCHES = 0.34
MOST_LABELLED = 12
"""Rows of a sweep that are all labelled; of more, those of the front are, and they alone show their intervals."""


class Point(NamedTuple):
    """A row of a sweep.

    Attributes:
        label: its number in the table.
        series: its precision.
        rate: images per second; None for an emulated row, whose speed is not that of a card.
        rates: the slowest and the fastest repetition, or None.
        accuracy: top-1, 0..1.
        interval: its interval, or None.
        on_front: whether no other row is better in everything.
    """

    label: str
    series: str
    rate: float | None
    rates: tuple[float, float] | None
    accuracy: float
    interval: tuple[float, float] | None
    on_front: bool


def draw_pareto(points: Sequence[Point]) -> str:
    """Draw accuracy against throughput; filled points are on the front, emulated ones stand apart, without a speed.

    Of more than ``MOST_LABELLED`` points only those on the front have their label and intervals; all others would overlap.
    """
    series = list(dict.fromkeys(each.series for each in points))
    emulated = [each for each in points if each.rate is None]

    def paint(figure: Any) -> None:
        ratios = (1, 4) if emulated and len(emulated) < len(points) else (1,)
        panels = list(np.ravel(figure.subplots(1, len(ratios), sharey=True, width_ratios=ratios)))
        axes = panels[-1]
        if emulated:
            _paint_emulated(panels[0], emulated, series)
        if len(emulated) < len(points):
            _paint_points(axes, [each for each in points if each.rate is not None], series)
        panels[0].set_ylabel("top-1, per cent")
        for panel in panels:
            panel.grid()
            panel.margins(0.12, 0.14)
        handles = [_handle(axes, place, name) for place, name in enumerate(series)]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)

    return draw(3.6 + 0.2 * ((len(series) + 1) // 2), paint)


def _paint_points(axes: Any, points: Sequence[Point], series: Sequence[str]) -> None:
    for place, each in enumerate(sorted(points, key=lambda point: point.rate or 0.0)):
        colour, marker = _look(series.index(each.series))
        height, rate = 100 * each.accuracy, drawable(each.rate or 0.0)
        detailed = each.on_front or len(points) <= MOST_LABELLED
        if each.interval is not None and detailed:
            low, high = each.interval
            axes.plot([rate] * 2, [100 * low, 100 * high], color=colour, linewidth=0.8, alpha=0.6)
        if each.rates is not None and detailed:
            axes.plot([drawable(end) for end in each.rates], [height] * 2, color=colour, linewidth=0.8, alpha=0.6)
        face = colour if each.on_front else "none"
        axes.plot([rate], [height], marker, color=colour, markerfacecolor=face, markersize=7)
        if detailed:
            offset = (5, 5 if place % 2 else -12)
            axes.annotate(each.label, (rate, height), offset, textcoords="offset points", fontsize=9)
    axes.set_xlabel("images per second")


def _paint_emulated(axes: Any, points: Sequence[Point], series: Sequence[str]) -> None:
    for place, each in enumerate(points):
        colour, marker = _look(series.index(each.series))
        axes.plot([place], [100 * each.accuracy], marker, color=colour, markerfacecolor="none", markersize=7)
        axes.annotate(each.label, (place, 100 * each.accuracy), (5, 5), textcoords="offset points", fontsize=9)
    axes.set_xticks([])
    axes.set_xlabel("emulated:\nno speed")


def _look(place: int) -> tuple[str, str]:
    return _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]


def _handle(axes: Any, place: int, name: str) -> Any:
    colour, marker = _look(place)
    return axes.plot([], [], marker, color=colour, label=name, linestyle="none")[0]


class Bars(NamedTuple):
    """A histogram: the edges of its bins in milliseconds, the number of values in each, and that of larger ones."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    above: int


def count_latencies(latencies_ms: Sequence[float]) -> Bars:
    """Count latencies in at most 40 bins of equal width, from the smallest one to twice the 90th percentile.

    Args:
        latencies_ms: at least one. A single slow answer would otherwise leave one bin for all the others.
    """
    values = np.asarray([drawable(each) for each in latencies_ms])
    bins = max(1, min(_MOST_BINS, round(2 * len(values) ** 0.5)))
    end = max(values.min(), min(values.max(), 2 * float(np.percentile(values, 90))))
    counts, edges = np.histogram(values, bins, (values.min(), end))
    return Bars(tuple(edges.tolist()), tuple(counts.tolist()), int((values > end).sum()))


def draw_histogram(bars: Bars, marks: Sequence[tuple[str, float]], counted: str = "queries") -> str:
    """Draw a histogram of latencies.

    Args:
        bars: the counts.
        marks: percentiles: name and milliseconds.
        counted: what took that long, in the plural.
    """

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        widths = np.diff(bars.edges)
        axes.bar(bars.edges[:-1], bars.counts, widths, align="edge", color=WASH, edgecolor=BLUE, linewidth=0.8)
        top = max(bars.counts) * 1.22
        end = bars.edges[-1]
        for place, (name, value) in enumerate((name, drawable(value)) for name, value in marks):
            height = top * (0.98 - 0.085 * place)
            if value <= end:
                axes.axvline(value, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
                axes.annotate(name, (value, height), (4, 0), textcoords="offset points", va="top", fontsize=9)
            else:
                axes.text(
                    1,
                    height,
                    f"{name} {value:.1f} ms",
                    va="top",
                    ha="right",
                    fontsize=9,
                    transform=axes.get_yaxis_transform(),
                )
        axes.set_ylim(0, top)
        axes.set_xlim(right=end + 0.08 * (end - bars.edges[0]))
        axes.set_xlabel("milliseconds")
        axes.set_ylabel(counted)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y")

    return draw(2.7, paint)


class StageBar(NamedTuple):
    """A stage of the pipeline: milliseconds for an image alone, and in the running pipeline; the latter may be None."""

    name: str
    alone: float
    together: float | None


def draw_stages(stages: Sequence[StageBar]) -> str:
    """Draw what each stage costs, alone and together with the others."""

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        both = any(each.together is not None for each in stages)
        height = 0.38 if both else 0.6
        for place, each in enumerate(stages):
            axes.barh(place - (height / 2 if both else 0), drawable(each.alone), height, color=BLUE)
            if each.together is not None:
                axes.barh(
                    place + height / 2, drawable(each.together), height, color=WASH, edgecolor=BLUE, linewidth=1.0
                )
        axes.set_yticks(range(len(stages)), [each.name for each in stages])
        axes.set_ylim(len(stages) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(
            "milliseconds for an image: filled alone, outlined together" if both else "milliseconds for an image"
        )
        axes.grid(axis="x")
        axes.spines["left"].set_color(LINE)

    return draw(0.8 + 1.25 * _ROW_INCHES * len(stages), paint)
