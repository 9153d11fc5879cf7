"""The emulated vendor SDK: a replacement of the package ``magicmind`` that runs on the CPU, and its environment.

It is imported only on request: by ``clipmlu emulate -- python script.py``, a target with ``emulated`` in its name, or
``emulated_environment`` in a test. The package is in ``site/``; ``clipmlu.magicmind.emulator.settings`` lists the
environment variables that it reads and the switches for questions that public sources leave open.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from clipmlu._version import __version__
from clipmlu.magicmind.emulator.container import MAGIC, is_emulated_model
from clipmlu.magicmind.emulator.settings import FIELDS, PREFIX, current

__all__ = ["MAGIC", "NOTICE", "emulated_environment", "emulated_version", "is_emulated_model", "site_path"]

NOTICE = "emulated MagicMind SDK: nothing here is a card"


def site_path() -> Path:
    """Return the directory of the emulated package ``magicmind``, to be the first on ``sys.path`` or PYTHONPATH."""
    return Path(__file__).resolve().parent / "site"


def emulated_version() -> str:
    """Return the emulated package's version: clipmlu's, and a digest of the settings that affect results."""
    settings = current()
    decides = dataclasses.replace(
        settings, devices=0, latency_ms=(0.0,), mm_run_iterations=0, faults="", fault_log="", visible=None
    )
    digest = hashlib.sha256(repr(decides).encode()).hexdigest()
    return f"{__version__} emulated, {settings.mode}, settings {digest[:8]}"


def emulated_environment(base: Mapping[str, str] | None = None, **settings: object) -> dict[str, str]:
    """Return an environment in which ``import magicmind`` finds the emulator.

    Args:
        base: the environment to start from; this process's if None.
        settings: variables without their prefix, in lower case, such as ``mode="lenient"`` or ``devices=2``.

    Returns:
        A new environment; ``base`` is not changed.

    Raises:
        ValueError: there is no such setting.
    """
    known = {name.lower() for name in FIELDS}
    if unknown := set(settings) - known:
        raise ValueError(f"unknown emulator settings {sorted(unknown)}; known: {sorted(known)}")
    environment = dict(os.environ if base is None else base)
    paths = [str(site_path()), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    environment.update({PREFIX + name.upper(): str(value) for name, value in settings.items()})
    return environment
