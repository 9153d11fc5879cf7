"""The four load scenarios of MLPerf Inference, run on one graph of a bundle.

Loads and metrics follow the "Scenarios" table of the MLPerf Inference rules (mlcommons, inference_policies,
``inference_rules.adoc``) and LoadGen (mlcommons, inference, ``loadgen``). Only the scenarios are the same: results of
this module are not MLPerf results, whose rules require far longer runs, other data sets and LoadGen itself.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Literal, NamedTuple, Protocol

from clipmlu.specs import Spec

ScenarioName = Literal["single-stream", "multi-stream", "server", "offline"]

QUERIES_PER_STREAM = 8
"""Samples of a multi-stream query (LoadGen's ``multi_stream_samples_per_query``)."""


class Pending(Protocol):
    """A batch in flight."""

    def result(self) -> Any:
        """Wait for the batch."""


class Graph(Protocol):
    """One graph on one card, with samples."""

    def submit(self, first: int, rows: int) -> Pending:
        """Start one batch: ``rows`` samples from number ``first`` on, cyclically."""


class Timer:
    """The clock of a run, in seconds; tests replace it by one that they control."""

    def now(self) -> float:
        """Return seconds since a fixed time."""
        return time.perf_counter()

    def sleep_until(self, moment: float) -> None:
        """Sleep until a time."""
        if (seconds := moment - self.now()) > 0:
            time.sleep(seconds)


class Limits(NamedTuple):
    """Smallest number of queries and smallest number of seconds of a measurement."""

    queries: int
    seconds: float

    def reached(self, queries: int, seconds: float) -> bool:
        """Return whether both limits are reached."""
        return queries >= self.queries and seconds >= self.seconds


class Run(NamedTuple):
    """The result of a run.

    Attributes:
        latencies: latency of each answered query in seconds.
        samples: number of answered samples.
        seconds: time from the start to the last answer.
    """

    latencies: list[float]
    samples: int
    seconds: float


class LatencyStatistics(Spec, frozen=True, kw_only=True):
    """Latencies of many queries, in milliseconds."""

    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


def milliseconds(seconds: float) -> float:
    """Convert seconds to milliseconds, rounded to microseconds."""
    return round(seconds * 1e3, 3)


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Return the element at position ``count * percent / 100``, from 0 and rounded down, without interpolation.

    LoadGen uses the same rule (``PerformanceSummary::ProcessLatencies``).

    Args:
        ordered: at least one number, smallest first.
        percent: 0..99.
    """
    return ordered[len(ordered) * percent // 100]


def latency_statistics(latencies: Sequence[float]) -> LatencyStatistics:
    """Return the statistics of at least one latency in seconds."""
    ordered = sorted(latencies)
    return LatencyStatistics(
        mean_ms=milliseconds(math.fsum(ordered) / len(ordered)),
        p50_ms=milliseconds(percentile(ordered, 50)),
        p90_ms=milliseconds(percentile(ordered, 90)),
        p95_ms=milliseconds(percentile(ordered, 95)),
        p99_ms=milliseconds(percentile(ordered, 99)),
        max_ms=milliseconds(ordered[-1]),
    )


def run_streams(
    graphs: Sequence[Graph], samples: int, batch_size: int, limits: Limits, timer: Timer | None = None
) -> Run:
    """Run single-stream (one sample) or multi-stream (several): each query starts after the previous answer.

    Args:
        graphs: one for each card; batches go to them in turn.
        samples: samples of one query.
        batch_size: largest number of samples of a batch; the batches of a larger query are in flight together.
        limits: number of queries and time.
        timer: the clock.
    """
    timer = timer or Timer()
    latencies: list[float] = []
    number = 0
    start = timer.now()
    while True:
        begin = timer.now()
        pending = []
        for first in range(0, samples, batch_size):
            graph = graphs[number % len(graphs)]
            pending.append(graph.submit(number * batch_size, min(batch_size, samples - first)))
            number += 1
        for batch in pending:
            batch.result()
        end = timer.now()
        latencies.append(end - begin)
        if limits.reached(len(latencies), end - start):
            return Run(latencies, len(latencies) * samples, end - start)


def run_offline(
    graphs: Sequence[Graph], batch_size: int, in_flight: int, limits: Limits, timer: Timer | None = None
) -> Run:
    """Run offline: all samples are available at once, and every card has ``in_flight`` full batches at any time.

    Returns:
        The run; its latencies are those of batches, including the wait for earlier batches.
    """
    timer = timer or Timer()
    lock = threading.Lock()
    latencies: list[float] = []
    begun = 0
    start = timer.now()
    last = start

    def serve(graph: Graph, stop: threading.Event) -> None:
        nonlocal begun, last
        while not stop.is_set():
            with lock:
                begin = timer.now()
                if limits.reached(begun, begin - start):
                    return
                number, begun = begun, begun + 1
            graph.submit(number * batch_size, batch_size).result()
            end = timer.now()
            with lock:
                last = max(last, end)
                latencies.append(end - begin)

    run_in_flight(graphs, in_flight, serve)
    return Run(latencies, len(latencies) * batch_size, last - start)


def run_in_flight(graphs: Sequence[Graph], in_flight: int, serve: Callable[[Graph, threading.Event], None]) -> None:
    """Run ``serve`` on a thread for every batch that may be in flight; the first failure ends them all."""
    stop = threading.Event()
    with ThreadPoolExecutor(len(graphs) * in_flight, thread_name_prefix="clipmlu-bench") as pool:
        futures = [pool.submit(serve, graph, stop) for graph in graphs for _ in range(in_flight)]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            stop.set()
