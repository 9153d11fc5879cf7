"""Progress: rates, remaining time, what limits the speed, and where it is shown."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from clipmlu.cli._progress import ProgressCounts, ProgressView, describe_seconds
from clipmlu.clock import Stage, StageTotal
from clipmlu.measure.speed.limit import PipelineSetup
from clipmlu.measure.speed.load import LoadSum, PipelineLoad

CARD = PipelineSetup(workers=4, devices=1, cores=4, threads=4, shares_cores=False)
CPU = PipelineSetup(workers=4, devices=1, cores=4, threads=4, shares_cores=True)
ONE = PipelineSetup(workers=1, devices=1, cores=4, threads=4, shares_cores=True)


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def _load(setup: PipelineSetup, images: int = 100, seconds: float = 10.0, **stages: float) -> PipelineLoad:
    totals: dict[Stage, StageTotal] = {name: StageTotal(spent, images) for name, spent in stages.items()}  # type: ignore[misc]
    return PipelineLoad(images=images, seconds=seconds, stages=totals, setup=setup)


def test_rate_remaining_time_and_errors_are_those_of_this_run() -> None:
    clock = Clock()
    counts = ProgressCounts("embedding", clock)
    counts.start(1000, 400)
    assert counts.line() == "embedding: 400 of 1000 images"
    for _ in range(10):
        clock.seconds += 1
        counts.add(images=20)
    counts.add(errors=1)
    assert counts.images_per_second == pytest.approx(20)
    assert counts.line() == "embedding: 600 of 1000 images, 20 s left, 20.0 images/s, 1 error"


def test_the_rate_follows_the_last_minutes() -> None:
    clock = Clock()
    counts = ProgressCounts("embedding", clock)
    counts.start(None, 0)
    for rate in (100, 10):
        for _ in range(300):
            clock.seconds += 1
            counts.add(images=rate)
    assert counts.images_per_second == pytest.approx(10, rel=0.1)


def test_shards_are_counted_where_the_number_of_images_is_not_known() -> None:
    counts = ProgressCounts("embedding", Clock())
    counts.start(7, 2, unit="shards")
    counts.add(shards=1, images=50)
    assert counts.line().startswith("embedding: 3 of 7 shards, ")


def test_what_limits_the_speed_is_said_in_a_few_words() -> None:
    for loads, expected in (
        ([_load(CARD, decode=38.0, compute=2.0)], "the host prepares: 95%, the card waits: 20% busy"),
        ([_load(CARD, decode=4.0, compute=9.0)], "the card computes: 90%, the host waits: 10% busy"),
        # Two workers: their seconds add up, and so do those of their stages.
        ([_load(CARD, decode=38.0, compute=2.0)] * 2, "the host prepares: 95%, the card waits: 20% busy"),
        ([_load(ONE, decode=8.0, compute=1.0)], "the host prepares: 80%, the model waits: 10% busy"),
        ([_load(CPU, decode=10.0, compute=7.5)], "the CPU: 25% preparing, 75% computing"),
        ([], None),
    ):
        total = LoadSum()
        for load in loads:
            total.add(load)
        assert total.describe() == expected


def test_lines_without_a_terminal_are_rare(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with ProgressView("embedding", clock=clock) as view:
        view.start(100_000)
        for _ in range(1000):
            clock.seconds += 0.125
            view.add(images=10, load=_load(CARD, 10, 0.125, decode=0.475, compute=0.025))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    limit = "the host prepares: 95%, the card waits: 20% busy"
    assert lines[0] == f"embedding: 2400 of 100000 images, 20 min left, 80.0 images/s; {limit}"


def test_short_runs_print_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressView("embedding", 10) as view:
        view.add(images=10)
    assert capsys.readouterr().err == ""


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_with_rate_and_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal: Any = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    clock = Clock()
    with ProgressView("embedding", clock=clock) as view:
        view.start(100)
        for _ in range(5):
            clock.seconds += 1
            view.add(images=10, load=_load(CPU, 10, 1.0, decode=1.0, compute=0.75))
    shown = terminal.getvalue()
    assert "50/100" in shown
    assert "10.0 images/s; the CPU: 25% preparing, 75% computing" in shown


def test_durations_have_units() -> None:
    assert [describe_seconds(value) for value in (0.4, 99, 600, 11_100)] == ["0 s", "99 s", "10 min", "3 h 5 min"]
