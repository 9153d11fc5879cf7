"""Speed in a document: scenarios, latencies, and the stages of the pipeline; never that of an emulated card."""

from __future__ import annotations

from collections.abc import Iterator

from clipmlu.clock import Stage
from clipmlu.display import counted
from clipmlu.magicmind.mm_run import MmRunReport
from clipmlu.measure.speed.bottleneck import PipelineReport, StageCost
from clipmlu.measure.speed.loads import ScenarioResult
from clipmlu.measure.speed.speed import SpeedReport, TowerSpeed
from clipmlu.report.document.blocks import (
    Block,
    Facts,
    Figure,
    Gallery,
    MainFigure,
    Name,
    Paragraph,
    Section,
    sentence,
    table,
)
from clipmlu.report.figures.speed import Bars, StageBar, count_latencies, draw_histogram, draw_stages
from clipmlu.report.speed import (
    STAGE_COLUMNS,
    latency_cells,
    pipeline_sentences,
    pipeline_title,
    probe_lines,
    scenario_cells,
    scenario_columns,
    speed_facts,
    stage_cells,
    tool_columns,
    tool_facts,
)
from clipmlu.report.tables import describe_provenance, figures

EMULATED_SPEED = (
    "The emulated vendor SDK ran this bundle. Its speed is that of an emulator on this CPU and says nothing about a card, so no "
    "rates and latencies are shown."
)


def speed_sections(number: int, report: SpeedReport) -> Iterator[Section]:
    """Yield the section of a speed report."""
    title = Name(f"Result {number}: {_plain(report)}")
    if report.provenance.emulated:
        shown = {name: value for name, value in speed_facts(report).items() if name in ("shape", "machine")}
        blocks: tuple[Block, ...] = (Facts(tuple(shown.items())), Paragraph(EMULATED_SPEED, warning=True))
        yield Section(title, blocks, level=3, emulated=True)
        return
    yield Section(title, tuple(_blocks(report)), level=3)


def _plain(report: SpeedReport | MmRunReport) -> str:
    return describe_provenance(report.provenance).removesuffix(" (emulated)")


def _blocks(report: SpeedReport) -> Iterator[Block]:
    yield Facts(tuple(speed_facts(report).items()))
    for tower in report.towers:
        rows = [(result.scenario, *scenario_cells(result)) for result in tower.scenarios]
        caption = (
            f"{sentence(tower.tower)} graph, batches of {report.batch_size}, in the load scenarios of MLPerf Inference"
        )
        yield table(scenario_columns(tower), rows, caption)
        yield from (Paragraph(line) for result in tower.scenarios for line in probe_lines(result))
        histograms = tuple(_histogram(tower, result) for result in tower.scenarios if result.latencies_ms)
        if histograms:
            yield Gallery(histograms)
    if report.pipeline is not None:
        yield from _pipeline(report.pipeline)


def _histogram(tower: TowerSpeed, result: ScenarioResult) -> Figure:
    bars = count_latencies(result.latencies_ms)
    each = result.latency
    marks = [] if each is None else [("p50", each.p50_ms), ("p90", each.p90_ms), ("p99", each.p99_ms)]
    percentiles = ", ".join(f"{name} {value:.3f} ms" for name, value in marks)
    what = "batch" if result.scenario == "offline" else "query"
    return Figure(
        f"Latency of a {what}, {tower.tower} graph, {result.scenario}",
        f"How many of {counted(len(result.latencies_ms), 'measurement')} took how long, with the median and the 90th and 99th percentile: {percentiles}."
        + (f" {bars.above:,} took longer than {bars.edges[-1]:.3f} ms, where the drawing ends." if bars.above else ""),
        draw_histogram(bars, marks, "batches" if what == "batch" else "queries"),
        table(figures("from ms", "to ms", "measurements"), _bar_rows(bars), "Latencies, counted"),
    )


def _bar_rows(bars: Bars) -> list[tuple[str, ...]]:
    edges = zip(bars.edges[:-1], bars.edges[1:], bars.counts, strict=True)
    rows = [(f"{low:.3f}", f"{high:.3f}", f"{count:,}") for low, high, count in edges]
    return [*rows, *([(f"{bars.edges[-1]:.3f}", "", f"{bars.above:,}")] if bars.above else [])]


def _pipeline(pipeline: PipelineReport) -> Iterator[Block]:
    stages = pipeline.stages.items()
    slowest = max(pipeline.stages, key=lambda stage: pipeline.stages[stage].seconds_per_image)
    caption = sentence(pipeline_title(pipeline))
    yield Figure(
        "What each stage costs",
        "Milliseconds that one image takes in each stage: measured alone, and while all stages run. Alone most takes "
        f"{_stage_name(slowest)}, {1e3 * pipeline.stages[slowest].seconds_per_image:.3f} ms.",
        draw_stages([_stage_bar(stage, cost) for stage, cost in stages]),
        table(STAGE_COLUMNS, [(_stage_name(stage), *stage_cells(cost)) for stage, cost in stages], caption),
    )
    yield from (Paragraph(f"{sentence(line.rstrip('.'))}.") for line in pipeline_sentences(pipeline, ""))


def _stage_name(stage: Stage) -> str:
    return stage.replace("_", " ")


def _stage_bar(stage: Stage, cost: StageCost) -> StageBar:
    together = cost.together_seconds_per_image
    return StageBar(_stage_name(stage), 1e3 * cost.seconds_per_image, None if together is None else 1e3 * together)


def tool_sections(number: int, report: MmRunReport) -> Iterator[Section]:
    """Yield the section of a measurement by the vendor's tool, which runs real cards only."""
    blocks: list[Block] = [Facts(tuple(tool_facts(report).items()))]
    for summary in report.summaries:
        rows = [(stage, *latency_cells(each)) for stage, each in summary.latencies.items()]
        blocks.append(
            table(tool_columns(), rows, f"Latency as mm_run prints it, {counted(summary.iterations, 'batch')}")
        )
    yield Section(Name(f"Result {number}: {_plain(report)}, by mm_run"), tuple(blocks), level=3)


def speed_figure(report: SpeedReport) -> MainFigure:
    """Return the throughput of the first graph offline, or else of its fastest scenario; none for an emulated card."""
    label = "Throughput"
    if report.provenance.emulated:
        return MainFigure(label, "", "no speed: emulated")
    found = [
        (result.scenario == "offline", rate, "texts/s" if tower.tower == "text" else "images/s", tower, result)
        for tower in report.towers[:1]
        for result in tower.scenarios
        if (rate := result.images_per_second or result.texts_per_second) is not None
    ]
    if not found:
        return MainFigure(label, "", "no rate was measured")
    how = "through HTTP" if report.transport == "http" else f"batch {report.batch_size}"
    _offline, rate, unit, tower, result = max(found, key=lambda each: each[:2])
    return MainFigure(label, f"{rate:,.1f} {unit}", f"{tower.tower} graph, {result.scenario}, {how}")


def tool_figure(report: MmRunReport) -> MainFigure:
    """Return the throughput that the vendor's tool measured."""
    rate, unit = report.images_per_second, "images/s"
    if rate is None:
        rate, unit = report.texts_per_second, "texts/s"
    return MainFigure(
        "Throughput", "" if rate is None else f"{rate:,.1f} {unit}", f"batch {report.batch_size}, by mm_run"
    )
