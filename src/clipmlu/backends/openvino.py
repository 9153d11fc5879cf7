"""OpenVINO on the CPU; it runs the files of the onnxruntime backend.

No telemetry is sent, see ``openvino_runtime``; nothing is cached on disk, because OpenVINO's ``CACHE_DIR`` stays unset.
"""

from __future__ import annotations

import contextlib
import re
from concurrent.futures import Future
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

from clipmlu.backends import openvino_graph, openvino_runtime
from clipmlu.backends.base import Availability, CompiledGraph, Feeds, GraphOptions, Session, SessionOptions, SourceGraph
from clipmlu.backends.cpu_graphs import check_openable, copy_graph, write_mode
from clipmlu.backends.cpu_session import CpuSession
from clipmlu.backends.product_speed import CLEARLY_FASTER
from clipmlu.bundle.runnable import RunnableModel
from clipmlu.clock import now
from clipmlu.data.feeds import Array
from clipmlu.errors import BackendUnavailableError, BundleCorruptError, SessionError
from clipmlu.specs import Precision, TowerName

_REMEDY = "pip install 'clipmlu[openvino]'"
_OLDEST = (2025, 3)
"""First version whose ONNX reader supports the 8-bit graphs; as in pyproject.toml."""


class OpenVinoBackend:
    """Runs the graphs of the onnxruntime backend, in the precisions that this CPU computes exactly; see ``Backend``."""

    name = "openvino"
    packages: tuple[str, ...] = ("openvino",)
    emulated = False
    has_cards = False

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """float32, and the other precisions that OpenVINO supports on this CPU; reading this imports OpenVINO.

        Raises:
            BackendUnavailableError: OpenVINO cannot be loaded.
        """
        try:
            offered = {
                Precision.FORCE_FLOAT32: True,
                Precision.FORCE_BFLOAT16: openvino_runtime.has_bfloat16(),
                Precision.QINT8_MIXED_FLOAT32: openvino_runtime.int8_is_exact(),
            }
        except (ImportError, OSError, RuntimeError) as error:
            raise BackendUnavailableError(f"OpenVINO cannot be loaded here: {_reason(error)}.") from error
        return tuple(precision for precision, usable in offered.items() if usable)

    def why_not(self, precision: Precision) -> str:
        """Return why this CPU, or OpenVINO on any CPU, does not support the precision."""
        if precision in self.precisions:
            return ""
        if precision is Precision.FORCE_BFLOAT16:
            return "This CPU has no bfloat16 instructions, and they are not emulated: take --precision force_float32."
        if precision is Precision.QINT8_MIXED_FLOAT32:
            return (
                "OpenVINO's 8-bit products are not exact on this CPU: without VNNI they are added in 16 bits and saturate. "
                "Take --target cpu, where they are exact."
            )
        return "Take --target cpu, which computes the numbers of every mode of the vendor's SDK."

    def kernels(self, precision: Precision) -> str:
        """The measured speed of bfloat16; else empty, because a mode that this CPU does not compute exactly is not offered."""
        if precision is not Precision.FORCE_BFLOAT16 or precision not in self.precisions:
            return ""
        advice = ", so force_float32 is the better choice" if self.is_slower(precision) else ""
        speed = openvino_runtime.bfloat16_speed()
        return f"products in bfloat16 have {speed:.2f} times the speed of float32 on this CPU{advice}"

    def is_slower(self, precision: Precision) -> bool:
        """Whether bfloat16, which CPUs with AVX512-BF16 and without AMX may compute slower, is not clearly faster here."""
        offered = precision is Precision.FORCE_BFLOAT16 and precision in self.precisions
        return offered and openvino_runtime.bfloat16_speed() < CLEARLY_FASTER

    def profile(self, precision: Precision) -> str | None:
        """Use the card's lowered graph for modes that quantise, like the other CPU target."""
        return None if precision.bits is None else "magicmind"

    def sdk_versions(self, options: SessionOptions) -> dict[str, str]:
        """Return an empty map: the runtime is a package."""
        return {}

    def count_devices(self, options: SessionOptions) -> int:
        """Return 0: the runtime has no cards."""
        return 0

    def probe(self) -> Availability:
        """Look for the package without importing it."""
        if util.find_spec("openvino") is None:
            return Availability(False, None, f"the package 'openvino' is not installed; {_REMEDY}")
        version = metadata.version("openvino")
        if tuple(map(int, re.findall(r"\d+", version)[:2])) < _OLDEST:
            return Availability(False, version, f"openvino {version} is too old; {_REMEDY}")
        return Availability(True, version)

    def connected(self, options: SessionOptions) -> contextlib.AbstractContextManager[object]:
        """Return an empty block: the runtime is in this process."""
        return contextlib.nullcontext()

    def compile_tower(self, graph: SourceGraph, options: GraphOptions, directory: Path) -> CompiledGraph:
        """Write the file of the onnxruntime backend; bfloat16 is set when the canonical graph is loaded."""
        write = copy_graph if options.precision.bits is None else write_mode
        return write(graph, options, directory)

    def open(self, model: RunnableModel, tower: TowerName, options: SessionOptions) -> Session:
        """Load one graph; see ``Backend.open``."""
        check_openable(self, model, tower, options)
        label = f"Bundle '{model.path}' ({tower} tower)"
        precision = model.compilation.placement(tower).precision
        if reason := self.why_not(precision):
            raise BackendUnavailableError(
                f"{label} was compiled for openvino in {precision.value}, which cannot run here. {reason}"
            )
        return OpenVinoSession(model.tower(tower), model.tower_path(tower), label, options, precision)


