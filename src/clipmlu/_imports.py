"""The one way in which optional packages are imported: a missing one is named together with the extra that brings it."""

from __future__ import annotations

import importlib
from typing import Any

from clipmlu import _environment
from clipmlu.errors import MissingDependencyError


def require(module: str, extra: str, purpose: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: its dotted name, such as ``"torch"``.
        extra: clipmlu's extra that installs the package.
        purpose: what needs it, as the subject of the message: ``"Exporting a model"``.

    Returns:
        The module. Typed ``Any``, because the packages are absent where the type checker may run.

    Raises:
        MissingDependencyError: the package, or one that it imports, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        raise MissingDependencyError(missing, extra, purpose) from error


def import_onnxruntime() -> Any:
    """The package ``onnxruntime``, imported without its telemetry; every import of it goes through here.

    Since 1.32 the packages for Linux and macOS send events about sessions and models to Microsoft, and keep a device id and a
    queue of events under ``~/.cache/Microsoft`` (microsoft/onnxruntime, pull request 27379).
    """
    _environment.refuse_onnxruntime_telemetry()
    return importlib.import_module("onnxruntime")
