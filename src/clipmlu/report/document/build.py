"""From reports to the document about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clipmlu._version import __version__
from clipmlu.backends.provenance import Command, Provenance
from clipmlu.bundle.manifest import emulated_mark
from clipmlu.display import counted
from clipmlu.jobs.state import JobState
from clipmlu.magicmind.mm_run import MmRunReport
from clipmlu.measure.accuracy.report import AccuracyReport
from clipmlu.measure.compare.compare import ComparisonReport
from clipmlu.measure.machine import Machine
from clipmlu.measure.retrieval.report import RetrievalReport
from clipmlu.measure.speed.speed import SpeedReport
from clipmlu.report.document.accuracy import accuracy_figure, accuracy_sections
from clipmlu.report.document.blocks import (
    Block,
    Commands,
    Document,
    Facts,
    Highlight,
    MainFigure,
    Name,
    Paragraph,
    Section,
    marked,
    table,
)
from clipmlu.report.document.comparison import comparison_figure, comparison_sections
from clipmlu.report.document.retrieval import retrieval_figure, retrieval_sections
from clipmlu.report.document.speed import speed_figure, speed_sections, tool_figure, tool_sections
from clipmlu.report.document.story import tell_story
from clipmlu.report.document.thumbnails import Thumbnails
from clipmlu.report.document.tuning import search_figure, search_sections, sweep_figure, sweep_sections
from clipmlu.report.inputs import AnyReport, Input
from clipmlu.report.job import state_facts
from clipmlu.report.speed import describe_machine
from clipmlu.report.tables import figures, words
from clipmlu.tune.run_report import RunReport
from clipmlu.tune.sweep_report import SweepReport
from clipmlu.tune.trial import SearchReport

_MOST_HIGHLIGHTS = 8
MOST_DETAILED = 40
"""Results that a document shows in detail: each has figures and tables, some 50 kB and a tenth of a second."""
_KINDS: dict[type, str] = {
    AccuracyReport: "accuracy",
    RunReport: "run",
    RetrievalReport: "retrieval",
    SpeedReport: "speed",
    MmRunReport: "speed, mm_run",
    SweepReport: "sweep",
    ComparisonReport: "comparison",
    SearchReport: "search",
    JobState: "bulk job",
}


def build_document(inputs: Sequence[Input], title: str | None, thumbnails: Thumbnails, command: Command) -> Document:
    """Return the document about reports.

    Args:
        inputs: the reports, at least one. The first ``MOST_DETAILED`` are shown in detail, the others in the tables only.
        title: its title; None for one that names the models.
        thumbnails: finds the images of mistakes.
        command: the command line that writes the document again.
    """
    numbered = [(number, each.report) for number, each in enumerate(inputs, 1)]
    emulated = any(is_emulated(report) for _number, report in numbered)
    sections = (
        _summary(inputs),
        *_measured(numbered, thumbnails),
        *_runs(numbered),
        _environment(numbered),
        _repeating(inputs, command),
    )
    models = list(dict.fromkeys(_model(report) for _number, report in numbered))
    named = models[0] if len(models) == 1 else f"{len(models)} models"
    highlights = tuple(_highlights(numbered))
    return Document(
        title=f"Measurements of {named}" if title is None else title,
        highlights=highlights,
        sections=tuple(map(marked, sections)),
        emulated=emulated,
        generator=f"clipmlu {__version__}",
    )


def is_emulated(report: AnyReport) -> bool:
    """Return whether the emulated vendor SDK was used for some of a report."""
    if isinstance(report, ComparisonReport):
        return report.emulated
    return _provenance(report).emulated


def _provenance(report: AnyReport) -> Provenance:
    if isinstance(report, ComparisonReport):
        return report.measured.provenance
    return report.accuracy.provenance if isinstance(report, RunReport) else report.provenance


def _model(report: AnyReport) -> str:
    return str(_provenance(report).model)


def _figure(report: AnyReport) -> MainFigure:
    """Return the most important number of a report."""
    match report:
        case AccuracyReport():
            return accuracy_figure(report)
        case RunReport():
            return accuracy_figure(report.accuracy)
        case RetrievalReport():
            return retrieval_figure(report)
        case SpeedReport():
            return speed_figure(report)
        case MmRunReport():
            return tool_figure(report)
        case SweepReport():
            return sweep_figure(report)
        case ComparisonReport():
            return comparison_figure(report)
        case SearchReport():
            return search_figure(report)
        case _:
            return MainFigure(
                "Bulk job", counted(report.finished_images, "image"), f"done, {report.errors:,} unreadable"
            )


def _highlights(numbered: Sequence[tuple[int, AnyReport]]) -> Iterator[Highlight]:
    for number, report in numbered[:_MOST_HIGHLIGHTS]:
        found, emulated = _figure(report), is_emulated(report)
        if found.value:
            origin = _provenance(report)
            precision = "" if origin.precision is None else f", {origin.precision.value}"
            label = found.label if len(numbered) == 1 else f"{found.label}, result {number}{precision}"
            yield Highlight(label, found.value, found.note, emulated)


def _summary(inputs: Sequence[Input]) -> Section:
    rows = []
    for number, each in enumerate(inputs, 1):
        origin, found = _provenance(each.report), _figure(each.report)
        rows.append(
            (
                f"{number}{emulated_mark(is_emulated(each.report))}",
                _KINDS[type(each.report)],
                ", ".join(filter(None, (found.label, found.value, found.note))),
                "several" if origin.precision is None else origin.precision.value,
                origin.target,
                Name(str(origin.model)),
                Name(each.name),
            )
        )
    columns = words("result", "kind", "main figure", "precision", "target", "model", "file")
    story = tell_story([(number, each.report) for number, each in enumerate(inputs, 1)])
    if len(inputs) > _MOST_HIGHLIGHTS:
        story.append(f"The boxes above show the first {_MOST_HIGHLIGHTS} of {len(inputs):,} results.")
    blocks: list[Block] = [*map(Paragraph, story), table(columns, rows, "What this report is made of")]
    if len(inputs) > MOST_DETAILED:
        blocks.append(
            Paragraph(
                f"This page shows the first {MOST_DETAILED} of {len(inputs):,} results in detail, and the others in its tables only. "
                "To see the details of others, write a page of them: clipmlu report FILE..."
            )
        )
    return Section("Results", tuple(blocks))


def _measured(numbered: Sequence[tuple[int, AnyReport]], thumbnails: Thumbnails) -> Iterator[Section]:
    """Yield the sections about the results: tables of all, and the details of the first ones."""
    detailed = numbered[:MOST_DETAILED]
    accuracies = [
        (number, report.accuracy if isinstance(report, RunReport) else report)
        for number, report in numbered
        if isinstance(report, AccuracyReport | RunReport)
    ]
    if accuracies:
        yield from accuracy_sections(accuracies, thumbnails, MOST_DETAILED)
    retrievals = [(number, report) for number, report in numbered if isinstance(report, RetrievalReport)]
    if retrievals:
        yield from retrieval_sections(retrievals, MOST_DETAILED)
    yield from _chapter("Speed", detailed, SpeedReport, MmRunReport)
    yield from _chapter("Sweep: accuracy against speed", detailed, SweepReport)
    yield from _chapter("Comparison", detailed, ComparisonReport)
    yield from _chapter("Search of a precision", detailed, SearchReport)
    yield from _chapter("Bulk jobs", detailed, JobState)


def _chapter(title: str, numbered: Sequence[tuple[int, AnyReport]], *kinds: type) -> Iterator[Section]:
    chosen = [(number, report) for number, report in numbered if isinstance(report, kinds)]
    if not chosen:
        return
    yield Section(title, (), emulated=all(is_emulated(report) for _number, report in chosen))
    for number, report in chosen:
        match report:
            case SpeedReport():
                yield from speed_sections(number, report)
            case MmRunReport():
                yield from tool_sections(number, report)
            case SweepReport():
                yield from sweep_sections(number, report)
            case ComparisonReport():
                yield from comparison_sections(number, report)
            case SearchReport():
                yield from search_sections(number, report)
            case JobState():
                facts = tuple((name, str(value)) for name, value in state_facts(report))
                title = Name(f"Result {number}: {report.provenance.model}")
                yield Section(title, (Facts(facts),), level=3, emulated=report.provenance.emulated)


def _runs(numbered: Sequence[tuple[int, AnyReport]]) -> Iterator[Section]:
    runs = [(number, report) for number, report in numbered if isinstance(report, RunReport)]
    if runs:
        rows = [
            (
                f"{number}{emulated_mark(is_emulated(report))}",
                step.name,
                Name(step.result),
                "" if step.name == "eval" and is_emulated(report) else f"{step.elapsed_s:.1f}",
                Name(step.path),
            )
            for number, report in runs
            for step in report.steps
        ]
        columns = (*words("result", "step", "outcome"), *figures("seconds"), *words("where"))
        yield Section("Steps of the run", (table(columns, rows, "Export, compilation and evaluation"),))


def _environment(numbered: Sequence[tuple[int, AnyReport]]) -> Section:
    provenances = [(number, _provenance(report)) for number, report in numbered]
    tools = sorted({tool for _number, origin in provenances for tool in origin.tool_versions})
    blocks: list[Block] = []
    machines = [(number, machine) for number, report in numbered if (machine := _machine(report)) is not None]
    if machines:
        texts = list(dict.fromkeys(describe_machine(machine) for _number, machine in machines))
        several = len(texts) > 1
        blocks.append(
            Facts(
                tuple(
                    (f"machine of result {number}" if several else "machine", _describe(machine))
                    for number, machine in (machines if several else machines[:1])
                )
            )
        )
    versions = [
        (str(number), *(Name(origin.tool_versions.get(tool, "")) for tool in tools)) for number, origin in provenances
    ]
    blocks.append(table(words("result", *tools), versions, "Versions of the software"))
    digests = [
        (f"{number}{emulated_mark(origin.emulated)}", origin.bundle_digest, _cards(origin))
        for number, origin in provenances
    ]
    blocks.append(table(words("result", "digest of the bundle", "cards"), digests, "Bundles"))
    return Section("Environment", tuple(blocks))


def _cards(origin: Provenance) -> str:
    return ", ".join(map(str, origin.devices)) or "none"


def _machine(report: AnyReport) -> Machine | None:
    return report.machine if isinstance(report, SpeedReport | SweepReport) else None


def _describe(machine: Machine) -> str:
    memory = "" if machine.memory_bytes is None else f", {machine.memory_bytes / 2**30:.0f} GiB of memory"
    return f"{describe_machine(machine)}{memory}, {machine.system}, Python {machine.python}"


def _command(report: AnyReport) -> Command | None:
    if isinstance(report, JobState):
        return None
    if isinstance(report, MmRunReport):
        return Command(arguments=report.command, environment={}) if report.command else None
    return report.accuracy.command if isinstance(report, RunReport) else report.command


def _repeating(inputs: Sequence[Input], own: Command) -> Section:
    blocks: list[Block] = []
    commands = [(number, command) for number, each in enumerate(inputs, 1) if (command := _command(each.report))]
    if commands:
        blocks.append(Paragraph("The commands as they were given, in the folder of their relative paths:"))
        lines = [line for number, command in commands for line in (f"# result {number}", str(command))]
        blocks.append(Commands(tuple(lines)))
    unknown = [str(number) for number, each in enumerate(inputs, 1) if _command(each.report) is None]
    if unknown:
        blocks.append(
            Paragraph(
                f"No command is recorded of result {', '.join(unknown)}: it was made from Python, by an older clipmlu or by a bulk job."
            )
        )
    blocks.append(Paragraph("This report itself:"))
    blocks.append(Commands((str(own),)))
    files = [(str(number), Name(each.name), each.sha256) for number, each in enumerate(inputs, 1) if each.sha256]
    if files:
        blocks.append(table(words("result", "file", "SHA-256"), files, "The files of this report"))
    return Section("How to repeat it", tuple(blocks))
