"""The server scenario of MLPerf Inference: random arrivals, and the highest rate within a latency bound.

See ``scenarios`` for the source of the rules.
"""

from __future__ import annotations

import bisect
import math
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from clipmlu.measure.speed.scenarios import Graph, Limits, Run, Timer, milliseconds, percentile, run_in_flight
from clipmlu.specs import Spec

_LEAST_QUERIES = 100  # with fewer, the 99th percentile is the slowest query
_RATE_TOLERANCE = 0.05
_MOST_DOUBLINGS, _MOST_HALVINGS = 16, 3  # at such low rates queries rarely wait for others
_BOUNDS_PER_RUN = 20
_CONFIRMATIONS = 5


class ServerProbe(Spec, frozen=True, kw_only=True):
    """One rate of the server scenario's search.

    Attributes:
        queries_per_second: the rate.
        queries: number of answered queries.
        p99_ms: 99th percentile of their latencies.
        within_bound: True if that is within the bound. A run that can no longer meet it is ended early.
    """

    queries_per_second: float
    queries: int
    p99_ms: float
    within_bound: bool


def poisson_arrivals(rate: float, queries: int, seed: int) -> list[float]:
    """Return arrival times of a Poisson process, with exponentially distributed gaps.

    Args:
        rate: mean queries per second.
        queries: number of queries.
        seed: random seed of the gaps.

    Returns:
        Seconds from the start, in order.
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, queries)
    arrivals: list[float] = np.cumsum(gaps).tolist()
    return arrivals


def run_server(
    graphs: Sequence[Graph],
    arrivals: Sequence[float],
    batch_size: int,
    in_flight: int,
    bound: float = math.inf,
    timer: Timer | None = None,
) -> Run:
    """Run the server scenario: queries of one sample arrive at given times and are answered in order.

    Whenever a card can take a batch, all waiting queries are combined, up to the batch size. A latency starts at the
    arrival of its query, so that waiting is included.

    Args:
        graphs: one for each card.
        arrivals: see ``poisson_arrivals``.
        batch_size: largest number of queries of a batch.
        in_flight: batches on a card at a time.
        bound: seconds. The run ends early when so many queries took longer that the 99th percentile must exceed it.
        timer: the clock.
    """
    timer = timer or Timer()
    line, results = threading.Lock(), threading.Lock()
    latencies: list[float] = []
    may_be_late = len(arrivals) - len(arrivals) * 99 // 100 - 1
    taken = late = 0
    start = timer.now()
    last = start

    def take() -> tuple[int, int]:
        nonlocal taken
        first = taken
        timer.sleep_until(start + arrivals[first])
        here = bisect.bisect_right(arrivals, timer.now() - start)
        taken = min(max(here, first + 1), first + batch_size)
        return first, taken - first

    def serve(graph: Graph, stop: threading.Event) -> None:
        nonlocal late, last
        while not stop.is_set():
            with line:  # the thread inside sleeps until the next query; others wait for the lock
                if taken == len(arrivals) or late > may_be_late:
                    return
                first, rows = take()
            graph.submit(first, rows).result()
            end = timer.now()
            waited = [end - start - arrival for arrival in arrivals[first : first + rows]]
            with results:
                last = max(last, end)
                latencies.extend(waited)
                late += sum(seconds > bound for seconds in waited)

    run_in_flight(graphs, in_flight, serve)
    return Run(latencies, len(latencies), last - start)


class RateSearch(NamedTuple):
    """The highest rate, its run, and every rate that was tried; the first two are None if none met the bound."""

    rate: float | None
    run: Run | None
    probes: tuple[ServerProbe, ...]


def search_rate(run_at: Callable[[float, int], Run], bound: float, start: float) -> RateSearch:
    """Find the highest rate at which the 99th percentile of the latencies is within a bound.

    The search doubles the rate until the bound is exceeded (or halves it a few times until it is met), bisects the
    interval to a relative width of 5 %, and confirms the lower end with other arrivals. If the confirmation
    fails, it reduces the rate by as much and tries again, a few times.

    Args:
        run_at: measures at a rate (queries per second) with arrivals of a seed.
        bound: seconds.
        start: the first rate, above 0.
    """
    probes: list[ServerProbe] = []

    def within_bound(rate: float, seed: int = 0) -> Run | None:
        run = run_at(rate, seed)
        tail = percentile(sorted(run.latencies), 99)
        within = tail <= bound
        probes.append(
            ServerProbe(
                queries_per_second=rate, queries=len(run.latencies), p99_ms=milliseconds(tail), within_bound=within
            )
        )
        return run if within else None

    low, high = _bracket(lambda rate: within_bound(rate) is not None, start)
    if low is None:
        return RateSearch(None, None, tuple(probes))
    while high / low > 1 + _RATE_TOLERANCE:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if within_bound(middle) is not None else (low, middle)
    for attempt in range(_CONFIRMATIONS):
        if (confirmed := within_bound(low, attempt + 1)) is not None:
            return RateSearch(low, confirmed, tuple(probes))
        low *= 1 - _RATE_TOLERANCE
    return RateSearch(None, None, tuple(probes))


def server_queries(rate: float, limits: Limits, bound: float) -> int:
    """Return the number of queries at a rate.

    A rate that is too high by a share ``x`` exceeds a bound of ``bound`` seconds only after ``bound / x`` seconds: the
    run is long enough to detect 5 %.
    """
    seconds = max(limits.seconds, _BOUNDS_PER_RUN * bound)
    return max(limits.queries, _LEAST_QUERIES, math.ceil(rate * seconds))


def _bracket(within_bound: Callable[[float], bool], start: float) -> tuple[float | None, float]:
    """Return a rate that meets the bound and its double, which does not; the same rate twice if the highest one does."""
    rate = start
    if within_bound(rate):
        for _ in range(_MOST_DOUBLINGS):
            if not within_bound(rate * 2):
                return rate, rate * 2
            rate *= 2
        return rate, rate
    for _ in range(_MOST_HALVINGS):
        rate /= 2
        if within_bound(rate):
            return rate, rate * 2
    return None, rate
