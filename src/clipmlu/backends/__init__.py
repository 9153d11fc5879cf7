"""The registry of backends and of target names."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable
from importlib import metadata

from clipmlu.backends.base import Availability, Backend, PendingBatch, Session, SessionOptions
from clipmlu.bundle.manifest import current_tool_versions
from clipmlu.errors import BackendUnavailableError, PrecisionError, UnknownNameError
from clipmlu.specs import Precision

__all__ = [
    "AUTO_ORDER",
    "BACKENDS",
    "TARGETS",
    "Availability",
    "Backend",
    "PendingBatch",
    "Session",
    "SessionOptions",
    "backend_for_target",
    "choose_target",
    "get_backend",
    "package_versions",
    "runtime_versions",
]

BACKENDS: dict[str, tuple[str, str]] = {
    "onnxruntime": ("clipmlu.backends.onnxruntime", "OnnxRuntimeBackend"),
    "openvino": ("clipmlu.backends.openvino", "OpenVinoBackend"),
    "magicmind": ("clipmlu.magicmind.backend", "MagicMindBackend"),
    "magicmind-emulated": ("clipmlu.magicmind.backend", "EmulatedMagicMindBackend"),
}
"""Maps a backend name to its module and class, which are imported on first use."""

TARGETS: dict[str, str] = {
    "cpu": "onnxruntime",
    "openvino": "openvino",
    "mlu": "magicmind",
    "emulated-mlu": "magicmind-emulated",
}
"""Maps each value of ``--target`` to its backend."""

AUTO_ORDER: tuple[str, ...] = ("mlu", "openvino", "cpu")
"""Targets that ``--target auto`` tries, in this order. The first one that is available and offers the precision is
used;
the emulated target is never tried.
"""


@functools.cache
def get_backend(name: str) -> Backend:
    """Return the backend with a name.

    Raises:
        UnknownNameError: there is no such backend.
    """
    if name not in BACKENDS:
        raise UnknownNameError("backend", name, BACKENDS, "The bundle may come from a newer clipmlu.")
    module, attribute = BACKENDS[name]
    backend: Backend = getattr(importlib.import_module(module), attribute)()
    return backend


def runtime_versions(names: Iterable[str], options: SessionOptions) -> dict[str, str]:
    """Return the versions of clipmlu and of the packages and the vendor's SDK that the backends use.

    Args:
        names: names of the backends.
        options: location of the SDK.

    Raises:
        BackendUnavailableError: a package is not installed, or the SDK cannot be reached.
    """
    backends = [get_backend(name) for name in sorted(set(names))]
    versions = package_versions(backends)
    for backend in backends:
        versions |= backend.sdk_versions(options)
    return versions


def package_versions(backends: Iterable[Backend]) -> dict[str, str]:
    """Return the versions of clipmlu and of the packages that backends use.

    Raises:
        BackendUnavailableError: one is not installed.
    """
    versions = current_tool_versions()
    for backend in backends:
        try:
            versions |= current_tool_versions(*backend.packages)
        except metadata.PackageNotFoundError as error:
            reason = backend.probe().reason or f"the package '{error.name}' is not installed"
            raise BackendUnavailableError(f"The bundle runs on {backend.name}: {reason}.") from error
    return versions


def backend_for_target(target: str, precision: Precision | None = None) -> tuple[str, Backend]:
    """Return the name and backend of a target; ``auto`` selects the first available one of ``AUTO_ORDER``.

    A target given by name never falls back to another one.

    Args:
        target: its name, or ``auto``.
        precision: precision that ``auto`` requires; for a target given by name the caller must check it.

    Raises:
        UnknownNameError: there is no such target.
        BackendUnavailableError: its runtime cannot be used on this machine.
        PrecisionError: no available target of ``auto`` offers the precision.
    """
    name, backend, _why = choose_target(target, precision)
    return name, backend


def choose_target(target: str, precision: Precision | None = None) -> tuple[str, Backend, str]:
    """Return the name and backend of a target, and a line that says what ``auto`` took and why; empty without ``auto``.

    Args:
        target: as for ``backend_for_target``.
        precision: likewise.

    Raises:
        UnknownNameError, BackendUnavailableError, PrecisionError: as ``backend_for_target``.
    """
    if target == "auto":
        return _first_usable(precision)
    if target not in TARGETS:
        raise UnknownNameError("target", target, ("auto", *TARGETS))
    backend = get_backend(TARGETS[target])
    availability = backend.probe()
    if not availability.ok:
        raise BackendUnavailableError(f"Target '{target}' cannot be used here ({target}: {availability.reason}).")
    return target, backend, ""


def _first_usable(precision: Precision | None) -> tuple[str, Backend, str]:
    reasons: list[str] = []
    lacks_precision = False
    for name in AUTO_ORDER:
        backend = get_backend(TARGETS[name])
        availability = backend.probe()
        if not (availability.ok and availability.has_device):
            reasons.append(f"{name}: {availability.reason or 'there is no card'}")
            continue
        try:
            if precision is None or precision in backend.precisions:
                return name, backend, _why_first(name, precision, reasons)
        except BackendUnavailableError as error:  # installed but broken
            reasons.append(f"{name}: {str(error).rstrip('.')}")
            continue
        lacks_precision = True
        reasons.append(f"{name}: {(backend.why_not(precision) or 'it has no such mode').rstrip('.')}")
    if lacks_precision and precision is not None:
        raise PrecisionError(
            f"No target that can be used here offers the precision '{precision.value}' ({'; '.join(reasons)})."
        )
    raise BackendUnavailableError(f"Target 'auto' cannot be used here ({'; '.join(reasons)}).")


def _why_first(name: str, precision: Precision | None, reasons: list[str]) -> str:
    """Return what ``auto`` took and why not an earlier target; what would help says ``clipmlu doctor``."""
    taken = f"target auto: {name}" if precision is None else f"target auto: {name} for {precision.value}"
    passed = (reason.partition(";")[0] for reason in reasons)
    return "; ".join([taken, *(f"not {reason}" for reason in passed)])
