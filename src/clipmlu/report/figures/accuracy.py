"""Figures of accuracy: results with their intervals, reliability, and the trials of a search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from clipmlu.report.figures.style import BLUE, FAINT, GREEN, INK, LINE, ORANGE, RED, WASH, draw

_ROW_INCHES = 0.34


class Estimate(NamedTuple):
    """A result with its confidence interval, all fractions; ``emulated`` ones are hollow."""

    label: str
    value: float
    low: float
    high: float
    emulated: bool = False


def draw_estimates(estimates: Sequence[Estimate], axis: str) -> str:
    """Draw results below each other, in per cent, each with its interval.

    Args:
        estimates: the results; ASCII labels.
        axis: label of the axis.
    """

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for place, each in enumerate(estimates):
            axes.plot(
                [100 * each.low, 100 * each.high], [place, place], color=BLUE, linewidth=2.2, solid_capstyle="butt"
            )
            face = "none" if each.emulated else BLUE
            axes.plot([100 * each.value], [place], "D" if each.emulated else "o", color=BLUE, markerfacecolor=face)
        axes.set_yticks(range(len(estimates)), [each.label for each in estimates])
        axes.set_ylim(len(estimates) - 0.5, -0.5)
        axes.set_xlabel(axis)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)

    return draw(0.75 + _ROW_INCHES * len(estimates), paint)


class Bin(NamedTuple):
    """One bar of a reliability diagram; the accuracy and its interval are None without images."""

    low: float
    high: float
    images: int
    accuracy: float | None
    interval: tuple[float, float] | None
    confidence: float | None


def draw_reliability(bins: Sequence[Bin]) -> str:
    """Draw accuracy against confidence, with the diagonal of a calibrated model, and below it the images of each bin."""

    def paint(figure: Any) -> None:
        axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
        filled = [each for each in bins if each.accuracy is not None]
        axes.bar(
            [each.low for each in filled],
            [each.accuracy for each in filled],
            [each.high - each.low for each in filled],
            align="edge",
            color=WASH,
            edgecolor=BLUE,
            linewidth=1.0,
        )
        for each in filled:
            assert each.interval is not None
            assert each.confidence is not None
            axes.plot([each.confidence] * 2, each.interval, color=BLUE, linewidth=1.2, clip_on=False)
            axes.plot([each.confidence], [each.accuracy], "o", color=BLUE, markersize=4.5, clip_on=False)
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
        axes.set_ylim(0, 1)
        axes.set_xlim(0, 1)
        axes.set_ylabel("accuracy")
        axes.grid()
        counts.bar(
            [each.low for each in bins],
            [each.images for each in bins],
            [1 / len(bins)] * len(bins),
            align="edge",
            color=FAINT,
        )
        counts.set_ylabel("images")
        counts.set_xlabel("confidence: probability of the best class")
        counts.grid(axis="y")
        counts.yaxis.get_major_locator().set_params(nbins=3, integer=True)
        figure.align_ylabels()

    return draw(4.4, paint)


class TrialPoint(NamedTuple):
    """A trial of a search: drop and its upper bound in points; None for a trial that was not evaluated."""

    verdict: str
    drop: float | None
    bound: float | None


_VERDICT_MARKS = {
    "accepted": ("o", GREEN),
    "rejected": ("X", RED),
    "stopped_early": ("X", ORANGE),
    "exploratory": ("s", FAINT),
    "failed": ("X", RED),
}


def draw_ladder(trials: Sequence[TrialPoint], allowed: float) -> str:
    """Draw the drops of a search's trials below each other, each to its bound, and the allowed drop.

    Args:
        trials: in order.
        allowed: the allowed drop in points.
    """

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for place, each in enumerate(trials, 1):
            marker, colour = _VERDICT_MARKS.get(each.verdict, ("o", FAINT))
            if each.drop is None:
                axes.text(0, place, "not evaluated", color=FAINT, va="center", fontsize=9)
                continue
            if each.bound is not None:
                axes.plot([each.drop, each.bound], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
                axes.plot([each.bound], [place], "|", color=colour, markersize=9)
            axes.plot([each.drop], [place], marker, color=colour, markersize=7)
        for verdict in dict.fromkeys(each.verdict for each in trials if each.drop is not None):
            marker, colour = _VERDICT_MARKS.get(verdict, ("o", FAINT))
            axes.plot([], [], marker, color=colour, label=verdict.replace("_", " "), linestyle="none")
        axes.axvline(allowed, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label="allowed drop")
        figure.legend(loc="outside lower center", ncols=2)
        axes.axvline(0, color=LINE, linewidth=1.0)
        axes.set_yticks(range(1, len(trials) + 1))
        axes.set_ylim(len(trials) + 0.6, 0.4)
        axes.set_ylabel("trial")
        axes.set_xlabel("drop against float32, points; | is the 95 % bound")
        axes.grid(axis="x")

    return draw(1.6 + _ROW_INCHES * max(len(trials), 2), paint)
