"""The plain runtimes, with the settings that clipmlu uses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from clipmlu.backends.onnxruntime import fast_int8_is_exact


def open_onnxruntime(graph: Path | bytes, threads: int, *, int8: bool = False) -> Any:
    """Return an ``InferenceSession`` on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if int8 and not fast_int8_is_exact():
        options.add_session_config_entry("session.x64quantprecision", "1")
    source = graph if isinstance(graph, bytes) else str(graph)
    disabled = ["MatMulAddFusion"] if int8 else []
    return onnxruntime.InferenceSession(
        source, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
    )


def open_openvino(graph: Path | bytes, threads: int, precision: str = "f32") -> Any:
    """Return a compiled model on the CPU.

    Args:
        graph: an ONNX file, or its bytes.
        threads: threads for one batch.
        precision: ``f32`` or ``bf16``.

    Raises:
        RuntimeError: the CPU has no bfloat16.
    """
    # Without this package importing OpenVINO sends no telemetry.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    core = openvino.Core()
    offered = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in offered:
        raise RuntimeError(f"OpenVINO has no bfloat16 on this CPU, only {', '.join(offered)}")
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    return core.compile_model(core.read_model(graph), "CPU", settings)
