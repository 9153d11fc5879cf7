"""How many CPUs there are for us, with and without a container's quota."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clipmlu import host
from clipmlu.errors import OptionError

_IN_PROC = ("meminfo", "cpuinfo", "self/cgroup")


def _arrange(root: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    """Write files of the kernel, those of control groups by their names, for a machine of 16 CPUs."""
    for name, content in files.items():
        path = root / "proc" / name if name in _IN_PROC else root / "sys" / "fs" / "cgroup" / name
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
        ({}, 16.0),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "5000 100000\n"}, 0.05),
        ({"cpu.max": "6400000 100000\n"}, 16.0),
        ({"self/cgroup": "0::/jobs/one\n", "jobs/one/cpu.max": "max 100000\n", "jobs/cpu.max": "250000 100000\n"}, 2.5),
        ({"self/cgroup": "0::/jobs/one\n", "cpu.max": "300000 100000\n", "jobs/cpu.max": "250000 100000\n"}, 2.5),
        (
            {
                "self/cgroup": "5:memory:/m\n4:cpu,cpuacct:/a/b\n1:cpuset:/c\n",
                "cpu/a/b/cpu.cfs_quota_us": "75000\n",
                "cpu/a/b/cpu.cfs_period_us": "50000\n",
                "cpu/c/cpu.cfs_quota_us": "50000\n",
                "cpu/c/cpu.cfs_period_us": "50000\n",
            },
            1.5,
        ),
    ],
)
def test_quotas_may_be_fractions_and_those_of_enclosing_groups_apply(
    files: dict[str, str], expected: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _arrange(tmp_path, monkeypatch, files)
    assert host.usable_cores(tmp_path) == expected


def _put_siblings(root: Path, siblings: dict[int, str]) -> None:
    for cpu, each in siblings.items():
        folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{each}\n")


@pytest.mark.parametrize(
    ("allowed", "expected", "words"),
    [
        ({0, 1, 2, 3}, 2, "4 CPUs on 2 cores with hyper-threads"),
        ({0, 2}, 1, "2 CPUs on 1 core with hyper-threads"),
        ({0, 1}, 2, "2 CPUs"),
        ({3}, 1, "1 CPU"),
        ({0, 7}, None, "2 CPUs, hyper-threads not known"),
    ],
)
def test_hyper_threads_of_one_core_count_once_within_the_affinity(
    allowed: set[int], expected: int | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _arrange(tmp_path, monkeypatch, {})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: allowed, raising=False)
    _put_siblings(tmp_path, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"})
    assert host.physical_cores(tmp_path) == expected
    assert host.describe_cores(tmp_path) == words


def test_system_without_affinities_counts_all_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _arrange(tmp_path, monkeypatch, {})
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert host.available_cpus(tmp_path) == 3
    assert host.describe_cores(tmp_path) == "3 CPUs, hyper-threads not known"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            "flags\t\t: fpu sse2 avx2 avx512f avx512_vnni avx512_bf16 amx_tile amx_int8 amx_bf16",
            "AVX2 AVX512 VNNI BF16 AMX",
        ),
        ("flags : fpu avx2 avx_vnni", "AVX2 VNNI"),
        ("flags : fpu sse2", ""),
        ("Features\t: fp asimd asimddp i8mm bf16", "BF16 DOTPROD I8MM"),
        ("model name : of no use", None),
    ],
)
def test_instruction_sets_are_those_that_the_kernel_lists(
    flags: str, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _arrange(tmp_path, monkeypatch, {"cpuinfo": f"processor : 0\n{flags}\n\nprocessor : 1\n"})
    assert host.cpu_instructions(tmp_path) == (None if expected is None else tuple(expected.split()))


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
