"""Facts of the machine of a measurement, and memory use."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from clipmlu.host import available_cpus, cpu_instructions, physical_cores, usable_cores
from clipmlu.specs import Spec

_PROC = Path("/proc")


class Machine(Spec, frozen=True, kw_only=True):
    """The machine of a measurement.

    Attributes:
        cpu: the processor's name.
        cpus: logical CPUs that this process may use; a container's quota, rounded up, if that is less.
        cores: CPU seconds per second that it may use: fewer than ``cpus`` if a container's quota is a fraction.
        physical_cores: cores behind its CPUs, without hyper-threads; None if the system does not provide it.
        instructions: instruction sets that decide the speed, such as ``VNNI``; None if the system does not provide them.
        memory_bytes: memory of the whole machine; None if the system does not provide it.
        system: operating system and architecture.
        python: version of the interpreter.
    """

    cpu: str
    cpus: int
    cores: float
    physical_cores: int | None
    instructions: tuple[str, ...] | None
    memory_bytes: int | None
    system: str
    python: str


def describe_machine() -> Machine:
    """Return the facts of this machine."""
    return Machine(
        cpu=_cpu_name(),
        cpus=available_cpus(),
        cores=usable_cores(),
        physical_cores=physical_cores(),
        instructions=cpu_instructions(),
        memory_bytes=_memory_bytes(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
    )


def peak_memory_bytes() -> int | None:
    """Return the peak resident memory of this process in bytes; None if the system does not provide it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB on Linux


def children_peak_memory_bytes() -> int | None:
    """Return the sum of the peak memory of running child processes in bytes; None without any, or not on Linux.

    ``getrusage`` is not suitable: a child's figure starts at the size of its parent at its start.
    """
    peaks = [peak for child in _children() if (peak := _peak_of(child)) is not None]
    return sum(peaks) if peaks else None


def _children() -> Iterator[int]:
    for task in _PROC.glob("self/task/*/children"):
        try:
            yield from (int(child) for child in task.read_text().split())
        except OSError:  # the thread has just ended
            continue


def _peak_of(process: int) -> int | None:
    try:
        lines = (_PROC / str(process) / "status").read_text().splitlines()
    except OSError:  # the process has just ended
        return None
    peaks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return peaks[0] if peaks else None


def _cpu_name() -> str:
    try:
        for line in (_PROC / "cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows, or a system without these names
        return None
