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
from clipmlu.host import require

_TELEMETRY = "openvino_telemetry"
_DEPTH, _WIDTH = 256, 64
_LARGEST = 127
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
    """Whether OpenVINO's 8-bit matrix products are exact on this CPU, found out by computing the largest ones.

    Its kernels shift signed rows by 128 to unsigned ones. Without VNNI they add pairs of products in 16 bits and saturate:
    255 * 127 twice does not fit.
    """
    signs = np.where(np.arange(_WIDTH) % 2, 1, -1)
    rows = (_LARGEST * np.repeat(signs[:, None], _DEPTH, axis=1)).astype(np.int8)
    exact = rows.astype(np.int64) @ rows.T.astype(np.int64)
    return np.array_equal(int8_products(rows, np.ascontiguousarray(rows.T)), exact)


def int8_products(rows: npt.NDArray[np.int8], weights: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
    """Multiply integers as a tower in 8 bits does: a MatMul between QuantizeLinear and DequantizeLinear, of scale 1.

    Args:
        rows: shape (N, K), above -128; what enters the operator.
        weights: shape (K, M), above -128; stored in the graph.

    Returns:
        What OpenVINO's kernels make of the products, float32, shape (N, M).
    """
    graph = _integer_product(weights)
    request = core().compile_model(core().read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(request({"x": rows.astype(np.float32)})["y"])


def _integer_product(weights: npt.NDArray[np.int8]) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    depth, width = weights.shape
    node = helper.make_node
    constants = {"one": np.float32(1), "zero": np.int8(0), "levels": weights}
    graph = helper.make_graph(
        [
            node("QuantizeLinear", ["x", "one", "zero"], ["x_levels"]),
            node("DequantizeLinear", ["x_levels", "one", "zero"], ["x_again"]),
            node("DequantizeLinear", ["levels", "one", "zero"], ["weights"]),
            node("MatMul", ["x_again", "weights"], ["y"]),
        ],
        "integer product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", depth])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", width])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    return bytes(model.SerializeToString())
