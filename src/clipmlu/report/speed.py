"""Speed reports on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from clipmlu.bundle.manifest import emulated_mark
from clipmlu.report.tables import describe_provenance, figures, print_facts, print_sentences, print_table, words

if TYPE_CHECKING:
    from clipmlu.magicmind.mm_run import Latency, MmRunReport
    from clipmlu.measure.machine import Machine
    from clipmlu.measure.speed.bottleneck import PipelineReport, StageCost
    from clipmlu.measure.speed.loads import ScenarioResult
    from clipmlu.measure.speed.speed import SpeedReport


def show_speed(report: SpeedReport) -> None:
    """Print a speed report on stdout."""
    mark = emulated_mark(report.provenance.emulated)
    shape = f"batch {report.batch_size}" + ("" if report.dynamic_shape else ", smaller ones are padded")
    threads = str(report.threads) if report.threads else "as the runtime decides"
    memory = "not known" if report.peak_memory_bytes is None else _mebibytes(report.peak_memory_bytes)
    if report.worker_peak_memory_bytes is not None:
        memory += f", worker {_mebibytes(report.worker_peak_memory_bytes)}"
    kernels = {each.kernels for each in report.towers} - {""}
    facts = {
        "model": describe_provenance(report.provenance),
        "shape": f"{shape}, {report.in_flight} in flight, threads: {threads}",
        "machine": _describe_machine(report.machine),
        **({"kernels": "; ".join(sorted(kernels))} if kernels else {}),
        "start-up": f"open {report.open_s:.3f} s, "
        + ", ".join(
            f"load {each.tower} {each.load_s:.3f} s, first batch {each.first_batch_s:.3f} s" for each in report.towers
        )
        + mark,
        "peak memory": memory + mark,
    }
    print_facts(facts.items())
    for speed in report.towers:
        unit = "texts/s" if speed.tower == "text" else "images/s"
        print_table(
            (*words("scenario", "metric"), *figures(unit, "mean ms", "p50", "p90", "p95", "p99", "max", "queries")),
            [(f"{result.scenario}{mark}", *_scenario_cells(result)) for result in speed.scenarios],
            title=f"{speed.tower} graph",
        )
        print_sentences(line + mark for result in speed.scenarios for line in _probe_lines(result))
    if report.pipeline is not None:
        _show_pipeline(report.pipeline, mark)


def _describe_machine(machine: Machine) -> str:
    text = f"{machine.cpu}, {machine.cpus} CPUs"
    if machine.cores < machine.cpus:
        text += f", of which the container's quota allows {machine.cores:g}"
    if machine.physical_cores is not None and machine.physical_cores < machine.cpus:
        text += f" on {machine.physical_cores} cores with hyper-threads"
    return ", ".join([text, *(machine.instructions or ())])


def _scenario_cells(result: ScenarioResult) -> Iterator[str]:
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


def _probe_lines(result: ScenarioResult) -> Iterator[str]:
    for probe in result.probes:
        verdict = "within" if probe.within_bound else "not within"
        yield (
            f"server: {probe.queries_per_second:.1f} queries/s: p99 {probe.p99_ms:.3f} ms, {verdict} "
            f"{result.latency_bound_ms:g} ms ({probe.queries} queries)"
        )


def _show_pipeline(pipeline: PipelineReport, mark: str) -> None:
    kind = "drawn photos" if pipeline.drawn else "files"
    print_table(
        (*words(f"stage{mark}"), *figures("ms/image alone", "share", "images/s it allows", "ms/image together")),
        [(f"{stage.replace('_', ' ')}{mark}", *_stage_cells(cost)) for stage, cost in pipeline.stages.items()],
        title=f"from {pipeline.files} {kind} to embeddings, {pipeline.workers} workers",
    )
    skipped = f" ({pipeline.skipped} skipped)" if pipeline.skipped else ""
    print_sentences(
        (
            f"pipeline: {pipeline.images_per_second:.1f} images/s over {pipeline.images} images{mark}{skipped}",
            f"verdict: {pipeline.verdict.text}{mark}",
            *(f"advice: {sentence}{mark}" for sentence in pipeline.advice),
        )
    )


def _stage_cells(cost: StageCost) -> Iterator[str]:
    together = cost.together_seconds_per_image
    yield f"{cost.seconds_per_image * 1e3:.3f}"
    yield f"{cost.share:.0%}"
    yield f"{cost.images_per_second:.1f}"
    yield "" if together is None else f"{together * 1e3:.3f}"


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"


def show_tool(report: MmRunReport) -> None:
    """Print the figures of the vendor's ``mm_run`` on stdout."""
    rate = report.images_per_second if report.images_per_second is not None else report.texts_per_second
    unit = "images/s" if report.images_per_second is not None else "texts/s"
    facts = {
        "model": f"{describe_provenance(report.provenance)}, {report.tower} graph, batch {report.batch_size}",
        "throughput": f"{rate:.1f} {unit} ({report.iterations_per_second:.2f} batches/s)",
        "tool": f"{report.tool}, {report.summaries[0].format} format",
        "tool's own qps": ", ".join(f"{summary.tool_qps:g}" for summary in report.summaries)
        + " (as printed: rows of its largest input)",
    }
    print_facts(facts.items())
    for summary in report.summaries:
        print_table(
            (*words("stage, ms"), *figures("mean", "median", "p90", "p95", "p99", "min", "max")),
            [(stage, *_latency_cells(each)) for stage, each in summary.latencies.items()],
            title=f"latency, {summary.iterations} batches",
        )


def _latency_cells(each: Latency) -> Iterator[str]:
    numbers = (each.mean_ms, each.median_ms, each.p90_ms, each.p95_ms, each.p99_ms, each.min_ms, each.max_ms)
    return (f"{number:g}" for number in numbers)
