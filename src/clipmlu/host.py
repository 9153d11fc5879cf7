"""Facts about this process's machine: CPUs, memory, environment variables and optional packages.

``HF_HOME``, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` are read by huggingface_hub, ``NO_COLOR`` by rich.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from clipmlu.errors import MissingDependencyError, OptionError
from clipmlu.file_names import expand_home

CACHE_VARIABLE = "CLIPMLU_CACHE_DIR"
CIFAR100_VARIABLE = "CIFAR100_DATASETS_PATH"
"""The variable that the vendor's CLIP sample reads for the folder of CIFAR-100."""

_ROOT = Path("/")
_CGROUP = "sys/fs/cgroup"
_MEMINFO = "proc/meminfo"


def available_cpus(root: Path = _ROOT) -> int:
    """Return the number of CPUs that this process may use: its affinity, or a container's smaller limit.

    A container limited to two of sixty-four CPUs still shows sixty-four, and a runtime with a thread for each would be
    slower.

    Args:
        root: folder below which the kernel's files are read.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = _container_share(root / _CGROUP)
    return bound if share is None else max(1, min(bound, share))


def limited_cpus(root: Path = _ROOT) -> int:
    """Return ``available_cpus`` if that is less than the machine's number, else 0 for the runtime's own choice."""
    available = available_cpus(root)
    return available if available < (os.cpu_count() or 1) else 0


def available_memory(root: Path = _ROOT) -> int | None:
    """Return the bytes of memory that this process can still allocate: the system's, or a container's smaller limit.

    Source: the Linux kernel's documentation of ``/proc/meminfo`` (``MemAvailable``) and of cgroups (``memory.max``,
    ``memory.current``).

    Args:
        root: folder below which the kernel's files are read.

    Returns:
        None if the system does not provide it.
    """
    lines = _read(root / _MEMINFO).splitlines()
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    limit, used = (_read(root / _CGROUP / name).strip() for name in ("memory.max", "memory.current"))
    if limit.isdecimal() and used.isdecimal():  # "max": no limit
        found.append(max(0, int(limit) - int(used)))
    return min(found, default=None)


def check_memory(needed: int, what: str, root: Path = _ROOT) -> None:
    """Raise if work cannot fit in memory, before the operating system kills the process.

    Args:
        needed: bytes.
        what: the work, as the plural subject of the message, such as ``"batches of 100 images"``.
        root: folder below which the kernel's files are read.

    Raises:
        OptionError: more is needed than is available.
    """
    available = available_memory(root)
    if available is not None and needed > available:
        raise OptionError(
            f"{what} need {needed / 1e9:.1f} GB of memory for their inputs alone, and {available / 1e9:.1f} GB are available "
            "here; choose a smaller --batch-size"
        )


def _container_share(cgroup: Path) -> int | None:
    """Return the number of CPUs of the control group's quota, rounded up, or None without a quota.

    Source: the Linux kernel's documentation of cgroups, ``cpu.max`` (version 2) and ``cpu.cfs_quota_us`` (version 1).
    """
    quota = _read(cgroup / "cpu.max").split()
    if not quota:
        quota = [
            *_read(cgroup / "cpu" / "cpu.cfs_quota_us").split(),
            *_read(cgroup / "cpu" / "cpu.cfs_period_us").split(),
        ]
    if len(quota) != 2 or not all(each.isdecimal() for each in quota) or int(quota[1]) == 0:  # "max", or -1: no limit
        return None
    return -(-int(quota[0]) // int(quota[1]))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):  # another system, or a container that hides the file: no known limit
        return ""


def cache_dir() -> Path:
    """Return the cache folder: CLIPMLU_CACHE_DIR, else XDG_CACHE_HOME/clipmlu, else ~/.cache/clipmlu."""
    if own := os.environ.get(CACHE_VARIABLE):
        return expand_home(own)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return expand_home(base) / "clipmlu"
    return Path.home() / ".cache" / "clipmlu"


def cifar100_dir() -> Path | None:
    """Return the folder in CIFAR100_DATASETS_PATH, or None if the variable is not set."""
    value = os.environ.get(CIFAR100_VARIABLE)
    return expand_home(value) if value else None


def refuse_onnxruntime_telemetry() -> None:
    """Set ORT_DISABLE_TELEMETRY for this process and its children, unless it is set; onnxruntime reads it once."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def require(module: str, extra: str, purpose: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: its dotted name, such as ``"torch"``.
        extra: clipmlu's extra that installs the package.
        purpose: what needs it, as the subject of the message: ``"Exporting a model"``.

    Returns:
        The module. Typed ``Any``, because the type checker may run without the package.

    Raises:
        MissingDependencyError: the package, or one that it imports, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        raise MissingDependencyError(missing, extra, purpose) from error


def import_onnxruntime() -> Any:
    """Return the package ``onnxruntime``, imported without its telemetry; all code must import it with this function.

    Since 1.32 the packages for Linux and macOS send events about sessions and models to Microsoft, and store a device
    id and a queue of events under ``~/.cache/Microsoft`` (microsoft/onnxruntime, pull request 27379).
    """
    refuse_onnxruntime_telemetry()
    return importlib.import_module("onnxruntime")
