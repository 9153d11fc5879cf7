"""The load scenarios on graphs whose times are known, with a clock that moves only when somebody waits."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from clipmlu.errors import SessionError
from clipmlu.measure.speed.scenarios import (
    Limits,
    Run,
    Timer,
    latency_statistics,
    percentile,
    run_offline,
    run_streams,
)
from clipmlu.measure.speed.server import poisson_arrivals, run_server, search_rate, server_queries


class Clock(Timer):
    """Time as the tests tell it."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def sleep_until(self, moment: float) -> None:
        self.time = max(self.time, moment)


class FakeGraph:
    """A graph that takes ``seconds`` for a batch, whatever its size, one batch after the other."""

    def __init__(self, clock: Clock, seconds: Sequence[float]) -> None:
        self.clock = clock
        self.seconds = itertools.cycle(seconds)
        self.batches: list[int] = []
        self.free = 0.0

    def submit(self, first: int, rows: int) -> FakeBatch:
        self.batches.append(rows)
        self.free = max(self.free, self.clock.now()) + next(self.seconds)
        return FakeBatch(self.clock, self.free)


class FakeBatch:
    def __init__(self, clock: Clock, done: float) -> None:
        self.clock = clock
        self.done = done

    def result(self) -> None:
        self.clock.sleep_until(self.done)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize("count", [1, 2, 7, 99, 100, 101, 250])
def test_percentiles_are_those_that_loadgen_picks(count: int) -> None:
    """LoadGen: sorted[count * fraction], cut to a whole number; here in exact arithmetic, over the numbers 0, 1, 2, ..."""
    numbers = [float(number) for number in range(count)]
    for percent in (50, 90, 95, 99):
        assert percentile(numbers, percent) == count * percent // 100
        above = sum(number > percentile(numbers, percent) for number in numbers)
        assert above <= count * (100 - percent) / 100, "no more than that share is slower"


def test_statistics_are_in_milliseconds_rounded_to_microseconds() -> None:
    latencies = np.random.default_rng(3).permutation(np.arange(1, 201)) * 1.23456789e-4
    found = latency_statistics(latencies.tolist())
    # The positions 100, 180, 190 and 198 from 0 hold the 101st, 181st, 191st and 199th smallest.
    expected = [round(rank * 0.123456789, 3) for rank in (101, 181, 191, 199, 200)]
    assert [found.p50_ms, found.p90_ms, found.p95_ms, found.p99_ms, found.max_ms] == expected
    assert found.mean_ms == pytest.approx(100.5 * 0.123456789, abs=5e-4)


def test_single_stream_runs_one_query_after_the_other_until_both_limits_are_reached(clock: Clock) -> None:
    graph = FakeGraph(clock, [0.010, 0.030])
    run = run_streams([graph], 1, 4, Limits(3, 0.1), clock)
    np.testing.assert_allclose(run.latencies, [0.010, 0.030, 0.010, 0.030, 0.010, 0.030])
    assert (run.samples, run.seconds) == (6, pytest.approx(0.120))
    assert graph.batches == [1] * 6
    assert len(run_streams([graph], 1, 4, Limits(9, 0.0), clock).latencies) == 9


def test_multi_stream_cuts_a_query_into_batches_that_are_in_flight_together(clock: Clock) -> None:
    graph = FakeGraph(clock, [0.010])
    run = run_streams([graph], 8, 3, Limits(2, 0.0), clock)
    assert graph.batches == [3, 3, 2] * 2
    np.testing.assert_allclose(run.latencies, [0.030, 0.030])
    assert run.samples == 16


def test_batches_of_one_query_are_spread_over_the_cards(clock: Clock) -> None:
    graphs = [FakeGraph(clock, [0.010]), FakeGraph(clock, [0.010])]
    run = run_streams(graphs, 8, 4, Limits(3, 0.0), clock)
    np.testing.assert_allclose(run.latencies, [0.010] * 3)
    assert [graph.batches for graph in graphs] == [[4] * 3] * 2


def test_offline_counts_samples_of_full_batches(clock: Clock) -> None:
    graph = FakeGraph(clock, [0.020])
    run = run_offline([graph], 16, 1, Limits(5, 0.05), clock)
    assert graph.batches == [16] * 5
    assert run.samples / run.seconds == pytest.approx(16 / 0.020)


def test_offline_keeps_as_many_batches_in_flight_as_asked() -> None:
    """No batch is answered before another one is there."""
    meeting = threading.Barrier(4, timeout=10)

    class Meeting:
        def submit(self, first: int, rows: int) -> Meeting:
            return self

        def result(self) -> None:
            meeting.wait()

    run = run_offline([Meeting(), Meeting()], 2, 2, Limits(8, 0.0))
    assert run.samples == 16


def test_failure_of_one_batch_ends_the_run() -> None:
    class Broken:
        def submit(self, first: int, rows: int) -> Broken:
            return self

        def result(self) -> None:
            raise SessionError("the card is lost")

    with pytest.raises(SessionError, match="the card is lost"):
        run_offline([Broken(), Broken()], 2, 2, Limits(10**9, 1e9))


