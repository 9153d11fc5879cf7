"""The server scenario of MLPerf Inference: queries that come at random, and the highest rate that a bound allows.

See ``scenarios`` for where the rules come from.
"""

from __future__ import annotations

import bisect
import math
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from clipmlu.measure.speed.scenarios import Graph, Limits, Run, Timer, at_every_place, milliseconds, percentile
from clipmlu.specs import Spec

_LEAST_QUERIES = 100  # below it, the 99th percentile is the slowest query of all
_RATE_TOLERANCE = 0.05
_MOST_DOUBLINGS, _MOST_HALVINGS = 16, 3  # so much slower, a query that waits for others is rare
_BOUNDS_PER_RUN = 20
_CONFIRMATIONS = 5


class ServerProbe(Spec, frozen=True, kw_only=True):
    """One rate that was tried in the server scenario.

    Attributes:
        queries_per_second: the rate.
        queries: how many were answered.
        p99_ms: 99th percentile of their latencies.
        within_bound: whether that is within the bound. A run that cannot hold it any more is ended early.
    """

    queries_per_second: float
    queries: int
    p99_ms: float
    within_bound: bool


def poisson_arrivals(rate: float, queries: int, seed: int) -> list[float]:
    """When queries come: a Poisson process, whose gaps follow an exponential distribution.

    Args:
        rate: queries a second, on average.
        queries: how many.
        seed: of the gaps.

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
    """Server: queries of one sample come when they come, and are answered in their order.

    Whenever a card has room for a batch, all queries that wait are taken together, up to the batch size. A latency counts
    from the moment when its query was to come, so that waiting in line is part of it.

    Args:
        graphs: one for each card.
        arrivals: see ``poisson_arrivals``.
        batch_size: queries of a batch at most.
        in_flight: batches on a card at a time.
        bound: seconds. When so many queries took longer that the 99th percentile must lie above, no more are taken.
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
            with line:  # whoever sleeps in here waits for the next query; the others wait for the one after it
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

    at_every_place(graphs, in_flight, serve)
    return Run(latencies, len(latencies), last - start)


class RateSearch(NamedTuple):
    """The highest rate found, its run, and every rate that was tried; the first two are None when none held the bound."""

    rate: float | None
    run: Run | None
    probes: tuple[ServerProbe, ...]


def search_rate(
    run_at: Callable[[float, int], Run], bound: float, start: float, *, tolerance: float = _RATE_TOLERANCE
) -> RateSearch:
    """Find the highest rate at which the 99th percentile of the latencies stays within a bound.

    Doubles the rate until the bound is broken (or halves it until it holds, a few times), halves the interval between until its ends
    are within ``tolerance`` of each other, and confirms the lower one with other arrivals; where that fails, the rate goes
    down by ``tolerance`` and is tried again, a few times.

    Args:
        run_at: measures at a rate (queries a second) with arrivals of a seed.
        bound: seconds.
        start: the first rate, above 0.
        tolerance: relative.
    """
    probes: list[ServerProbe] = []

    def holds(rate: float, seed: int = 0) -> Run | None:
        run = run_at(rate, seed)
        tail = percentile(sorted(run.latencies), 99)
        within = tail <= bound
        probes.append(
            ServerProbe(
                queries_per_second=rate, queries=len(run.latencies), p99_ms=milliseconds(tail), within_bound=within
            )
        )
        return run if within else None

    low, high = _bracket(lambda rate: holds(rate) is not None, start)
    if low is None:
        return RateSearch(None, None, tuple(probes))
    while high / low > 1 + tolerance:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) is not None else (low, middle)
    for attempt in range(_CONFIRMATIONS):
        if (confirmed := holds(low, attempt + 1)) is not None:
            return RateSearch(low, confirmed, tuple(probes))
        low *= 1 - tolerance
    return RateSearch(None, None, tuple(probes))


def server_queries(rate: float, limits: Limits, bound: float) -> int:
    """How many queries to send at a rate.

    A rate that is too high by a share ``x`` breaks a bound of ``bound`` seconds only after ``bound / x``: a run lasts long
    enough to notice 5 %.
    """
    seconds = max(limits.seconds, _BOUNDS_PER_RUN * bound)
    return max(limits.queries, _LEAST_QUERIES, math.ceil(rate * seconds))


def _bracket(holds: Callable[[float], bool], start: float) -> tuple[float | None, float]:
    """A rate that holds and one that does not, one twice the other; the same rate twice when the highest one holds."""
    rate = start
    if holds(rate):
        for _ in range(_MOST_DOUBLINGS):
            if not holds(rate * 2):
                return rate, rate * 2
            rate *= 2
        return rate, rate
    for _ in range(_MOST_HALVINGS):
        rate /= 2
        if holds(rate):
            return rate, rate * 2
    return None, rate
