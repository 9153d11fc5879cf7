"""Building small ONNX graphs node by node."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Draft:
    """An ONNX graph that is being built; inputs, weights and tensors are named in order.

    Args:
        kind: the group of cases that it belongs to: ``base``, ``opset``, ``newer`` or ``operator``.
        opset: the ONNX opset.
        tolerance: allowed difference of its results, relative to the largest expected value.
    """

    def __init__(self, kind: str = "base", opset: int = 11, tolerance: float = 1e-3) -> None:
        self.kind = kind
        self.opset = opset
        self.tolerance = tolerance
        self.expected: list[Array] | None = None  # where ONNX's reference is not to be asked
        self.external: dict[str, str] = {}
        self.inputs: dict[str, Array] = {}
        self.weights: dict[str, Array] = {}
        self._nodes: list[Any] = []
        self._results: tuple[str, ...] = ()

    def feed(self, values: Array, name: str | None = None) -> str:
        """Add an input with these values; returns its name."""
        name = name or "xabcd"[len(self.inputs)]
        self.inputs[name] = values
        return name

    def weight(self, values: Any, name: str | None = None) -> str:
        """Add an initializer; returns its name."""
        name = name or f"w{len(self.weights)}"
        self.weights[name] = np.asarray(values)
        return name

    def node(
        self, op: str, *inputs: str, count: int = 1, output: str | None = None, domain: str = "", **more: Any
    ) -> str:
        """Add a node; returns the name of its first output."""
        from onnx import helper

        number = len(self._nodes)
        outputs = [output or f"t{number}", *(f"t{number}_{extra}" for extra in range(1, count))]
        attributes = {key: value for key, value in more.items() if value is not None}
        label = attributes.pop("label", f"probe/{op}_{number}")
        self._nodes.append(helper.make_node(op, list(inputs), outputs, name=label, domain=domain, **attributes))
        self._results = tuple(outputs)
        return outputs[0]

    def results(self, *names: str) -> None:
        """Set the output tensors of the graph; by default they are those of the last node."""
        self._results = names

    def finish(self) -> tuple[bytes, list[Array], list[Array]]:
        """The ONNX file, the input values and the expected outputs."""
        from onnx import helper, numpy_helper
        from onnx.reference import ReferenceEvaluator

        domains = {node.domain for node in self._nodes} - {""}
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(each, 1) for each in sorted(domains))]
        weights = [numpy_helper.from_array(values, name) for name, values in self.weights.items()]
        ends = [helper.make_empty_tensor_value_info(name) for name in self._results]
        graph = helper.make_graph(
            self._nodes, "probe", [_declare(*item) for item in self.inputs.items()], ends, weights
        )
        model = helper.make_model(graph, opset_imports=opsets, ir_version=6 if self.opset <= 11 else 8)
        outputs = self.expected
        if outputs is None:
            outputs = [np.asarray(value) for value in ReferenceEvaluator(model).run(None, dict(self.inputs))]
        del model.graph.output[:]
        model.graph.output.extend(_declare(*item) for item in zip(self._results, outputs, strict=True))
        for tensor in model.graph.initializer:
            if tensor.name in self.external:
                _keep_outside(tensor, self.external[tensor.name])
        return model.SerializeToString(), list(self.inputs.values()), outputs


def _declare(name: str, values: Array) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values.dtype), list(values.shape))


def _keep_outside(tensor: Any, location: str) -> None:
    """Make a tensor refer to an external file, as ONNX does for weights of more than 2 GB."""
    from onnx import TensorProto

    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(size))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def random_values(*shape: int, seed: int = 0) -> Array:
    """float32 values between -2 and 2, the same for the same seed."""
    return np.random.default_rng(seed).uniform(-2, 2, shape).astype(np.float32)


WEIGHT = random_values(8, 5, seed=1)
