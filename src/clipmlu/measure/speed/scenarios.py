"""The four load scenarios of MLPerf Inference, run on one graph of a bundle.

What each does and which figure it yields follows the "Scenarios" table of the MLPerf Inference rules (mlcommons,
inference_policies, ``inference_rules.adoc``) and LoadGen (mlcommons, inference, ``loadgen``). These are the scenarios only:
a result of this module is no MLPerf result, whose rules ask for far longer runs, other data sets and LoadGen itself.
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
        """Wait for it."""


class Graph(Protocol):
    """One graph on one card, with samples at hand."""

    def submit(self, first: int, rows: int) -> Pending:
        """Start one batch: ``rows`` samples from number ``first`` on, which starts again when there are no more."""


class Timer:
    """The clock of a run, in seconds; tests give one that moves only when told."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.perf_counter()

    def sleep_until(self, moment: float) -> None:
        """Return when that moment is past."""
        if (seconds := moment - self.now()) > 0:
            time.sleep(seconds)


class Limits(NamedTuple):
    """How long to measure: at least so many queries, and at least so many seconds."""

    queries: int
    seconds: float

    def reached(self, queries: int, seconds: float) -> bool:
        """Whether both are."""
        return queries >= self.queries and seconds >= self.seconds


class Run(NamedTuple):
    """What was measured.

    Attributes:
        latencies: of each query in seconds, those that were answered.
        samples: how many were answered.
        seconds: from the start to the last answer.
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
    """Seconds as milliseconds, rounded to microseconds."""
    return round(seconds * 1e3, 3)


def percentile(ordered: Sequence[float], percent: int) -> float:
    """The element at position ``count * percent / 100``, counted from 0 and rounded down, without interpolation.

    This is how LoadGen picks it (``PerformanceSummary::ProcessLatencies``).

    Args:
        ordered: at least one number, smallest first.
        percent: 0..99.
    """
    return ordered[len(ordered) * percent // 100]


def latency_statistics(latencies: Sequence[float]) -> LatencyStatistics:
    """Statistics of at least one latency in seconds."""
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
    """Single-stream (one sample) and multi-stream (several): the next query starts when the last one is answered.

    Args:
        graphs: one for each card; batches go to them in turn.
        samples: of one query.
        batch_size: samples of a batch at most; a larger query is cut, and its batches are in flight together.
        limits: how long to measure.
        timer: the clock.
    """
    timer = timer or Timer()
    latencies: list[float] = []
    turn = 0
    start = timer.now()
    while True:
        begin = timer.now()
        pending = []
        for first in range(0, samples, batch_size):
            graph = graphs[turn % len(graphs)]
            pending.append(graph.submit(turn * batch_size, min(batch_size, samples - first)))
            turn += 1
        for batch in pending:
            batch.result()
        end = timer.now()
        latencies.append(end - begin)
        if limits.reached(len(latencies), end - start):
            return Run(latencies, len(latencies) * samples, end - start)


def run_offline(
    graphs: Sequence[Graph], batch_size: int, in_flight: int, limits: Limits, timer: Timer | None = None
) -> Run:
    """Offline: all samples are there at once, and every card has ``in_flight`` full batches at any time.

    Returns:
        What was measured; the latencies are those of batches, which wait for the ones before them.
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

    at_every_place(graphs, in_flight, serve)
    return Run(latencies, len(latencies) * batch_size, last - start)


def at_every_place(graphs: Sequence[Graph], in_flight: int, serve: Callable[[Graph, threading.Event], None]) -> None:
    """Run ``serve`` on a thread for every batch that may be in flight; the first failure ends them all."""
    stop = threading.Event()
    with ThreadPoolExecutor(len(graphs) * in_flight, thread_name_prefix="clipmlu-bench") as pool:
        places = [pool.submit(serve, graph, stop) for graph in graphs for _ in range(in_flight)]
        try:
            for place in as_completed(places):
                place.result()
        finally:
            stop.set()
