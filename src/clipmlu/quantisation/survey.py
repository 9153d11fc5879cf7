"""What values the tensors of a graph take over many batches: ranges and histograms."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from clipmlu.errors import CalibrationError, first_line
from clipmlu.quantisation.parameters import Array

_SAMPLES = 20_000
"""Elements of one tensor and one batch that go into its histogram, about."""


class Survey:
    """Runs a graph and watches some of its tensors, in float32.

    Args:
        model: the graph.
        names: the tensors to watch.
        threads: CPU threads; 0 leaves it to the runtime.
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
        """Widen the ranges by one batch."""
        results = np.array([float(np.asarray(value)) for value in self._run(feeds)]).reshape(3, -1)
        # Not np.fmin: a NaN must stay visible.
        self._low, self._high = np.minimum(self._low, results[0]), np.maximum(self._high, results[1])
        self._sizes = np.maximum(self._sizes, results[2].astype(np.int64))

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Tensor -> smallest and largest value seen."""
        return {
            name: (float(low), float(high)) for name, low, high in zip(self._names, self._low, self._high, strict=True)
        }

    def prepare_histograms(self, bins: int) -> None:
        """Go over to counting; all batches are handed over once more."""
        self._counts = np.zeros((len(self._names), bins), np.int64)
        self._session = self._open(self._sample_nodes())

    def count(self, feeds: list[Array]) -> None:
        """Add one batch to the histograms."""
        bounds = np.maximum(np.abs(self._low), np.abs(self._high))
        for index, values in enumerate(self._run(feeds)):
            counts, _ = np.histogram(
                np.abs(values), bins=self._counts.shape[1], range=(0.0, float(bounds[index]) or 1.0)
            )
            self._counts[index] += counts

    def histograms(self) -> dict[str, tuple[npt.NDArray[np.int64], float]]:
        """Tensor -> counts of magnitudes, and the largest magnitude."""
        bounds = np.maximum(np.abs(self._low), np.abs(self._high))
        return {
            name: (counts, float(bound)) for name, counts, bound in zip(self._names, self._counts, bounds, strict=True)
        }

    def _run(self, feeds: list[Array]) -> list[Array]:
        if not self._names:  # a graph with nothing to quantise
            return []
        named = {value.name: array for value, array in zip(self._model.graph.input, feeds, strict=True)}
        try:
            results: list[Array] = self._session.run(None, named)
        except Exception as error:  # such as a sample whose shape the graph does not take
            raise CalibrationError(f"a batch failed: {first_line(error)}") from error
        return results

    def _open(self, added: list[tuple[onnx.NodeProto, int]]) -> Any:
        import onnxruntime

        watching = onnx.ModelProto()
        watching.CopyFrom(self._model)
        graph = watching.graph
        graph.ClearField("output")
        graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), "survey_flat"))
        for node, kind in added:
            graph.node.append(node)
            if kind:
                graph.output.append(helper.make_tensor_value_info(node.output[0], kind, None))
        for index, size in enumerate(self._sizes):
            step = _odd_step(int(size))
            for name, value in (("start", 0), ("end", np.iinfo(np.int64).max), ("axis", 0), ("step", step)):
                array = np.array([value], np.int64)
                graph.initializer.append(numpy_helper.from_array(array, f"survey_{index}_{name}"))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # What is fused depends on the shapes that are known, and rounds differently in the last digit: ranges are to be
        # the same wherever the graph came from.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = self._threads
        graph = watching.SerializeToString()
        try:
            return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own errors are many
            raise CalibrationError(f"the graph cannot be loaded: {first_line(error)}") from error

    def _range_nodes(self) -> list[tuple[onnx.NodeProto, int]]:
        added = []
        for op_type, kind in (("ReduceMin", 1), ("ReduceMax", 1), ("Size", 7)):
            attributes: dict[str, Any] = {"keepdims": 0} if kind == 1 else {}
            for index, name in enumerate(self._names):
                output = f"survey_{op_type}_{index}"
                added.append((helper.make_node(op_type, [name], [output], **attributes), kind))
        return added

    def _sample_nodes(self) -> list[tuple[onnx.NodeProto, int]]:
        added: list[tuple[onnx.NodeProto, int]] = []
        for index, name in enumerate(self._names):
            flat, part = f"survey_{index}_values", f"survey_{index}_sample"
            cut = [f"survey_{index}_{end}" for end in ("start", "end", "axis", "step")]
            added.append((helper.make_node("Reshape", [name, "survey_flat"], [flat]), 0))
            added.append((helper.make_node("Slice", [flat, *cut], [part]), 1))
        return added


def _odd_step(size: int) -> int:
    """A step that takes about ``_SAMPLES`` elements and does not fall into step with the channels."""
    step = max(size // _SAMPLES, 1)
    while step > 1 and any(step % divisor == 0 for divisor in (2, 3, 5, 7, 11)):
        step += 1
    return step
