"""Accuracy in a document: results of the same data beside each other, then each result by itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from clipmlu.bundle.manifest import emulated_mark
from clipmlu.display import counted
from clipmlu.host import CIFAR100_VARIABLE
from clipmlu.measure.accuracy.report import AccuracyReport, ConfidenceBin
from clipmlu.measure.statistics import fraction_text, wilson_interval
from clipmlu.report.accuracy import CLASS_COLUMNS, accuracy_facts, class_cells, hardest_classes
from clipmlu.report.document.blocks import (
    Block,
    Facts,
    Figure,
    Folded,
    MainFigure,
    Mistakes,
    Name,
    Paragraph,
    Section,
    Table,
    table,
)
from clipmlu.report.document.estimates import estimates_figure
from clipmlu.report.document.published import Published, published_figures
from clipmlu.report.document.thumbnails import Thumbnails
from clipmlu.report.figures.accuracy import Bin, Estimate, draw_reliability
from clipmlu.report.tables import describe_provenance, figures, words
from clipmlu.specs import Precision

Numbered = tuple[int, AccuracyReport]

_HARDEST = 12
_ALL_SHOWN = 20  # classes that need no selection
_MOST_CLASSES = 1000
_PAIRS = 12
_OUTSIDE = (
    "they are neither below the folder of the report nor below that in which this page was written (clipmlu report "
    "--thumbnails shows them)"
)
_SAME_NAMES = (
    "Results with the same name of the model are of different weights, or of weights that are not known: they are not compared with "
    "each other."
)
_NO_DIGEST = (
    "Some reports were written by an older clipmlu, without a digest of their images or of the model's weights: each is compared with "
    "no other, because nothing shows that these are the same."
)


def accuracy_sections(reports: Sequence[Numbered], thumbnails: Thumbnails, most: int) -> Iterator[Section]:
    """Yield the sections of accuracy reports.

    Args:
        reports: the reports, each with its number in the document.
        thumbnails: finds the images of mistakes.
        most: the results with larger numbers have no section of their own.
    """
    groups = group_by_data(reports)
    emulated = all(report.provenance.emulated for _number, report in reports)
    yield Section("Accuracy", tuple(_introduction(groups)), emulated=emulated)
    for group in groups:
        first = group[0][1]
        yield Section(Name(_data(first)), tuple(_comparison(group)), level=3)
    for number, report in (each for each in reports if each[0] <= most):
        title = Name(f"Result {number}: {describe_provenance(report.provenance).removesuffix(emulated_mark(True))}")
        yield Section(title, tuple(_details(report, thumbnails)), level=3, emulated=report.provenance.emulated)


def group_by_data(reports: Sequence[Numbered]) -> list[list[Numbered]]:
    """Return the reports of equal images, classes and prompts together; a report without a digest is alone."""
    found: dict[object, list[Numbered]] = {}
    for number, report in reports:
        skipped = frozenset(each.id for each in report.skipped)  # the digest covers them, too
        same = (report.dataset, report.data_digest, report.templates, skipped)
        found.setdefault(number if report.data_digest is None else same, []).append((number, report))
    return list(found.values())


def _introduction(groups: Sequence[Sequence[Numbered]]) -> Iterator[Block]:
    yield Paragraph(
        "Zero-shot classification: the class whose text embedding is most similar to the image's. Intervals hold the accuracy on "
        "more images of the same kind with 95 % confidence (Wilson)."
    )
    if len(groups) > 1:
        yield Paragraph(
            f"The results are of {len(groups)} different questions (images, classes or prompts), which are listed apart: their "
            "accuracies cannot be compared."
        )
    if any(None in (report.data_digest, report.weights_digest) for group in groups for _number, report in group):
        yield Paragraph(_NO_DIGEST)


def _data(report: AccuracyReport) -> str:
    counts = f"{counted(report.images, 'image')}, {counted(report.classes, 'class')}"
    return f"{report.dataset}, {report.split}: {counts}, {describe_prompts(report)}"


def describe_prompts(report: AccuracyReport) -> str:
    """Return the template of a result, or the number of several."""
    single = len(report.templates) == 1
    return f"prompt '{report.templates[0]}'" if single else counted(len(report.templates), "template")


def _comparison(group: Sequence[Numbered]) -> Iterator[Block]:
    baseline = float_baseline(group)
    models = {model_of(each) for each in group}
    if len({name for name, _weights in models}) < len(models):
        yield Paragraph(_SAME_NAMES)
    columns = (
        *words("result", "precision"),
        *figures("top-1", "95 % from", "to", "top-5", *([] if baseline is None else ["against float32"])),
        *words("target", "model"),
    )
    against = "" if baseline is None else f"; against float32 means against result {baseline[0]}, in points"
    yield table(
        columns, [_row(each, baseline) for each in group], f"Results of the same images, classes and prompts{against}"
    )
    if len(group) > 1:
        yield _estimates(group)
    published = dict.fromkeys(
        (str(report.provenance.model), each) for _number, report in group for each in published_figures(report)
    )
    if published:
        yield from _published(published)


def float_baseline(group: Sequence[Numbered]) -> Numbered | None:
    """Return the first float32 result of a group of one model that is not emulated, with exact preprocessing if there is one.

    The others are compared with it.
    """
    if len({model_of(each) for each in group}) > 1:
        return None
    floats = [each for each in group if is_float_reference(each[1])]
    floats.sort(key=lambda each: each[1].fast_preprocess)
    return floats[0] if floats and len(group) > 1 else None


def model_of(numbered: Numbered) -> tuple[str, str | int]:
    """Return what results of one model have in common: its name and the digest of its weights; without that their number."""
    number, report = numbered
    return str(report.provenance.model), report.weights_digest or number


def is_float_reference(report: AccuracyReport) -> bool:
    """Return whether others may be compared with a result: it is in float32 and not emulated."""
    return report.provenance.precision is Precision.FORCE_FLOAT32 and not report.provenance.emulated


def _row(numbered: Numbered, baseline: Numbered | None) -> tuple[str, ...]:
    number, report = numbered
    origin, interval = report.provenance, report.top1_interval
    against = []
    if baseline is not None:
        points = 100 * (report.top1 - baseline[1].top1)
        against = ["itself" if baseline[0] == number else f"{points:+.2f}" if round(points, 2) else "0.00"]
    return (
        f"{number}{emulated_mark(origin.emulated)}",
        describe_arithmetic(report),
        fraction_text(report.top1),
        fraction_text(interval.low),
        fraction_text(interval.high),
        "none" if report.top5 is None else fraction_text(report.top5),
        *against,
        origin.target,
        Name(str(origin.model)),
    )


def _estimates(group: Sequence[Numbered]) -> Figure:
    estimates = [
        Estimate(
            f"{number}  {describe_arithmetic(report)}",
            report.top1,
            report.top1_interval.low,
            report.top1_interval.high,
            report.provenance.emulated,
        )
        for number, report in group
    ]
    return estimates_figure("Top-1", "result", estimates)


def describe_arithmetic(report: AccuracyReport) -> str:
    """Return the precision of a result, and whether its preprocessing was not exact."""
    precision = report.provenance.precision
    text = "several precisions" if precision is None else precision.value
    return f"{text} with fast preprocessing" if report.fast_preprocess else text


def _published(found: Iterable[tuple[str, Published]]) -> Iterator[Block]:
    """Yield what was published about models, and each source once."""
    rows = [
        (
            each.who,
            each.arithmetic,
            fraction_text(each.top1),
            "" if each.top5 is None else fraction_text(each.top5),
            Name(model),
        )
        for model, each in found
    ]
    yield table(
        (*words("who", "arithmetic"), *figures("top-1", "top-5"), *words("model")),
        rows,
        "Published by others for the same weights and images; not measured here",
    )
    for who, source in dict.fromkeys((each.who, each.source) for _model, each in found):
        yield Paragraph(f"Source of {who}: {source}. Other prompts or preprocessing give other figures.")


def _details(report: AccuracyReport, thumbnails: Thumbnails) -> Iterator[Block]:
    facts = accuracy_facts(report)
    del facts["model"]  # in the heading
    if report.provenance.emulated:
        del facts["speed"]
    yield Facts(tuple(facts.items()))
    if report.calibration_overlap:
        yield Paragraph("The bundle was calibrated with some of these images: the figures are too high.", warning=True)
    if report.skipped:
        rows = [(Name(each.id), Name(each.reason)) for each in report.skipped[:_MOST_CLASSES]]
        skipped = table(
            words("image", "reason"), rows, f"{counted(len(report.skipped), 'image')} that could not be read"
        )
        yield Folded("Images that could not be read", (skipped,))
    yield from _classes(report)
    yield from _mistakes(report, thumbnails)
    yield from _reliability(report)


def _classes(report: AccuracyReport) -> Iterator[Block]:
    hardest = hardest_classes(report)
    if len(hardest) <= _ALL_SHOWN:
        yield _class_table(report, len(hardest), "Top-1 by class, the hardest first")
    else:
        yield _class_table(report, _HARDEST, f"Top-1 of the {_HARDEST} hardest of {len(hardest):,} classes")
        most = min(len(hardest), _MOST_CLASSES)
        title = f"All {most:,} classes" if most == len(hardest) else f"The {most:,} hardest of {len(hardest):,} classes"
        yield Folded(title, (_class_table(report, most, "Top-1 by class, the hardest first"),))


def _class_table(report: AccuracyReport, count: int, caption: str) -> Table:
    shown = hardest_classes(report)[:count]
    rows = [(Name(name), images, top1) for name, images, top1 in map(class_cells, shown)]
    return table(CLASS_COLUMNS, rows, caption, (2, [row.top1 for row in shown]))


def _mistakes(report: AccuracyReport, thumbnails: Thumbnails) -> Iterator[Block]:
    pairs = tuple(
        (
            each.class_name,
            each.predicted,
            each.images,
            tuple(thumbnails.photo(report.dataset, report.split, key) for key in each.examples),
        )
        for each in report.confusions[:_PAIRS]
    )
    if pairs:
        yield Mistakes("Pairs of classes that were confused most often", pairs)
        if not any(photo.address for *_names, photos in pairs for photo in photos):
            withheld = report.dataset in thumbnails.withheld
            searched = f" (in {CIFAR100_VARIABLE} and the cache)" if report.dataset == "cifar100" else ""
            missing = f"they were not found on the machine that wrote this page{searched}, or were left out"
            why = _OUTSIDE if withheld else missing
            yield Paragraph(f"The images are not shown: {why}.")
    elif report.top1 == 1:
        yield Paragraph("Every image was classified correctly.")


def _reliability(report: AccuracyReport) -> Iterator[Block]:
    bins = report.confidence_bins
    if not bins:
        yield Paragraph("No reliability diagram: the report was written by an older clipmlu, without the bins.")
        return
    rows = [_bin_row(each) for each in bins]
    columns = (*words("confidence"), *figures("images", "mean confidence", "accuracy", "95 % from", "to"))
    largest = max(bins, key=lambda each: each.images)
    caption = f"Calibration error {report.expected_calibration_error:.4f}: mean of |accuracy - mean confidence|, weighted by images"
    yield Figure(
        f"Reliability in {len(bins)} bins of equal width, calibration error {report.expected_calibration_error:.4f}",
        "Accuracy of the images in each interval of confidence, with its 95 % interval at the mean confidence; on the dashed "
        "diagonal confidence equals accuracy. Below: the number of images, of which most, "
        f"{largest.images:,}, are at {largest.low:.3f} to {largest.high:.3f}.",
        draw_reliability([_bin(each) for each in bins]),
        table(columns, rows, caption),
        report.provenance.emulated,
    )


def _bin(each: ConfidenceBin) -> Bin:
    if each.mean_confidence is None or not each.correct <= each.images:  # without images; or in a file that was changed
        return Bin(each.low, each.high, 0, None, None, None)
    interval = wilson_interval(each.correct, each.images)
    confidence = each.mean_confidence
    return Bin(each.low, each.high, each.images, each.correct / each.images, (interval.low, interval.high), confidence)


def _bin_row(each: ConfidenceBin) -> tuple[str, ...]:
    found = _bin(each)
    numbers = ("", "", "", "")
    if found.accuracy is not None and found.interval is not None and found.confidence is not None:
        numbers = tuple(fraction_text(value) for value in (found.confidence, found.accuracy, *found.interval))  # type: ignore[assignment]
    return (f"{each.low:.3f} to {each.high:.3f}", f"{each.images:,}", *numbers)


def accuracy_figure(report: AccuracyReport) -> MainFigure:
    """Return top-1 with its interval, in per cent."""
    interval = report.top1_interval
    low, high = (fraction_text(end, 2, percent=True).removesuffix(" %") for end in (interval.low, interval.high))
    return MainFigure("Top-1", fraction_text(report.top1, 2, percent=True), f"95 %: {low} to {high}")
