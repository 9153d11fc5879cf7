"""Retrieval in a document: recall in both directions, beside other results of the same pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clipmlu.bundle.manifest import emulated_mark
from clipmlu.measure.retrieval.report import RetrievalReport
from clipmlu.report.document.blocks import Block, Facts, Figure, MainFigure, Name, Paragraph, Section, table
from clipmlu.report.figures.accuracy import Estimate, draw_estimates
from clipmlu.report.retrieval import AGREEMENT_COLUMNS, RECALL_COLUMNS, agreement_rows, recall_rows, retrieval_facts
from clipmlu.report.tables import describe_provenance, figures, words

Numbered = tuple[int, RetrievalReport]


def retrieval_sections(reports: Sequence[Numbered]) -> Iterator[Section]:
    """Yield the sections of retrieval reports, each with its number in the document."""
    groups: dict[str, list[Numbered]] = {}
    for number, report in reports:
        groups.setdefault(report.data_digest, []).append((number, report))
    emulated = all(report.provenance.emulated for _number, report in reports)
    yield Section("Retrieval", tuple(_introduction(list(groups.values()))), emulated=emulated)
    for number, report in reports:
        title = Name(f"Result {number}: {describe_provenance(report.provenance).removesuffix(emulated_mark(True))}")
        yield Section(title, tuple(_details(report)), level=3, emulated=report.provenance.emulated)


def _introduction(groups: Sequence[Sequence[Numbered]]) -> Iterator[Block]:
    yield Paragraph(
        "Each image looks for its texts among all texts, and each text for its images. Recall at k is the share of queries with "
        "a match among the first k results."
    )
    if len(groups) > 1:
        yield Paragraph(
            f"The results are of {len(groups)} different sets of images and texts: their recalls cannot be compared."
        )
    for group in groups:
        if len(group) > 1:
            yield _side_by_side(group)


def _side_by_side(group: Sequence[Numbered]) -> Figure:
    """Return recall at 1 of results of the same pairs, in both directions."""
    estimates = [
        Estimate(
            f"{number}  {name}",
            found.first.value,
            found.first.interval.low,
            found.first.interval.high,
            report.provenance.emulated,
        )
        for number, report in group
        for name, found in report.directions().items()
    ]
    rows = [(each.label, f"{each.value:.4f}", f"{each.low:.4f}", f"{each.high:.4f}") for each in estimates]
    return Figure(
        "Recall at 1 of the same pairs",
        "Recall at 1 of each result and direction as a point on a line from the lower to the upper end of its 95 % interval.",
        draw_estimates(estimates, "recall at 1, per cent"),
        table((*words("result and direction"), *figures("recall@1", "95 % from", "to")), rows, "Recall at 1"),
        any(each.emulated for each in estimates),
    )


def _details(report: RetrievalReport) -> Iterator[Block]:
    facts = retrieval_facts(report)
    del facts["model"]  # in the heading
    if report.provenance.emulated:
        del facts["time"]
    yield Facts(tuple(facts.items()))
    if report.calibration_overlap:
        yield Paragraph("The bundle was calibrated with some of these images: the figures are too high.", warning=True)
    yield table(RECALL_COLUMNS, recall_rows(report), "Recall and rank of the best match, with 95 % intervals")
    if report.reference is not None:
        caption = f"Agreement with the rankings of {describe_provenance(report.reference.provenance)}"
        yield table(AGREEMENT_COLUMNS, agreement_rows(report.reference), caption)


def retrieval_figure(report: RetrievalReport) -> MainFigure:
    """Return recall at 1 with images and with texts as queries, in per cent."""
    images, texts = (100 * found.first.value for found in report.directions().values())
    return MainFigure("Recall at 1", f"{images:.1f} / {texts:.1f} %", "image to text / text to image")
