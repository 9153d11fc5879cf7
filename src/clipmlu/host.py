"""Facts about this process's machine: CPUs, memory, environment variables and optional packages.

``HF_HOME``, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` are read by huggingface_hub, ``NO_COLOR`` by rich.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from clipmlu.errors import MissingDependencyError, OptionError
from clipmlu.file_names import expand_home

CACHE_VARIABLE = "CLIPMLU_CACHE_DIR"
CIFAR100_VARIABLE = "CIFAR100_DATASETS_PATH"
"""The variable that the vendor's CLIP sample reads for the folder of CIFAR-100."""
MODELSCOPE_ENDPOINT_VARIABLE = "MODELSCOPE_ENDPOINT"
MODELSCOPE_TOKEN_VARIABLE = "MODELSCOPE_API_TOKEN"  # noqa: S105 - the name of a variable
"""The variables of ModelScope's own client (``config.py`` of modelscope-hub 0.5.1 on PyPI)."""
_MODELSCOPE_DOMAIN_VARIABLE = "MODELSCOPE_DOMAIN"  # of its earlier versions
_MODELSCOPE = "https://modelscope.cn"

_ROOT = Path("/")
_CGROUP = "sys/fs/cgroup"
_OWN_GROUPS = "proc/self/cgroup"
_MEMINFO = "proc/meminfo"
_CPUINFO = "proc/cpuinfo"
_SIBLINGS = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
_INSTRUCTIONS: dict[str, frozenset[str]] = {
    "AVX2": frozenset({"avx2"}),
    "AVX512": frozenset({"avx512f"}),
    "VNNI": frozenset({"avx512_vnni", "avx_vnni"}),
    "BF16": frozenset({"avx512_bf16", "bf16"}),
    "AMX": frozenset({"amx_int8", "amx_bf16"}),
    "DOTPROD": frozenset({"asimddp"}),
    "I8MM": frozenset({"i8mm"}),
}
"""Maps the name of an instruction set to the kernel's names of it, of which one is enough."""


def available_cpus(root: Path = _ROOT) -> int:
    """Return the number of CPUs that this process may use: its affinity, or a container's smaller limit, rounded up.

    A container limited to two of sixty-four CPUs still shows sixty-four, and a runtime with a thread for each would be
    slower.

    Args:
        root: folder below which the kernel's files are read.
    """
    return max(1, math.ceil(usable_cores(root)))


def usable_cores(root: Path = _ROOT) -> float:
    """Return the computing time that this process may use per second: its CPUs, or a container's smaller quota, such as 1.5.

    Args:
        root: folder below which the kernel's files are read.
    """
    quota = cpu_quota(root)
    allowed = len(allowed_cpus())
    return allowed if quota is None else min(allowed, quota)


def allowed_cpus() -> frozenset[int]:
    """Return the numbers of the logical CPUs in the affinity of this process; all CPUs on systems without affinities."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def physical_cores(root: Path = _ROOT) -> int | None:
    """Return the number of physical cores behind ``allowed_cpus``: hyper-threads of one core count once.

    Source: the Linux kernel's documentation of ``/sys/devices/system/cpu`` (``topology/thread_siblings_list``).

    Args:
        root: folder below which the kernel's files are read.

    Returns:
        None if the system does not provide it.
    """
    cores = {_read(root / _SIBLINGS.format(cpu)).strip() for cpu in allowed_cpus()}
    return None if "" in cores else len(cores)


def cpu_quota(root: Path = _ROOT) -> float | None:
    """Return the CPU seconds per second that the control groups of this process allow, or None without a quota.

    Source: the Linux kernel's documentation of cgroups, ``cpu.max`` (version 2) and ``cpu.cfs_quota_us`` (version 1). The
    quotas of all enclosing groups apply, and a container sees its own group as the outermost one.

    Args:
        root: folder below which the kernel's files are read.
    """
    quotas = [_quota_of(group) for group in _cpu_groups(root)]
    return min((quota for quota in quotas if quota is not None), default=None)


def describe_cores(root: Path = _ROOT) -> str:
    """Return the CPUs that this process may use in words, such as ``16 CPUs on 8 cores with hyper-threads``.

    Args:
        root: folder below which the kernel's files are read.
    """
    count, cores, quota = len(allowed_cpus()), physical_cores(root), cpu_quota(root)
    text = f"{count} CPU{'' if count == 1 else 's'}"
    if cores is None:
        text += ", hyper-threads not known"
    elif cores < count:
        text += f" on {cores} core{'' if cores == 1 else 's'} with hyper-threads"
    return text if quota is None else f"{text}; the container's quota is {quota:g}"


def cpu_instructions(root: Path = _ROOT) -> tuple[str, ...] | None:
    """Return the instruction sets of this CPU that matter for matrix products and images, such as ``AVX2`` and ``VNNI``.

    Source: ``/proc/cpuinfo`` of Linux, ``flags`` on x86 and ``Features`` on Arm.

    Args:
        root: folder below which the kernel's files are read.

    Returns:
        None if the system does not provide it.
    """
    lines = [line.partition(":") for line in _read(root / _CPUINFO).splitlines()]
    flags = next((value.split() for name, _, value in lines if name.strip() in ("flags", "Features")), None)
    return (
        None if flags is None else tuple(name for name, known in _INSTRUCTIONS.items() if not known.isdisjoint(flags))
    )


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


def _cpu_groups(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's control groups and of the enclosing ones, as far as they are visible."""
    for line in ("0::/", "0:cpu:/", *_read(root / _OWN_GROUPS).splitlines()):
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        path = PurePosixPath(group.lstrip("/"))
        base = root / _CGROUP / ("cpu" if controllers else "")
        yield from (base / each for each in (path, *path.parents))


