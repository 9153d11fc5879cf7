"""Results of the same data beside each other, each with its interval."""

from __future__ import annotations

from collections.abc import Sequence

from clipmlu.bundle.manifest import emulated_mark
from clipmlu.measure.statistics import fraction_text
from clipmlu.report.document.blocks import Figure, table
from clipmlu.report.figures.accuracy import Estimate, draw_estimates
from clipmlu.report.tables import figures, words

_MOST = 40  # lines that a figure has room for


def estimates_figure(metric: str, heading: str, estimates: Sequence[Estimate]) -> Figure:
    """Return a figure of results below each other; of more than 40 the first ones.

    Args:
        metric: what was measured, such as ``"Top-1"``.
        heading: of the column that names the results.
        estimates: the results, at least one.
    """
    drawn = estimates[:_MOST]
    part = f" of the first {_MOST} of {len(estimates):,} results" if len(estimates) > _MOST else ""
    emulated = any(each.emulated for each in drawn)
    best, worst = (choose(drawn, key=lambda each: each.value) for choose in (max, min))
    rows = [
        (
            f"{each.label}{emulated_mark(each.emulated)}",
            fraction_text(each.value),
            fraction_text(each.low),
            fraction_text(each.high),
        )
        for each in drawn
    ]
    return Figure(
        f"{metric} with its 95 % interval{part}",
        f"{metric} from {fraction_text(worst.value, 2, percent=True)} ({worst.label}) to "
        f"{fraction_text(best.value, 2, percent=True)} ({best.label}), each as a point on a line from the lower to the upper end of "
        f"its interval{'; emulated results are hollow diamonds' if emulated else ''}.",
        draw_estimates(drawn, f"{metric.lower()}, per cent"),
        table((*words(heading), *figures(metric.lower(), "95 % from", "to")), rows, metric),
        emulated,
    )
