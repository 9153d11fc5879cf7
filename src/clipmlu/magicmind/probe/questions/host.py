"""Facts about the machine and the SDK, for the head of the report."""

from __future__ import annotations

import importlib
import os
import platform

import numpy as np

from .bench import Bench
from .calls import Attempt
from .findings import Fields, Finding, shorten
from .probe import Probe


def describe_host(bench: Bench) -> Finding:
    """Versions, paths and the number of cards; ``sdk_path`` is None and ``problem`` says why where the SDK cannot be imported."""
    facts: Fields = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "neuware_home": os.environ.get("NEUWARE_HOME"),
        "sdk_path": None,
        "sdk_version": None,
        "emulated": False,
        "cards": None,
        "problem": None,
    }
    try:
        package = importlib.import_module("magicmind")
        runtime = bench.sdk
    except Exception as error:  # a shared library that is missing raises ImportError, a broken one anything
        return Finding("", **dict(facts, problem=shorten(f"{type(error).__name__}: {error}")))
    facts["emulated"] = bool(getattr(package, "EMULATED", False) or getattr(runtime, "EMULATED", False))
    facts["sdk_path"] = str(getattr(package, "__file__", ""))
    version = getattr(package, "__version__", None) or getattr(runtime, "__version__", None)
    facts["sdk_version"] = None if version is None else str(version)
    counted = Attempt(bench.count)
    facts["cards"] = counted.value
    if not counted.good:
        facts["problem"] = f"device_count: {counted.text}"
    return Finding("", **facts)


HOST = Probe(
    "host", "", "What is found here?", lambda bench, _case: describe_host(bench), ("",), False, False, False, None
)
