"""OpenVINO itself: imported without its telemetry, and asked what this CPU can do.

Telemetry. ``import openvino`` imports ``openvino.tools.ovc``, which starts an ``openvino_telemetry.Telemetry`` and sends the
event ("ov", "import", "general_import") to Google Analytics from a process that it forks, with the operating system, a client id
and a usage count that it keeps under ``~/intel``. It does so unless that folder holds a refusal (``opt_in_out --opt_out``, which
itself sends an event) or the process seems to run in a CI job; no environment variable is meant for it. ``convert_model`` and the command ``ovc`` send
more: options, errors, results. Reading, compiling and running a model send nothing: the C++ side reports through a
``TelemetryExtension`` only where one is added, and nothing but ``convert_model`` adds one. (Read in the sources of openvino
2026.4.1 and openvino_telemetry 2025.2.0.) Where ``openvino_telemetry`` cannot be imported, OpenVINO takes a stub of its own
that does nothing; so it is hidden while OpenVINO is imported here. A program that has imported OpenVINO itself before has
made its own choice.
"""

from __future__ import annotations

import functools
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from clipmlu.backends.cpu_graphs import runtime_path
from clipmlu.backends.integer_products import integer_product_graph, products_are_exact
from clipmlu.host import require

_TELEMETRY = "openvino_telemetry"
_import_lock = threading.Lock()


def import_openvino() -> Any:
    """The package ``openvino``, imported without its telemetry.

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
    """The process's ``openvino.Core``, which loads the CPU plugin once."""
    return import_openvino().Core()


def read_graph(path: Path) -> Any:
    """Read an ONNX file by the ONNX frontend alone: ``Core.read_model`` has others try a file that this one refuses.

    Returns:
        An ``openvino.Model``.
    """
    frontends = import_openvino().frontend.FrontEndManager()
    frontend = frontends.load_by_framework("onnx")
    return frontend.convert(frontend.load(runtime_path(path)))


@functools.cache
def has_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16.

    OpenVINO's CPU plugin lists BF16 where there is AVX512-BF16 or AVX2-VNNI-2. On other CPUs with AVX-512 it would simulate the
    type when told to, and on the rest it takes float32 without a word.
    """
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@functools.cache
def int8_is_exact() -> bool:
    """Whether OpenVINO's 8-bit matrix products are exact on this CPU; see ``integer_products``."""
    return products_are_exact(int8_products)


def int8_products(rows: npt.NDArray[np.int8], weights: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
    """Multiply integers in OpenVINO; see ``integer_products.IntegerProduct``."""
    graph = core().read_model(integer_product_graph(weights))
    request = core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(request({"x": rows.astype(np.float32)})["y"])
