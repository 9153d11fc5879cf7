"""Measuring one load scenario on one graph: warm-up, run and figures."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Literal

from clipmlu.arguments import check_fields
from clipmlu.backends.several_devices import check_devices
from clipmlu.errors import OptionError
from clipmlu.measure.speed.scenarios import (
    QUERIES_PER_STREAM,
    Graph,
    LatencyStatistics,
    Limits,
    Run,
    ScenarioName,
    latency_statistics,
    milliseconds,
    run_offline,
    run_streams,
)
from clipmlu.measure.speed.server import ServerProbe, poisson_arrivals, run_server, search_rate, server_queries
from clipmlu.specs import NaturalInt, PositiveInt, Spec, TowerName
from clipmlu.steps import SECONDS, StartStep, no_steps

DEFAULT_SCENARIOS: tuple[ScenarioName, ...] = ("single-stream", "offline")

Metric = Literal["p90_latency_ms", "p99_latency_ms", "queries_per_second", "samples_per_second"]

_METRICS: dict[ScenarioName, Metric] = {
    "single-stream": "p90_latency_ms",
    "multi-stream": "p99_latency_ms",
    "server": "queries_per_second",
    "offline": "samples_per_second",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedOptions:
    """Options of a speed measurement; validated on construction.

    Attributes:
        tower: name of the graph; None for the image tower, or the only graph of the joint layout.
        scenarios: scenarios in the order of measurement.
        batch_size: samples of a batch; None for the bundle's own.
        warmup_ms: milliseconds before each scenario that are not measured; at least one query runs.
        duration_ms: shortest measuring time of each scenario in milliseconds, and of each rate of the server scenario,
            there at least 20 times the latency bound.
        iterations: smallest number of measured queries (offline: batches).
        threads: CPU threads for one batch; 0 for the runtime's default.
        workers: threads that read and prepare images in the pipeline; None for all CPUs.
        devices: indices of the cards, or ``"all"``; batches are distributed over them.
        in_flight: batches on a card at a time.
        latency_bound_ms: latency bound of the server scenario, which requires it.
        queries_per_stream: samples of a multi-stream query.
        stages: also measure the pipeline from image files to embeddings.
        images: files for that; None to draw some.
        max_pixels: largest width x height of such a file; None for 178,956,970.
        seed: random seed of inputs and arrivals.
    """

    tower: Literal["image", "text", "both", "joint"] | None = None
    scenarios: tuple[ScenarioName, ...] = DEFAULT_SCENARIOS
    batch_size: PositiveInt | None = None
    warmup_ms: NaturalInt = 500
    duration_ms: NaturalInt = 10_000
    iterations: PositiveInt = 10
    threads: NaturalInt = 0
    workers: PositiveInt | None = None
    devices: tuple[NaturalInt, ...] | Literal["all"] = (0,)
    in_flight: PositiveInt = 2
    latency_bound_ms: float | None = None
    queries_per_stream: PositiveInt = QUERIES_PER_STREAM
    stages: bool = True
    images: tuple[str | os.PathLike[str], ...] | None = None
    max_pixels: PositiveInt | None = None
    seed: NaturalInt = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_devices(self.devices)
        if ("server" in self.scenarios) != (self.latency_bound_ms is not None):
            raise OptionError("the server scenario and a latency bound go together; give both or none")
        if self.latency_bound_ms is not None and not 0 < self.latency_bound_ms < math.inf:
            raise OptionError(f"latency bound is {self.latency_bound_ms:g} ms; expected more than 0")

    @property
    def limits(self) -> Limits:
        """Number of queries and time of a measurement."""
        return Limits(self.iterations, self.duration_ms / 1e3)


class ScenarioResult(Spec, frozen=True, kw_only=True):
    """The measurement of one scenario on one graph.

    Attributes:
        scenario: name of the scenario.
        metric: the metric of the scenario in MLPerf's rules.
        value: that metric; None if no rate met the server scenario's bound.
        queries: number of answered queries; batches in the offline scenario.
        samples_per_query: samples of each; of each batch in the offline scenario.
        padding_per_query: rows of padding in each because of a static shape (server: at most).
        elapsed_s: seconds from the start to the last answer.
        images_per_second: answered images per second; None for the text tower.
        texts_per_second: the same for the text tower; None for others.
        latency: latency of a query; in the offline scenario of a batch, including the wait for the previous batch.
        latencies_ms: all latencies, rounded to microseconds.
        latency_bound_ms: latency bound of the server scenario.
        probes: rates that the server scenario tried; empty if a single query already exceeds the bound.
    """

    scenario: ScenarioName
    metric: Metric
    value: float | None
    queries: int
    samples_per_query: int
    padding_per_query: int
    elapsed_s: float
    images_per_second: float | None
    texts_per_second: float | None
    latency: LatencyStatistics | None
    latencies_ms: tuple[float, ...]
    latency_bound_ms: float | None = None
    probes: tuple[ServerProbe, ...] = ()

    @property
    def figure(self) -> str:
        """The metric of the scenario with its unit, in a few words."""
        if self.value is None:
            return "no rate met the latency bound"
        if self.metric.endswith("_latency_ms"):
            return f"{self.metric.partition('_')[0]} {self.value:.2f} ms"
        return f"{self.value:.1f} {self.metric.partition('_')[0]}/s"


def measure_scenario(
    graphs: Sequence[Graph],
    tower: TowerName,
    scenario: ScenarioName,
    batch_size: int,
    options: SpeedOptions,
    *,
    static_rows: int = 1,
    on_step: StartStep = no_steps,
) -> ScenarioResult:
    """Measure one scenario.

    Args:
        graphs: one graph, opened on each card.
        tower: name of the graph.
        scenario: name of the scenario.
        batch_size: largest number of samples of a batch.
        options: time limits and options of the scenario.
        static_rows: rows to a multiple of which batches are padded; 1 for a dynamic shape.
        on_step: shows the warm-up and the measurement.
    """
    run, rate, probes = run_scenario(graphs, scenario, batch_size, options, on_step)
    samples = {"multi-stream": options.queries_per_stream, "offline": batch_size}.get(scenario, 1)
    latency = None if run is None else latency_statistics(run.latencies)
    throughput = None if run is None else run.samples / run.seconds
    values: dict[ScenarioName, float | None] = {"server": rate, "offline": throughput}
    if latency is not None:
        values |= {"single-stream": latency.p90_ms, "multi-stream": latency.p99_ms}
    return ScenarioResult(
        scenario=scenario,
        metric=_METRICS[scenario],
        value=values[scenario],
        queries=0 if run is None else len(run.latencies),
        samples_per_query=samples,
        padding_per_query=-samples % static_rows,
        elapsed_s=0.0 if run is None else run.seconds,
        images_per_second=None if tower == "text" else throughput,
        texts_per_second=throughput if tower == "text" else None,
        latency=latency,
        latencies_ms=() if run is None else tuple(milliseconds(seconds) for seconds in run.latencies),
        latency_bound_ms=options.latency_bound_ms if scenario == "server" else None,
        probes=probes,
    )


def run_scenario(
    graphs: Sequence[Graph],
    scenario: ScenarioName,
    batch_size: int,
    options: SpeedOptions,
    on_step: StartStep = no_steps,
) -> tuple[Run | None, float | None, tuple[ServerProbe, ...]]:
    """Warm up, then run one scenario.

    Returns:
        The run, the rate of the server scenario, and the rates that it tried; the first two are None if no rate met
        its bound.
    """
    warmup = Limits(1, options.warmup_ms / 1e3)
    if scenario == "server":
        return _run_server(graphs, batch_size, options, on_step)
    samples = 1 if scenario == "single-stream" else options.queries_per_stream

    def run(limits: Limits) -> Run:
        if scenario == "offline":
            return run_offline(graphs, batch_size, options.in_flight, limits)
        return run_streams(graphs, samples, batch_size, limits)

    with on_step("warming up", total=warmup.seconds, unit=SECONDS):
        run(warmup)
    with on_step("measuring", total=options.limits.seconds, unit=SECONDS):
        return run(options.limits), None, ()


def _run_server(
    graphs: Sequence[Graph], batch_size: int, options: SpeedOptions, on_step: StartStep
) -> tuple[Run | None, float | None, tuple[ServerProbe, ...]]:
    assert options.latency_bound_ms is not None, "checked with the options"
    bound = options.latency_bound_ms / 1e3
    with on_step("warming up", total=options.warmup_ms / 1e3, unit=SECONDS):
        run_offline(graphs, batch_size, options.in_flight, Limits(1, options.warmup_ms / 1e3))
    alone = run_streams(graphs, 1, batch_size, Limits(3, 0.0))
    if min(alone.latencies) > bound:
        return None, None, ()

    def run_at(rate: float, seed: int) -> Run:
        arrivals = poisson_arrivals(rate, server_queries(rate, options.limits, bound), options.seed + seed)
        return run_server(graphs, arrivals, batch_size, options.in_flight, bound)

    # Single queries one after the other show the rate without batches; the search starts at half of it.
    with on_step("searching for the highest rate"):
        found = search_rate(run_at, bound, 0.5 * alone.samples / alone.seconds)
    return found.run, found.rate, found.probes
