"""Import of OpenVINO without its telemetry, and checks of what it supports on this CPU.

Telemetry. ``import openvino`` imports ``openvino.tools.ovc``, which starts an ``openvino_telemetry.Telemetry`` and
sends the event ("ov", "import", "general_import") to Google Analytics from a forked process, with the operating system,
a client id and a usage count that it stores under ``~/intel``. It does not if that folder holds a refusal (``opt_in_out
--opt_out``, which itself sends an event) or the process seems to run in a CI job; no environment variable controls it.
``convert_model`` and the command ``ovc`` send more: options, errors, results. Reading, compiling and running a model
send nothing: the C++ code reports only through a ``TelemetryExtension``, and only ``convert_model`` adds one. (Read in
the sources of openvino 2026.4.1 and openvino_telemetry 2025.2.0.) If ``openvino_telemetry`` cannot be imported,
OpenVINO uses its own stub, which does nothing; so this module hides it while it imports OpenVINO. A program that has
imported OpenVINO before keeps its telemetry.
"""

from __future__ import annotations

import functools
import sys
import threading
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from clipmlu.backends.integer_products import integer_product_graph, products_are_exact
from clipmlu.backends.product_speed import float_product_graph, relative_speed
from clipmlu.host import limited_cpus, require

_TELEMETRY = "openvino_telemetry"
_import_lock = threading.Lock()


def import_openvino() -> Any:
    """Return the package ``openvino``, imported without its telemetry.

    Raises:
        MissingDependencyError: it is not installed.
    """
    with _import_lock:
        modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]  # None hides a package
        hidden = modules.get(_TELEMETRY)
        modules[_TELEMETRY] = None
        try:
            return require("openvino", "openvino", "Target 'openvino'")
        finally:
            del modules[_TELEMETRY]
            if hidden is not None:
                modules[_TELEMETRY] = hidden


@functools.cache
def core() -> Any:
    """Return the process's ``openvino.Core``, which loads the CPU plugin once."""
    return import_openvino().Core()


def thread_settings(threads: int) -> dict[str, int]:
    """Return the setting of the threads of one batch; empty for 0 where all CPUs of the machine are available."""
    count = threads or limited_cpus()
    return {"INFERENCE_NUM_THREADS": count} if count else {}


@functools.cache
def has_bfloat16() -> bool:
    """Return whether this CPU has instructions for bfloat16.

    OpenVINO's CPU plugin lists BF16 on CPUs with AVX512-BF16 or AVX2-VNNI-2. On other CPUs with AVX-512 it would
    simulate the type on request; on the rest it silently uses float32.
    """
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@functools.cache
def bfloat16_speed() -> float:
    """Return how many times as fast as in float32 a product is in bfloat16 on this CPU; see ``product_speed``."""
    graph = core().read_model(float_product_graph())
    products = {}
    for kind in ("bf16", "f32"):
        settings = {"INFERENCE_PRECISION_HINT": kind, "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
        products[kind] = core().compile_model(graph, "CPU", {**settings, **thread_settings(0)})
    return relative_speed(lambda rows: products["bf16"]({"x": rows}), lambda rows: products["f32"]({"x": rows}))


@functools.cache
def int8_is_exact() -> bool:
    """Whether OpenVINO's 8-bit matrix products are exact on this CPU; see ``integer_products``."""
    return products_are_exact(int8_products)


def int8_products(rows: npt.NDArray[np.int8], weights: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
    """Multiply integers in OpenVINO; see ``integer_products.IntegerProduct``."""
    graph = core().read_model(integer_product_graph(weights))
    request = core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(request({"x": rows.astype(np.float32)})["y"])
