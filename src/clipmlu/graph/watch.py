"""Ranges and histograms of a graph's tensors over many batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from clipmlu.errors import CalibrationError, first_line
from clipmlu.graph.quantisation.parameters import Array
from clipmlu.host import import_onnxruntime, limited_cpus

_SAMPLES = 20_000
"""Approximate number of elements per tensor and batch in its histogram."""

_MOMENT_ROWS = 10_000
"""Approximate number of rows in second moments: several times the channels of the largest layers. Of more data every second,
third and so on batch is run, and of a larger batch as many of its rows are taken.
"""

_WHOLE_SLICE = {"start": 0, "end": np.iinfo(np.int64).max, "axis": 0}


class WatchingSession:
    """A graph in float32 with additional nodes, whose results are its outputs.

    Args:
        model: the graph; it is not changed.
        added: nodes to add, and the ONNX element type of their result, or 0 for a node that is not an output.
        constants: weights of the added nodes.
        threads: CPU threads; 0 for the runtime's default.

    Raises:
        CalibrationError: the graph cannot be loaded.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        added: Sequence[tuple[onnx.NodeProto, int]],
        constants: Mapping[str, Array],
        *,
        threads: int = 0,
    ) -> None:
        onnxruntime = import_onnxruntime()
        self._inputs = [value.name for value in model.graph.input]
        watching = onnx.ModelProto()
        watching.CopyFrom(model)
        graph = watching.graph
        graph.ClearField("output")
        graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
        for node, kind in added:
            graph.node.append(node)
            if kind:
                graph.output.append(helper.make_tensor_value_info(node.output[0], kind, None))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Fusion depends on the known shapes and rounds differently in the last digit; ranges must not depend on the
        # origin of the graph.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = threads or limited_cpus()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as in the emulator
        content = watching.SerializeToString()
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime raises many types
            raise CalibrationError(f"the graph cannot be loaded: {first_line(error)}") from error

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        """Return the results of the added nodes for one array per input of the graph.

        Raises:
            CalibrationError: an array does not fit the graph.
        """
        try:
            results: list[Array] = self._session.run(None, dict(zip(self._inputs, feeds, strict=True)))
        except Exception as error:  # such as a sample of a wrong shape
            raise CalibrationError(f"a batch failed: {first_line(error)}") from error
        return results


def channel_maxima(
    model: onnx.ModelProto, channels: Mapping[str, int], batches: Iterable[Sequence[Array]]
) -> dict[str, Array]:
    """Return the largest magnitude of each channel of some tensors over all batches.

    Args:
        model: the graph.
        channels: maps a tensor to the size of its last axis.
        batches: one array for each input of the graph.

    Returns:
        A map from tensor to float32, shape (channels,).

    Raises:
        CalibrationError: as for ``Survey.measure``.
    """
    added: list[tuple[onnx.NodeProto, int]] = []
    constants = {}
    for index, (name, count) in enumerate(channels.items()):
        flat, size, most = (f"survey_{index}_{part}" for part in ("flat", "size", "most"))
        constants[f"survey_{index}_shape"] = np.array([-1, count], np.int64)
        added.append((helper.make_node("Reshape", [name, f"survey_{index}_shape"], [flat]), 0))
        added.append((helper.make_node("Abs", [flat], [size]), 0))
        added.append((helper.make_node("ReduceMax", [size], [most], axes=[0], keepdims=0), 1))
    if not channels:
        return {}
    session = WatchingSession(model, added, constants)
    found = {name: np.zeros(count, np.float32) for name, count in channels.items()}
    for feeds in batches:
        for name, seen in zip(found, session.run(feeds), strict=True):
            np.maximum(found[name], seen, out=found[name])
    return found


