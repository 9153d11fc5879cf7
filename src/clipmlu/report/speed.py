"""Speed reports on the terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from clipmlu.bundle.manifest import emulated_mark
from clipmlu.display import counted
from clipmlu.report.tables import Column, describe_provenance, figures, print_facts, print_sentences, print_table, words

if TYPE_CHECKING:
    from clipmlu.magicmind.mm_run import Latency, MmRunReport
    from clipmlu.measure.machine import Machine
    from clipmlu.measure.speed.bottleneck import PipelineReport, StageCost
    from clipmlu.measure.speed.loads import ScenarioResult
    from clipmlu.measure.speed.speed import SpeedReport, TowerSpeed


STAGE_COLUMNS = (*words("stage"), *figures("ms/image alone", "share", "images/s it allows", "ms/image together"))


def show_speed(report: SpeedReport) -> None:
    """Print a speed report on stdout."""
    mark = emulated_mark(report.provenance.emulated)
    print_facts(speed_facts(report).items())
    for speed in report.towers:
        rows = [(f"{result.scenario}{mark}", *scenario_cells(result)) for result in speed.scenarios]
        print_table(scenario_columns(speed), rows, title=f"{speed.tower} graph")
        print_sentences(line + mark for result in speed.scenarios for line in probe_lines(result))
    if report.pipeline is not None:
        _show_pipeline(report.pipeline, mark)


def speed_facts(report: SpeedReport) -> dict[str, str]:
    """Return the facts of a speed report, by name, for people."""
    mark = emulated_mark(report.provenance.emulated)
    shape = f"batch {report.batch_size}" + ("" if report.dynamic_shape else ", smaller ones are padded")
    threads = str(report.threads) if report.threads else "as the runtime decides"
    memory = "not known" if report.peak_memory_bytes is None else _mebibytes(report.peak_memory_bytes)
    if report.worker_peak_memory_bytes is not None:
        memory += f", worker {_mebibytes(report.worker_peak_memory_bytes)}"
    kernels = {each.kernels for each in report.towers} - {""}
    over_http = report.transport == "http"
    return {
        "model": describe_provenance(report.provenance),
        **({"transport": f"http, up to {report.in_flight} requests at a time"} if over_http else {}),
        "shape": shape if over_http else f"{shape}, {report.in_flight} in flight, threads: {threads}",
        "machine": describe_machine(report.machine),
        **({"kernels": "; ".join(sorted(kernels))} if kernels else {}),
        "start-up": _start_of_server(report) + mark
        if over_http
        else f"open {report.open_s:.3f} s, "
        + ", ".join(
            f"load {each.tower} {each.load_s:.3f} s, first batch {each.first_batch_s:.3f} s" for each in report.towers
        )
        + mark,
        "peak memory": memory.replace("not known, worker", "server") + mark,
    }


def _start_of_server(report: SpeedReport) -> str:
    server = f"server {report.open_s:.3f} s" if report.open_s else "the server ran before"
    return f"{server}, first request {report.towers[0].first_batch_s:.3f} s"


def scenario_columns(speed: TowerSpeed) -> tuple[Column, ...]:
    """Return the columns of a graph's scenarios: the name of the scenario, then those of ``scenario_cells``."""
    unit = "texts/s" if speed.tower == "text" else "images/s"
    return (
        *words("scenario", "metric"),
        *figures(unit, "mean ms", "p50", "p90", "p95", "p99", "max", "queries"),
    )


def describe_machine(machine: Machine) -> str:
    """Return the facts of a machine in a line."""
    text = f"{machine.cpu}, {counted(machine.cpus, 'CPU')}"
    if machine.cores < machine.cpus:
        text += f", of which the container's quota allows {machine.cores:g}"
    if machine.physical_cores is not None and machine.physical_cores < machine.cpus:
        text += f" on {machine.physical_cores} cores with hyper-threads"
    return ", ".join([text, *(machine.instructions or ())])