class OpenVinoSession(CpuSession):
    """A graph in OpenVINO; see ``CpuSession``."""

    runtime = "openvino"

    def _load(self, path: Path, options: SessionOptions, precision: Precision) -> None:
        try:
            graph = openvino_graph.read_graph(path, quantised=precision.bits is not None)
            self._table_sizes = _table_sizes(graph)
            self._compiled = openvino_runtime.core().compile_model(graph, "CPU", _settings(options, precision))
            self._request = self._compiled.create_infer_request()
        except Exception as error:
            # OpenVINO's exceptions have no common base class of their own.
            raise BundleCorruptError(f"openvino cannot load '{path}': {_reason(error)}") from error
        self._check_precision(precision)

    def _start(self, feeds: Feeds) -> Future[dict[str, Array]]:
        """Queue one batch.

        Raises:
            SessionError: a token id is outside its embedding table; or as ``CpuSession``.
        """
        self._check_ids(feeds)
        return super()._start(feeds)

    def _release(self) -> None:
        """Cancel the batches in flight, including the running one, and stop the thread."""
        self._stop(wait=False)
        self._request.cancel()
        self._stop(wait=True)

    def read_property(self, name: str) -> Any:
        """Return a property of the compiled model."""
        return self._compiled.get_property(name)

    def _run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        if self._lifetime.closed:
            raise SessionError(f"{self._label}: the session was closed before the batch began.")
        start = now()
        try:
            # Not ``infer``, which ignores ``cancel`` when it has one thread. Contiguous shared inputs are not copied.
            self._request.start_async(feeds, share_inputs=True)
            self._request.wait()
            computed = now()
            results = {name: np.array(self._request.get_tensor(name).data) for name in self.outputs}
        except Exception as error:
            raise self._failure(_reason(error)) from error
        spent = {"compute": computed - start, "copy_out": now() - computed}
        self.clock.add(spent, len(next(iter(feeds.values()))))  # type: ignore[arg-type]
        return results

    def _check_ids(self, feeds: Feeds) -> None:
        """Raise for an id outside its table: OpenVINO's Gather would return zeros, other runtimes raise."""
        for name, size in self._table_sizes.items():
            ids = feeds[name]
            lowest, highest = (int(ids.min()), int(ids.max())) if ids.size else (0, 0)
            if lowest < -size or highest >= size:
                wrong = lowest if lowest < -size else highest
                raise SessionError(f"{self._label}: '{name}' holds the id {wrong}; expected {-size} to {size - 1}")

    def _check_precision(self, precision: Precision) -> None:
        """Raise if OpenVINO uses float32 instead of bfloat16, which it does silently on CPUs without bfloat16."""
        taken = str(self.read_property("INFERENCE_PRECISION_HINT").get_type_name())
        if taken != _float_type(precision):
            raise BackendUnavailableError(
                f"{self._label}: OpenVINO was told to compute in {_float_type(precision)} for {precision.value}, and computes in "
                f"{taken} on this CPU."
            )


def _float_type(precision: Precision) -> str:
    return "bf16" if precision is Precision.FORCE_BFLOAT16 else "f32"


def _settings(options: SessionOptions, precision: Precision) -> dict[str, Any]:
    """Return all settings that the CPU plugin would otherwise choose for the machine."""
    return {
        "INFERENCE_PRECISION_HINT": _float_type(precision),
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        # With pinning, two processes on one Linux machine share the same first cores (Intel's support article
        # 000058227), and the session shares its cores with the threads that decode images.
        "ENABLE_CPU_PINNING": False,
        **openvino_runtime.thread_settings(options.threads),
    }


def _table_sizes(graph: Any) -> dict[str, int]:
    """Map each integer input to the number of rows of the smallest table that it indexes, directly or converted."""
    sizes: dict[str, int] = {}
    for parameter in graph.get_parameters():
        if not parameter.get_element_type().is_integral():
            continue
        waiting = [parameter]
        while waiting:
            for taker in waiting.pop().output(0).get_target_inputs():
                node = taker.get_node()
                if node.get_type_name() == "Convert":
                    waiting.append(node)
                if node.get_type_name() != "Gather" or taker.get_index() != 1:
                    continue
                if (size := _gathered_size(node)) is not None:
                    name = parameter.output(0).get_any_name()
                    sizes[name] = min(size, sizes.get(name, size))
    return sizes


def _gathered_size(gather: Any) -> int | None:
    """Return the size of a Gather's table along its axis, or None if it is known at run time only."""
    axis = gather.input_value(2).get_node()
    if axis.get_type_name() != "Constant":
        return None
    size = gather.input_value(0).get_partial_shape()[int(axis.get_vector()[0])]
    return size.get_length() if size.is_static else None


def _reason(error: BaseException) -> str:
    """Return the last line of an error's message without its full stop; OpenVINO's first lines give source locations."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip().rstrip(".") if lines else type(error).__name__
