"""How many CPUs there are for us, with and without a container's quota."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clipmlu import host
from clipmlu.errors import OptionError


def _arrange(root: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    """Write files of the kernel, those of control groups by their names, for a machine of 16 CPUs."""
    for name, content in files.items():
        path = root / "proc" / name if name == "meminfo" else root / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(content)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(16)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 16),
        ({"cpu.max": "max 100000\n"}, 16),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 16),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16),
        ({"cpu.max": "rubbish"}, 16),
    ],
)
def test_quota_of_the_container_counts(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _arrange(tmp_path, monkeypatch, files)
    assert host.available_cpus(tmp_path) == expected
    assert host.limited_cpus(tmp_path) == (expected if expected < 16 else 0)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"meminfo": "MemTotal: 9 kB\nMemAvailable:       4 kB\n"}, 4096),
        ({"meminfo": "MemAvailable: 4 kB\n", "memory.max": "max\n", "memory.current": "9000\n"}, 4096),
        ({"meminfo": "MemAvailable: 4 kB\n", "memory.max": "3000\n", "memory.current": "1000\n"}, 2000),
        ({"meminfo": "MemAvailable: 4 kB\n", "memory.max": "3000\n", "memory.current": "3500\n"}, 0),
        ({"meminfo": "MemAvailable: 4 kB\n", "memory.max": "90000\n", "memory.current": "1000\n"}, 4096),
    ],
)
def test_work_beyond_the_memory_of_system_and_container_is_refused(
    files: dict[str, str], expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _arrange(tmp_path, monkeypatch, files)
    assert host.available_memory(tmp_path) == expected
    if expected is None:
        host.check_memory(1 << 62, "batches", tmp_path)
    else:
        host.check_memory(expected, "batches", tmp_path)
        with pytest.raises(OptionError, match=r"batches need .* choose a smaller --batch-size"):
            host.check_memory(expected + 1, "batches", tmp_path)
