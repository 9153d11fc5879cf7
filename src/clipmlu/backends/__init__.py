"""The registry of runtimes and of the targets that users name."""

from __future__ import annotations

import functools
import importlib

from clipmlu.backends.base import Availability, Backend, PendingBatch, Session, SessionOptions
from clipmlu.errors import BackendUnavailableError, UnknownNameError

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
    "get_backend",
]

BACKENDS: dict[str, tuple[str, str]] = {
    "onnxruntime": ("clipmlu.backends.onnxruntime", "OnnxRuntimeBackend"),
    "magicmind": ("clipmlu.backends.magicmind.backend", "MagicMindBackend"),
    "magicmind-emulated": ("clipmlu.backends.magicmind.backend", "EmulatedMagicMindBackend"),
}
"""Backend name -> module and class, imported on first use."""

TARGETS: dict[str, str] = {"cpu": "onnxruntime", "mlu": "magicmind", "emulated-mlu": "magicmind-emulated"}
"""What ``--target`` accepts, and the backend that serves it."""

AUTO_ORDER: tuple[str, ...] = ("mlu", "cpu")
"""Targets that ``--target auto`` tries, in this order; the first one that can run here is taken, never an emulated one."""


@functools.cache
def get_backend(name: str) -> Backend:
    """The backend of that name.

    Raises:
        UnknownNameError: there is no such backend.
    """
    if name not in BACKENDS:
        raise UnknownNameError("backend", name, BACKENDS, "The bundle may come from a newer clipmlu.")
    module, attribute = BACKENDS[name]
    backend: Backend = getattr(importlib.import_module(module), attribute)()
    return backend


def backend_for_target(target: str) -> tuple[str, Backend]:
    """Resolve a target to its name and backend; ``auto`` takes the first available of ``AUTO_ORDER``.

    A target that the user names never falls back to another.

    Raises:
        UnknownNameError: there is no such target.
        BackendUnavailableError: its runtime cannot be used here.
    """
    if target != "auto" and target not in TARGETS:
        raise UnknownNameError("target", target, ("auto", *TARGETS))
    reasons = []
    for name in AUTO_ORDER if target == "auto" else (target,):
        backend = get_backend(TARGETS[name])
        availability = backend.probe()
        if availability.ok and (availability.has_device or target != "auto"):
            return name, backend
        reasons.append(f"{name}: {availability.reason or 'there is no card'}")
    raise BackendUnavailableError(f"Target '{target}' cannot be used here ({'; '.join(reasons)}).")
