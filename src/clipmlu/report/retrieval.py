"""Retrieval reports on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipmlu.measure.statistics import fraction_text
from clipmlu.report.tables import describe_provenance, figures, optional, print_facts, print_table, words

if TYPE_CHECKING:
    from clipmlu.measure.retrieval.report import (
        DirectionReport,
        RankAgreement,
        RecallBaseline,
        ReferenceAgreement,
        RetrievalReport,
    )

_CUTS = (1, 5, 10)
RECALL_COLUMNS = (*words("direction"), *figures(*(f"recall@{k}" for k in _CUTS), "mean rank", "median rank"))
AGREEMENT_COLUMNS = (
    *words("direction"),
    *figures("same first", "overlap@10", "recall@1 drop", "95 %: at most"),
    *optional(figures("mean rank change")),
)


def retrieval_facts(report: RetrievalReport) -> dict[str, str]:
    """Return the facts of a retrieval report, by name, for people."""
    rows = {
        "model": describe_provenance(report.provenance),
        "pairs": report.pairs + (f", {report.split}" if report.split else ""),
        "images": f"{report.images:,}",
        "texts": f"{report.texts:,}",
        **report.left_out(),
        "preprocessing": "fast: not the pixels of open_clip" if report.fast_preprocess else "exact",
        "time": f"{report.elapsed_s:.1f} s",
    }
    if report.baseline is not None:
        rows["baseline"] = _baseline(report.baseline)
    return rows


def recall_rows(report: RetrievalReport) -> list[tuple[str, ...]]:
    """Return the texts of each direction, one for each of ``RECALL_COLUMNS``."""
    return [(name, *_figures(found)) for name, found in report.directions().items()]


def agreement_rows(found: ReferenceAgreement) -> list[tuple[str, ...]]:
    """Return the texts of each direction, one for each of ``AGREEMENT_COLUMNS``."""
    return [("image to text", *_agreement(found.image_to_text)), ("text to image", *_agreement(found.text_to_image))]


def show_retrieval(report: RetrievalReport) -> None:
    """Print a retrieval report on stdout."""
    print_facts(retrieval_facts(report).items())
    print_table(RECALL_COLUMNS, recall_rows(report), title="retrieval (95 % confidence intervals)")
    if report.reference is not None:
        title = f"agreement with {describe_provenance(report.reference.provenance)}"
        print_table(AGREEMENT_COLUMNS, agreement_rows(report.reference), title=title)


def _figures(found: DirectionReport) -> tuple[str, ...]:
    recalls = {each.k: each for each in found.recalls}
    texts = [
        f"{fraction_text(recalls[k].value)} ({fraction_text(recalls[k].interval.low)} to {fraction_text(recalls[k].interval.high)})"
        if k in recalls
        else "-"
        for k in _CUTS
    ]
    return (*texts, f"{found.mean_rank:.2f}", f"{found.median_rank:g}")


def _agreement(found: RankAgreement) -> tuple[str, ...]:
    overlap = "-" if found.top10_overlap is None else fraction_text(found.top10_overlap)
    drop, bound = f"{found.recall_drop:+.4f}", f"{found.recall_drop_bound:+.4f}"
    return fraction_text(found.top1_agreement), overlap, drop, bound, f"{found.mean_rank_change:+.2f}"


def _baseline(found: RecallBaseline) -> str:
    return (
        f"recall@1 {fraction_text(found.image_to_text)} and {fraction_text(found.text_to_image)}, drop {found.image_to_text_drop:+.4f} and "
        f"{found.text_to_image_drop:+.4f}, allowed {found.max_recall_drop:g}"
    )
