"""ONNX Runtime on the CPU: the default backend, and the reference for other targets."""

from __future__ import annotations

import contextlib
import functools
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from clipmlu.backends.base import Availability, CompiledGraph, GraphOptions, Session, SessionOptions, SourceGraph
from clipmlu.backends.cpu_graphs import check_openable, copy_graph, runtime_path, write_mode
from clipmlu.backends.cpu_session import CpuSession
from clipmlu.backends.integer_products import integer_product_graph, products_are_exact
from clipmlu.bundle.runnable import RunnableModel
from clipmlu.clock import now
from clipmlu.data.feeds import Array
from clipmlu.errors import BundleCorruptError, first_line
from clipmlu.host import import_onnxruntime, limited_cpus
from clipmlu.specs import VENDOR_PRECISIONS, Precision, TowerName

if TYPE_CHECKING:
    import onnxruntime

_FUSED_PRECISIONS = (Precision.FORCE_FLOAT32, Precision.QINT8_MIXED_FLOAT32)
_INT8_DISABLED = ["MatMulAddFusion", "WeightBiasQuantization"]
"""The first optimizer makes one Gemm of a product and its bias, which has no integer kernel with a float32 result. The second one
rounds biases of convolutions, and in onnxruntime 1.32 its nodes are invalid for weights with a scale per channel.
"""
_ERRORS_ONLY = 3  # onnxruntime's log severity: 0 verbose .. 4 fatal


class OnnxRuntimeBackend:
    """Runs the canonical graphs, rewritten for the precision mode; see ``Backend``."""

    name = "onnxruntime"
    precisions = VENDOR_PRECISIONS
    packages: tuple[str, ...] = ("onnxruntime",)
    emulated = False
    has_cards = False

    def why_not(self, precision: Precision) -> str:
        """Return an empty text: every CPU runs all its modes, and no CPU runs bfloat16."""
        return ""

    def kernels(self, precision: Precision) -> str:
        """Whether the mode in 8 bits has the fast kernels; see ``fast_int8_is_exact``."""
        if precision is not Precision.QINT8_MIXED_FLOAT32:
            return ""
        if fast_int8_is_exact():
            return "fast 8-bit kernels, which are exact on this CPU"
        return "slower 8-bit kernels, because the fast ones are inexact on this CPU"

    def is_slower(self, precision: Precision) -> bool:
        """Return False: its modes in 8 bits are the only ones that are faster, and the others are not for speed."""
        return False

    def profile(self, precision: Precision) -> str | None:
        """Use the card's lowered graph for all modes but force_float32, so that both quantise the same tensors."""
        return None if precision is Precision.FORCE_FLOAT32 else "magicmind"

    def sdk_versions(self, options: SessionOptions) -> dict[str, str]:
        """Return an empty map: the runtime is a package."""
        return {}

    def count_devices(self, options: SessionOptions) -> int:
        """Return 0: the runtime has no cards."""
        return 0

    def probe(self) -> Availability:
        """Look for the package without importing it."""
        if util.find_spec("onnxruntime") is None:
            return Availability(False, None, "the package 'onnxruntime' is not installed; pip install onnxruntime")
        return Availability(True, metadata.version("onnxruntime"))

    def connected(self, options: SessionOptions) -> contextlib.AbstractContextManager[object]:
        """Return an empty block: the runtime is in this process."""
        return contextlib.nullcontext()

    def compile_tower(self, graph: SourceGraph, options: GraphOptions, directory: Path) -> CompiledGraph:
        """Copy the graph, write a static batch size into it, and rewrite it for any mode but force_float32."""
        write = copy_graph if options.precision is Precision.FORCE_FLOAT32 else write_mode
        return write(graph, options, directory)

    def open(self, model: RunnableModel, tower: TowerName, options: SessionOptions) -> Session:
        """Load one graph; see ``Backend.open``."""
        check_openable(self, model, tower, options)
        label = f"Bundle '{model.path}' ({tower} tower)"
        precision = model.compilation.placement(tower).precision
        return OnnxRuntimeSession(model.tower(tower), model.tower_path(tower), label, options, precision)


class OnnxRuntimeSession(CpuSession):
    """A graph in ONNX Runtime; see ``CpuSession``."""

    runtime = "onnxruntime"

    def _load(self, path: Path, options: SessionOptions, precision: Precision) -> None:
        self._session = _load(path, options, precision)
        self._output_names = list(self.outputs)
        self._run_options = _run_options()

    def _release(self) -> None:
        """Stop the running batch at its next operator, drop queued batches, and stop the thread."""
        self._run_options.terminate = True
        self._stop(wait=True)

    def _run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        start = now()
        try:
            results = self._session.run(self._output_names, feeds, self._run_options)
        except Exception as error:
            # onnxruntime's exceptions have no common base class of their own.
            raise self._failure(first_line(error)) from error
        self.clock.add({"compute": now() - start}, len(next(iter(feeds.values()))))
        return {name: np.asarray(result) for name, result in zip(self._output_names, results, strict=True)}


@functools.cache
def fast_int8_is_exact() -> bool:
    """Whether onnxruntime's fast 8-bit matrix products are exact on this CPU; see ``integer_products``.

    Where they are not, sessions in 8 bits take other kernels, which are exact and slower.
    """
    return products_are_exact(int8_products)


def int8_products(
    rows: npt.NDArray[np.int8], weights: npt.NDArray[np.int8], *, fast: bool = True
) -> npt.NDArray[np.float32]:
    """Multiply integers in onnxruntime, with the fast kernels or the exact ones; see ``integer_products.IntegerProduct``."""
    onnxruntime = import_onnxruntime()
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = _ERRORS_ONLY
    if not fast:
        _take_exact_int8(settings)
    session = onnxruntime.InferenceSession(
        integer_product_graph(weights), settings, providers=["CPUExecutionProvider"], disabled_optimizers=_INT8_DISABLED
    )
    return np.asarray(session.run(["y"], {"x": rows.astype(np.float32)})[0])


def _take_exact_int8(settings: onnxruntime.SessionOptions) -> None:
    """Have onnxruntime turn signed weights into unsigned ones, whose kernels are exact on CPUs without VNNI.

    It costs more than half of the speed where VNNI is, and changes nothing there.
    """
    settings.add_session_config_entry("session.x64quantprecision", "1")


def _run_options() -> onnxruntime.RunOptions:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.RunOptions()
    options.log_severity_level = _ERRORS_ONLY
    return options


def _load(path: Path, options: SessionOptions, precision: Precision) -> onnxruntime.InferenceSession:
    onnxruntime = import_onnxruntime()
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads or limited_cpus()
    settings.log_severity_level = _ERRORS_ONLY
    if not options.busy_wait:
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if precision not in _FUSED_PRECISIONS:
        # The mode rounds or quantises each node's result; fusing nodes would omit that.
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    if precision is Precision.QINT8_MIXED_FLOAT32 and not fast_int8_is_exact():
        _take_exact_int8(settings)
    disabled = _INT8_DISABLED if precision is Precision.QINT8_MIXED_FLOAT32 else []
    try:
        return onnxruntime.InferenceSession(
            _graph(path, precision), settings, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
        )
    except Exception as error:
        raise BundleCorruptError(f"onnxruntime cannot load '{path}': {first_line(error)}") from error


def _graph(path: Path, precision: Precision) -> str | bytes:
    """Return a graph's path, or the graph itself, prepared for the kernels in 8 bits."""
    location = runtime_path(path)
    if precision is not Precision.QINT8_MIXED_FLOAT32:
        return location
    from clipmlu.backends.onnxruntime_graph import read_prepared

    return read_prepared(path) or location