def test_poisson_arrivals_have_exponential_gaps_of_the_right_mean() -> None:
    arrivals = np.array(poisson_arrivals(50.0, 20_000, seed=1))
    gaps = np.diff(arrivals)
    assert (gaps > 0).all()
    # Mean and standard deviation of an exponential distribution are equal; 3 sigma of the mean of 20,000 is 2 %.
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.025)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.05)
    assert (gaps > 1 / 50).mean() == pytest.approx(math.exp(-1), abs=0.015)
    assert poisson_arrivals(50.0, 5, seed=1) == poisson_arrivals(50.0, 9, seed=1)[:5]
    assert poisson_arrivals(50.0, 5, seed=1) != poisson_arrivals(50.0, 5, seed=2)


def test_server_takes_what_waits_and_counts_from_the_arrival(clock: Clock) -> None:
    graph = FakeGraph(clock, [0.010])
    run = run_server([graph], [0.0, 0.001, 0.002, 0.003, 0.004, 0.030], batch_size=3, in_flight=1, timer=clock)
    # 0 alone until 10 ms, then the three oldest of the four that wait, then the last one of these, then the late one.
    assert graph.batches == [1, 3, 1, 1]
    np.testing.assert_allclose(run.latencies, [0.010, 0.019, 0.018, 0.017, 0.026, 0.010])
    assert (run.samples, run.seconds) == (6, pytest.approx(0.040))


def test_server_without_batches_is_the_queue_of_the_textbook(clock: Clock) -> None:
    """Lindley's recursion: a query waits for what the one before it left over of its own wait and service."""
    arrivals, service = poisson_arrivals(80.0, 400, seed=5), 0.010
    run = run_server([FakeGraph(clock, [service])], arrivals, batch_size=1, in_flight=1, timer=clock)
    expected, wait = [], 0.0
    for gap in np.diff(arrivals, prepend=arrivals[0]):
        wait = max(0.0, wait + service - gap) if expected else 0.0
        expected.append(wait + service)
    np.testing.assert_allclose(run.latencies, expected, atol=1e-9)


def test_server_gives_up_when_the_bound_cannot_be_held_any_more(clock: Clock) -> None:
    arrivals = [0.001 * number for number in range(1000)]
    run = run_server([FakeGraph(clock, [0.010])], arrivals, batch_size=1, in_flight=1, bound=0.025, timer=clock)
    # Query n (from 0) takes 10 ms + n x 9 ms, so that all but two are late; ten of 1000 may be, less the percentile itself.
    assert len(run.latencies) == 2 + 10
    assert percentile(sorted(run.latencies), 99) > 0.025


def test_server_answers_every_query_on_several_cards_at_once() -> None:
    class Counting:
        def __init__(self) -> None:
            self.rows: list[int] = []

        def submit(self, first: int, rows: int) -> Counting:
            self.rows.append(rows)
            return self

        def result(self) -> None:
            return None

    graphs = [Counting(), Counting()]
    run = run_server(graphs, poisson_arrivals(5000.0, 500, seed=0), batch_size=4, in_flight=2)
    assert len(run.latencies) == sum(sum(graph.rows) for graph in graphs) == 500
    assert max(rows for graph in graphs for rows in graph.rows) <= 4
    assert min(run.latencies) >= 0


@pytest.mark.parametrize("start", [1.0, 60.0, 700.0])
def test_search_finds_the_capacity_of_a_queue(start: float) -> None:
    """Queries come at equal distances and each takes 10 ms: up to 100 a second none waits, above it they pile up."""

    def run_at(rate: float, seed: int) -> Run:
        clock = Clock()
        arrivals = [number / rate for number in range(2000)]
        return run_server([FakeGraph(clock, [0.010])], arrivals, 1, 1, 0.012, clock)

    found = search_rate(run_at, 0.012, start)
    assert found.rate is not None
    assert 100 / 1.05 <= found.rate <= 100.1
    assert found.run is not None
    assert len(found.run.latencies) == 2000
    for probe in found.probes:
        assert probe.within_bound == (probe.queries_per_second <= 100.1)
        assert probe.within_bound == (probe.p99_ms <= 12)
    assert found.probes[-1].queries_per_second == found.rate


def test_rate_that_is_not_confirmed_goes_down() -> None:
    def run_at(rate: float, seed: int) -> Run:
        """The first arrivals are kind: 100 a second; all others allow 91."""
        return Run([0.001 if rate <= (100 if seed == 0 else 91) else 0.1] * 100, 100, 1.0)

    found = search_rate(run_at, 0.01, 100.0)
    assert found.rate == pytest.approx(100 * 0.95**2)
    assert [probe.within_bound for probe in found.probes[-3:]] == [False, False, True]


def test_bound_below_a_single_query_has_no_rate() -> None:
    found = search_rate(lambda rate, seed: Run([0.010] * 100, 100, 1.0), 0.005, 64.0)
    assert (found.rate, found.run) == (None, None)
    assert not any(probe.within_bound for probe in found.probes)


def test_server_runs_are_long_enough_for_their_percentile() -> None:
    assert server_queries(1000.0, Limits(10, 2.0), 0.01) == 2000
    assert server_queries(1000.0, Limits(10, 2.0), 0.5) == 10_000, (
        "5 % too many pile up to half a second in ten seconds"
    )
    assert server_queries(1.0, Limits(10, 2.0), 0.01) == 100
    assert server_queries(1.0, Limits(150, 2.0), 0.01) == 150