def _quota_of(group: Path) -> float | None:
    quota = _read(group / "cpu.max").split()
    if not quota:
        quota = [*_read(group / "cpu.cfs_quota_us").split(), *_read(group / "cpu.cfs_period_us").split()]
    if len(quota) != 2 or not all(each.isdecimal() for each in quota) or int(quota[1]) == 0:  # "max", or -1: no limit
        return None
    return int(quota[0]) / int(quota[1])


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


def modelscope_endpoint() -> str:
    """Return the address of ModelScope: MODELSCOPE_ENDPOINT, else MODELSCOPE_DOMAIN, else that of the site in China.

    As in ModelScope's own client ``https://`` is added where it is missing, and slashes at the end are removed.
    """
    given = os.environ.get(MODELSCOPE_ENDPOINT_VARIABLE) or os.environ.get(_MODELSCOPE_DOMAIN_VARIABLE)
    address = (given or "").strip() or _MODELSCOPE
    return (address if address.lower().startswith(("http://", "https://")) else f"https://{address}").rstrip("/")


def serve_api_key() -> str | None:
    """Return the API key of ``clipmlu serve`` in the environment, or None."""
    return os.environ.get("CLIPMLU_API_KEY") or None


def modelscope_token() -> str | None:
    """Return the token in MODELSCOPE_API_TOKEN, or None if the variable is not set or empty."""
    return os.environ.get(MODELSCOPE_TOKEN_VARIABLE, "").strip() or None


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


def require_installed(module: str, extra: str, purpose: str) -> None:
    """Check that an optional package is installed, as ``require`` does, but without importing it.

    Raises:
        MissingDependencyError: it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingDependencyError(module, extra, purpose)


def require_graph_packages(purpose: str, extras: str = "compile") -> None:
    """Check that the packages that read and write ONNX graphs are installed, without importing them.

    A compiled bundle runs without them.

    Args:
        purpose: what needs them, as the subject of the message: ``"Compiling a bundle"``.
        extras: all extras that it needs, separated by commas.

    Raises:
        MissingDependencyError: one is not installed.
    """
    for module in ("onnx", "onnx_ir"):
        require_installed(module, extras, purpose)


def import_onnxruntime() -> Any:
    """Return the package ``onnxruntime``, imported without its telemetry; all code must import it with this function.

    Since 1.32 the packages for Linux and macOS send events about sessions and models to Microsoft, and store a device
    id and a queue of events under ``~/.cache/Microsoft`` (microsoft/onnxruntime, pull request 27379).
    """
    refuse_onnxruntime_telemetry()
    return importlib.import_module("onnxruntime")


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Suppress Pillow's messages on stderr inside the block; images that it cannot read are reported as errors."""
    logger, handler = logging.getLogger("PIL"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        logger.removeHandler(handler)