def second_moments(
    model: onnx.ModelProto, channels: Mapping[str, int], batches: Callable[[], Iterable[Sequence[Array]]]
) -> dict[str, Array]:
    """Return the second moments of the channels of some tensors: sums of ``x.T @ x`` over some 10,000 rows.

    Args:
        model: the graph.
        channels: maps a tensor to the size of its last axis.
        batches: returns the batches from the first one on, at each call; one array for each input of the graph.

    Returns:
        A map from tensor to float32, shape (channels, channels).

    Raises:
        CalibrationError: as for ``Survey.measure``.
    """
    sizes = [helper.make_node("Size", [name], [f"survey_size_{index}"]) for index, name in enumerate(channels)]
    counted = WatchingSession(model, [(node, TensorProto.INT64) for node in sizes], {})
    firsts = counted.run(next(iter(batches())))
    del counted
    rows = [int(size) // count for size, count in zip(firsts, channels.values(), strict=True)]
    skipped = max(max(rows) * sum(1 for _feeds in batches()) // _MOMENT_ROWS, 1)
    added: list[tuple[onnx.NodeProto, int]] = []
    constants = {f"survey_{name}": np.array([value], np.int64) for name, value in _WHOLE_SLICE.items()}
    for index, ((name, count), total) in enumerate(zip(channels.items(), rows, strict=True)):
        flat, step, part = (f"survey_{index}_{part}" for part in ("flat", "step", "part"))
        constants[f"survey_{index}_shape"] = np.array([-1, count], np.int64)
        constants[step] = np.array([max(total // _MOMENT_ROWS, 1)], np.int64)
        added.append((helper.make_node("Reshape", [name, f"survey_{index}_shape"], [flat]), 0))
        ends = [f"survey_{name}" for name in _WHOLE_SLICE]
        added.append((helper.make_node("Slice", [flat, *ends, step], [part]), TensorProto.FLOAT))
    session = WatchingSession(model, added, constants)
    found = {name: np.zeros((count, count), np.float32) for name, count in channels.items()}
    for feeds in itertools.islice(batches(), 0, None, skipped):
        for name, seen in zip(found, session.run(feeds), strict=True):
            found[name] += seen.T @ seen
    return found


class Survey:
    """Runs a graph in float32 and records values of some of its tensors.

    Args:
        model: the graph.
        names: the tensors to record.
        threads: CPU threads; 0 for the runtime's default.
    """

    def __init__(self, model: onnx.ModelProto, names: list[str], *, threads: int = 0) -> None:
        self._model = model
        self._threads = threads
        self._names = names
        self._low = np.full(len(names), np.inf)
        self._high = np.full(len(names), -np.inf)
        self._sizes = np.zeros(len(names), np.int64)
        self._counts: npt.NDArray[np.int64] = np.zeros((0, 0), np.int64)
        self._session = self._open(self._range_nodes())

    def measure(self, feeds: list[Array]) -> None:
        """Extend the ranges by one batch."""
        results = np.array([float(np.asarray(value)) for value in self._run(feeds)]).reshape(4, -1)
        low, high, size, zero = results
        # ``zero`` is NaN if the tensor holds NaN or infinity; np.minimum and np.maximum propagate it.
        self._low, self._high = np.minimum(self._low, low + zero), np.maximum(self._high, high + zero)
        self._sizes = np.maximum(self._sizes, size.astype(np.int64))

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Map each tensor to its smallest and largest value."""
        return {
            name: (float(low), float(high)) for name, low, high in zip(self._names, self._low, self._high, strict=True)
        }

    def prepare_histograms(self, bins: int) -> None:
        """Start the second pass over all batches, which counts values in ``bins`` bins on either side of zero."""
        self._counts = np.zeros((len(self._names), 2 * bins), np.int64)
        self._session = self._open(self._sample_nodes())

    def count(self, feeds: list[Array]) -> None:
        """Add one batch to the histograms."""
        bounds = np.maximum(np.abs(self._low), np.abs(self._high))
        for index, values in enumerate(self._run(feeds)):
            bound = float(bounds[index]) or 1.0
            counts, _ = np.histogram(values, bins=self._counts.shape[1], range=(-bound, bound))
            self._counts[index] += counts

    def histograms(self) -> dict[str, tuple[npt.NDArray[np.int64], float]]:
        """Map each tensor to counts of values from minus its largest magnitude to plus it, and that magnitude."""
        bounds = np.maximum(np.abs(self._low), np.abs(self._high))
        return {
            name: (counts, float(bound)) for name, counts, bound in zip(self._names, self._counts, bounds, strict=True)
        }

    def _run(self, feeds: list[Array]) -> list[Array]:
        return self._session.run(feeds) if self._names else []  # the graph has nothing to quantise

    def _open(self, added: list[tuple[onnx.NodeProto, int]]) -> WatchingSession:
        constants: dict[str, Array] = {
            "survey_flat": np.array([-1], np.int64),
            "survey_zero": np.zeros((), np.float32),
        }
        for index, size in enumerate(self._sizes):
            step = _sampling_step(int(size))
            for name, value in (("start", 0), ("end", np.iinfo(np.int64).max), ("axis", 0), ("step", step)):
                constants[f"survey_{index}_{name}"] = np.array([value], np.int64)
        return WatchingSession(self._model, added, constants, threads=self._threads)

    def _range_nodes(self) -> list[tuple[onnx.NodeProto, int]]:
        added = []
        for op_type, kind in (("ReduceMin", 1), ("ReduceMax", 1), ("Size", 7)):
            attributes: dict[str, Any] = {"keepdims": 0} if kind == 1 else {}
            for index, name in enumerate(self._names):
                output = f"survey_{op_type}_{index}"
                added.append((helper.make_node(op_type, [name], [output], **attributes), kind))
        # onnxruntime's ReduceMin and ReduceMax may ignore a NaN; a sum of zero times each element does not.
        for index, name in enumerate(self._names):
            zeros = f"survey_zeros_{index}"
            added.append((helper.make_node("Mul", [name, "survey_zero"], [zeros]), 0))
            added.append((helper.make_node("ReduceSum", [zeros], [f"survey_finite_{index}"], keepdims=0), 1))
        return added

    def _sample_nodes(self) -> list[tuple[onnx.NodeProto, int]]:
        added: list[tuple[onnx.NodeProto, int]] = []
        for index, name in enumerate(self._names):
            flat, part = f"survey_{index}_values", f"survey_{index}_sample"
            cut = [f"survey_{index}_{end}" for end in ("start", "end", "axis", "step")]
            added.append((helper.make_node("Reshape", [name, "survey_flat"], [flat]), 0))
            added.append((helper.make_node("Slice", [flat, *cut], [part]), 1))
        return added


def _sampling_step(size: int) -> int:
    """Return a step that takes about ``_SAMPLES`` elements and has no small common divisor with the channels."""
    step = max(size // _SAMPLES, 1)
    while step > 1 and any(step % divisor == 0 for divisor in (2, 3, 5, 7, 11)):
        step += 1
    return step