def scenario_cells(result: ScenarioResult) -> Iterator[str]:
    """Yield the texts of a scenario, without its name."""
    per_second = result.texts_per_second if result.images_per_second is None else result.images_per_second
    names = {"queries_per_second": "queries/s", "samples_per_second": "samples/s"}
    if result.metric in names:
        metric = "no rate is within the bound" if result.value is None else f"{result.value:.1f} {names[result.metric]}"
    else:
        metric = f"{result.metric.partition('_')[0]} {result.value:.3f} ms"
    yield metric
    yield "" if per_second is None else f"{per_second:.1f}"
    each = result.latency
    numbers = [] if each is None else [each.mean_ms, each.p50_ms, each.p90_ms, each.p95_ms, each.p99_ms, each.max_ms]
    yield from (f"{number:.3f}" if number < 100 else f"{number:.1f}" for number in numbers)
    yield from ("" for _ in range(6 - len(numbers)))
    yield f"{result.queries} x {result.samples_per_query}"


def probe_lines(result: ScenarioResult) -> Iterator[str]:
    """Yield a sentence for each rate that the server scenario tried."""
    for probe in result.probes:
        verdict = "within" if probe.within_bound else "not within"
        yield (
            f"server: {probe.queries_per_second:.1f} queries/s: p99 {probe.p99_ms:.3f} ms, {verdict} "
            f"{result.latency_bound_ms:g} ms ({probe.queries} queries)"
        )


def _show_pipeline(pipeline: PipelineReport, mark: str) -> None:
    heading, *rest = STAGE_COLUMNS
    print_table(
        (dataclasses.replace(heading, heading=f"{heading.heading}{mark}"), *rest),
        [(f"{stage.replace('_', ' ')}{mark}", *stage_cells(cost)) for stage, cost in pipeline.stages.items()],
        title=pipeline_title(pipeline),
    )
    print_sentences(pipeline_sentences(pipeline, mark))


def pipeline_title(pipeline: PipelineReport) -> str:
    """Return the title of the table of stages."""
    kind = "drawn photo" if pipeline.drawn else "file"
    return f"from {counted(pipeline.files, kind)} to embeddings, {counted(pipeline.workers, 'worker')}"


def pipeline_sentences(pipeline: PipelineReport, mark: str) -> Iterator[str]:
    """Yield the rate, the verdict and the advice, each with a mark."""
    skipped = f" ({pipeline.skipped} skipped)" if pipeline.skipped else ""
    yield f"pipeline: {pipeline.images_per_second:.1f} images/s over {counted(pipeline.images, 'image')}{mark}{skipped}"
    yield f"verdict: {pipeline.verdict.text}{mark}"
    yield from (f"advice: {sentence}{mark}" for sentence in pipeline.advice)


def stage_cells(cost: StageCost) -> Iterator[str]:
    """Yield the texts of a stage, without its name."""
    together = cost.together_seconds_per_image
    yield f"{cost.seconds_per_image * 1e3:.3f}"
    yield f"{cost.share:.0%}"
    yield f"{cost.images_per_second:.1f}"
    yield "" if together is None else f"{together * 1e3:.3f}"


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"


def show_tool(report: MmRunReport) -> None:
    """Print the figures of the vendor's ``mm_run`` on stdout."""
    print_facts(tool_facts(report).items())
    for summary in report.summaries:
        rows = [(stage, *latency_cells(each)) for stage, each in summary.latencies.items()]
        print_table(tool_columns(), rows, title=f"latency, {counted(summary.iterations, 'batch')}")


def tool_facts(report: MmRunReport) -> dict[str, str]:
    """Return the facts of the vendor's tool, by name, for people."""
    rate = report.images_per_second if report.images_per_second is not None else report.texts_per_second
    unit = "images/s" if report.images_per_second is not None else "texts/s"
    return {
        "model": f"{describe_provenance(report.provenance)}, {report.tower} graph, batch {report.batch_size}",
        "throughput": f"{'not known' if rate is None else f'{rate:.1f} {unit}'} ({report.iterations_per_second:.2f} batches/s)",
        "tool": ", ".join(dict.fromkeys([report.tool, *(f"{each.format} format" for each in report.summaries)])),
        "tool's own qps": ", ".join(f"{summary.tool_qps:g}" for summary in report.summaries)
        + " (as printed: rows of its largest input)",
    }


def tool_columns() -> tuple[Column, ...]:
    """Return the columns of the tool's stages: the stage, then those of ``latency_cells``."""
    return (*words("stage, ms"), *figures("mean", "median", "p90", "p95", "p99", "min", "max"))


def latency_cells(each: Latency) -> Iterator[str]:
    """Yield the texts of a stage, without its name."""
    numbers = (each.mean_ms, each.median_ms, each.p90_ms, each.p95_ms, each.p99_ms, each.min_ms, each.max_ms)
    return (f"{number:g}" for number in numbers)
