"""What the results of a document say, in a few sentences: accuracy against float32, speed, and what to measure next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clipmlu.bundle.manifest import emulated_mark
from clipmlu.display import counted
from clipmlu.magicmind.mm_run import MmRunReport
from clipmlu.measure.accuracy.report import AccuracyReport
from clipmlu.measure.compare.compare import ComparisonReport
from clipmlu.measure.retrieval.report import RetrievalReport
from clipmlu.measure.speed.loads import ScenarioResult
from clipmlu.measure.speed.speed import SpeedReport
from clipmlu.measure.statistics import fraction_text
from clipmlu.report.document.accuracy import (
    describe_arithmetic,
    describe_prompts,
    float_baseline,
    group_by_data,
    is_float_reference,
    model_of,
)
from clipmlu.report.document.tuning import describe_row, front_rows
from clipmlu.specs import Precision
from clipmlu.tune.run_report import RunReport
from clipmlu.tune.sweep_report import SweepReport
from clipmlu.tune.trial import SearchReport

_MOST = 3  # groups, and results of each, that have a sentence
_WITH_ACCURACY = (AccuracyReport, RunReport, RetrievalReport, SweepReport, ComparisonReport, SearchReport)
_WITH_SPEED = (SpeedReport, MmRunReport, SweepReport)


def tell_story(numbered: Sequence[tuple[int, object]]) -> list[str]:
    """Return sentences about the reports, each with its number in the document; none about kinds that have one figure only."""
    accuracies = [
        (number, report.accuracy if isinstance(report, RunReport) else report)
        for number, report in numbered
        if isinstance(report, AccuracyReport | RunReport)
    ]
    speeds = [(number, report) for number, report in numbered if isinstance(report, SpeedReport)]
    sweeps = [(number, report) for number, report in numbered if isinstance(report, SweepReport)]
    groups = _by_data_and_model(accuracies)
    told = [*_accuracy(groups), *_speed(speeds), *_sweep(sweeps)]
    return [*told, *_next(groups, [report for _number, report in numbered])]


def _by_data_and_model(reports: Sequence[tuple[int, AccuracyReport]]) -> list[list[tuple[int, AccuracyReport]]]:
    """Return the reports of one model about equal images, classes and prompts together."""
    found: dict[object, list[tuple[int, AccuracyReport]]] = {}
    for place, group in enumerate(group_by_data(reports)):
        for each in group:
            found.setdefault((place, model_of(each)), []).append(each)
    return list(found.values())


def _accuracy(groups: Sequence[Sequence[tuple[int, AccuracyReport]]]) -> Iterator[str]:
    for group in groups[:_MOST]:
        baseline = float_baseline(group)
        number, first = group[0] if baseline is None else baseline
        interval = first.top1_interval
        unread = f" ({len(first.skipped):,} more could not be read)" if first.skipped else ""
        yield (
            f"{first.provenance.model} in {describe_arithmetic(first)} classifies {fraction_text(first.top1, 2, percent=True)} of "
            f"{counted(first.images, 'image')} correctly{unread}: {first.dataset}, {first.split}, "
            f"{describe_prompts(first)} (95 %: {_percent(interval.low)} to {_percent(interval.high)}; result {number})."
            f"{emulated_mark(first.provenance.emulated)}"
        )
        others = [each for each in group if each[0] != number]
        told = [] if baseline is None else [_against(*each, baseline) for each in others[:_MOST]]
        yield from told
        yield from _rest(len(others) - len(told), "more result", " of these images")
    yield from _rest(len(groups) - _MOST, "more group", " of results")


def _rest(left: int, noun: str, of: str = "") -> Iterator[str]:
    if left > 0:
        yield f"The tables below have {counted(left, noun)}{of}."


def _against(number: int, report: AccuracyReport, baseline: tuple[int, AccuracyReport]) -> str:
    other, first = baseline
    points = 100 * (report.top1 - first.top1)
    less = (
        "the same as" if not round(points, 2) else f"{abs(points):.2f} points {'more' if points > 0 else 'less'} than"
    )
    reference = f"result {other}" if report.provenance.precision == first.provenance.precision else "in float32"
    width = min(100 * (each.top1_interval.high - each.top1_interval.low) for each in (first, report))
    unclear = ""
    if round(points, 2) and abs(points) < width / 2:
        unclear = " The difference is smaller than the uncertainty of either figure; 'clipmlu compare' tests it image by image."
    return (
        f"In {describe_arithmetic(report)} ({report.provenance.target}, result {number}) it is {fraction_text(report.top1, 2, percent=True)}, "
        f"{less} {reference}.{unclear}{emulated_mark(report.provenance.emulated)}"
    )


def _speed(reports: Sequence[tuple[int, SpeedReport]]) -> Iterator[str]:
    real = [(number, report) for number, report in reports if not report.provenance.emulated]
    found = [(number, report, each) for number, report in real if (each := _offline(report)) is not None]
    first: dict[tuple[object, ...], tuple[int, SpeedReport, float]] = {}
    for number, report, (tower, result) in found[:_MOST]:
        rate = result.images_per_second or result.texts_per_second or 0.0
        unit = "images" if result.images_per_second else "texts"
        other, earlier, before = first.setdefault(_conditions(report, tower), (number, report, rate))
        ratio = f", {rate / before:.2f} times the rate of result {other}" if other != number and before > 0 else ""
        if ratio and earlier.provenance.bundle_digest == report.provenance.bundle_digest:
            ratio += ", which is of the same bundle"
        how = "offline, through HTTP" if report.transport == "http" else f"offline, batch {report.batch_size}"
        yield (
            f"In {_precision(report)} on {report.provenance.target} the {tower} graph of {report.provenance.model} processes "
            f"{rate:,.1f} {unit}/s ({how}, result {number}){ratio}."
        )
    yield from _rest(len(found) - _MOST, "more measurement", " of speed")
    machines = {report.machine for _number, report in real}
    if len(machines) > 1:
        yield f"The speeds are of {len(machines)} different machines, and cannot be compared: see the environment below."
    if len(real) < len(reports):
        yield f"The speed of a card is not known: the emulated SDK says nothing about it.{emulated_mark(True)}"


def _conditions(report: SpeedReport, tower: str) -> tuple[object, ...]:
    """Return what must be equal for a ratio of two rates to say something about the arithmetic or the target."""
    cards, origin = len(report.provenance.devices), report.provenance
    return (
        tower,
        report.batch_size,
        report.threads,
        report.in_flight,
        cards,
        origin.model,
        report.machine,
        report.transport,
    )


def _offline(report: SpeedReport) -> tuple[str, ScenarioResult] | None:
    return next(
        (
            (tower.tower, result)
            for tower in report.towers
            for result in tower.scenarios
            if result.scenario == "offline"
        ),
        None,
    )


def _sweep(reports: Sequence[tuple[int, SweepReport]]) -> Iterator[str]:
    for number, report in reports[:_MOST]:
        front = front_rows(report)
        if not front:
            continue
        fastest, best = front[0], max(front, key=lambda row: (row.top1 or 0.0, row.images_per_second or 0.0))
        yield f"Of the sweep of {report.provenance.model} (result {number}) the fastest is {describe_row(fastest)}." + (
            "" if best is fastest or best.top1 == fastest.top1 else f" The most accurate is {describe_row(best)}."
        )
    yield from _rest(len(reports) - _MOST, "more sweep")


def _next(groups: Sequence[Sequence[tuple[int, AccuracyReport]]], reports: Sequence[object]) -> Iterator[str]:
    """Yield what is missing for a decision."""
    lossy = [
        number
        for group in groups
        if not any(is_float_reference(report) for _number, report in group)
        for number, report in group
        if _is_lossy(report)
    ]
    if lossy:
        which = f"result {lossy[0]}" if len(lossy) == 1 else f"results {', '.join(map(str, lossy[:_MOST]))}"
        more = f" and {len(lossy) - _MOST} more" if len(lossy) > _MOST else ""
        yield (
            f"What the precision of {which}{more} costs is not shown: evaluate a bundle of the same model in force_float32 on the "
            "same images and with the same prompts as well."
        )
    accuracy = any(isinstance(each, _WITH_ACCURACY) for each in reports)
    speed = any(isinstance(each, _WITH_SPEED) for each in reports)
    if accuracy and not speed:
        yield "The speed under load was not measured: 'clipmlu bench BUNDLE --output speed.json' does."
    if speed and not accuracy:
        yield "The accuracy was not measured: 'clipmlu eval BUNDLE --dataset D --output accuracy.json' does."


def _is_lossy(report: AccuracyReport) -> bool:
    return report.provenance.precision is not Precision.FORCE_FLOAT32


def _precision(report: SpeedReport) -> str:
    precision = report.provenance.precision
    return "several precisions" if precision is None else precision.value


def _percent(fraction: float) -> str:
    return fraction_text(fraction, 2, percent=True).removesuffix(" %")
