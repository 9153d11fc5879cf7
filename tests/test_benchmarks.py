"""What the benchmarks report while they run."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from conftest import REPOSITORY


@pytest.fixture
def progress(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that prints progress; the benchmarks are no package."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import _progress

    return _progress


def test_each_run_that_ends_gives_the_time_left_from_the_last_run_of_each_side(progress: ModuleType) -> None:
    times: Iterator[float] = iter([0.0, 10.0, 12.0, 20.0, 21.0, 31.0])
    lines: list[str] = []
    report = progress.Progress(["slow", "fast", "broken", "slow", "fast", "broken"], lambda: next(times), lines.append)
    report.step("slow", "0.3 images/s")  # 10 s
    report.step("fast", "24.0 images/s")  # 2 s
    report.drop("broken", "the package 'torch' is not installed")  # after 8 s, which count for nobody
    report.step("fast", "24.1 images/s")  # 1 s
    report.step("slow", "0.3 images/s")  # 10 s
    assert lines == [
        "[1/6] slow: 0.3 images/s; about 50 s left",
        "[2/6] fast: 24.0 images/s; about 24 s left",
        "left out: broken: the package 'torch' is not installed",
        "[3/4] fast: 24.1 images/s; about 10 s left",
        "[4/4] slow: 0.3 images/s; about 0 s left",
    ]


def test_long_times_are_minutes(progress: ModuleType) -> None:
    times: Iterator[float] = iter([0.0, 90.0])
    lines: list[str] = []
    progress.Progress(["side"] * 3, lambda: next(times), lines.append).step("side", "done")
    assert lines == ["[1/3] side: done; about 3.0 min left"]
