"""Retrieval in a document: recall in both directions, beside other results of the same pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clipmlu.bundle.manifest import emulated_mark
from clipmlu.measure.retrieval.report import RetrievalReport
from clipmlu.measure.statistics import fraction_text
from clipmlu.report.document.blocks import Block, Facts, Figure, MainFigure, Name, Paragraph, Section, table
from clipmlu.report.document.estimates import estimates_figure
from clipmlu.report.figures.accuracy import Estimate
from clipmlu.report.retrieval import AGREEMENT_COLUMNS, RECALL_COLUMNS, agreement_rows, recall_rows, retrieval_facts
from clipmlu.report.tables import describe_provenance

Numbered = tuple[int, RetrievalReport]


def retrieval_sections(reports: Sequence[Numbered], most: int) -> Iterator[Section]:
    """Yield the sections of retrieval reports, each with its number in the document.

    Args:
        reports: the reports.
        most: the results with larger numbers have no section of their own.
    """
    groups: dict[str, list[Numbered]] = {}
    for number, report in reports:
        groups.setdefault(report.data_digest, []).append((number, report))
    emulated = all(report.provenance.emulated for _number, report in reports)
    yield Section("Retrieval", tuple(_introduction(list(groups.values()))), emulated=emulated)
    for number, report in (each for each in reports if each[0] <= most):
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
    return estimates_figure("Recall at 1", "result and direction", estimates)


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
    images, texts = (fraction_text(found.first.value, 1, percent=True) for found in report.directions().values())
    return MainFigure("Recall at 1", f"{images.removesuffix(' %')} / {texts}", "image to text / text to image")
