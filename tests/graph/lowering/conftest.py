"""Small graphs, lowered and run: the reference is ONNX's own evaluator, the lowered graph runs on onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from clipmlu.graph.lowering import lower_graph

Arrays = Mapping[str, npt.NDArray[Any]]
_BATCH = 2


def build(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[str, Sequence[int | str]]],
    outputs: Sequence[str],
    constants: Arrays | None = None,
    opset: int = 20,
) -> onnx.ModelProto:
    """A model; inputs are name -> (dtype, shape), constants become initializers."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
            for name, (dtype, shape) in inputs.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def run_ort(model: ir.Model | onnx.ModelProto, feeds: Arrays) -> list[npt.NDArray[Any]]:
    """Run as it stands: onnxruntime's optimizer would fuse what was just taken apart."""
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def draw(model: onnx.ModelProto, sizes: Mapping[str, int]) -> dict[str, npt.NDArray[Any]]:
    """Random inputs: normal floats, small integers, coin flips."""
    generator = np.random.default_rng(7)
    feeds = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [sizes[axis.dim_param] if axis.dim_param else axis.dim_value for axis in tensor.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if dtype == np.bool_:
            feeds[value.name] = generator.integers(0, 2, shape).astype(bool)
        elif np.issubdtype(dtype, np.integer):
            feeds[value.name] = generator.integers(0, 9, shape).astype(dtype)
        else:
            feeds[value.name] = generator.standard_normal(shape).astype(dtype)
    return feeds


@pytest.fixture
def assert_same_values() -> Callable[..., ir.Model]:
    """``check(model)``: lower it, dynamic and static, compare with the reference; returns the dynamic one."""

    def check(model: onnx.ModelProto, *, feeds: Arrays | None = None, tolerance: float = 1e-6) -> ir.Model:
        dynamic = lower_graph(model)
        axes = {axis.dim_param for value in model.graph.input for axis in value.type.tensor_type.shape.dim} - {""}
        for lowered, sizes in (
            (dynamic, dict.fromkeys(axes, 1)),
            (dynamic, dict.fromkeys(axes, 5)),
            (lower_graph(model, batch=dict.fromkeys(axes, _BATCH)), dict.fromkeys(axes, _BATCH)),
        ):
            onnx.checker.check_model(ir.to_proto(lowered), full_check=True)
            assert lowered.opset_imports == {"": 11}
            given = feeds if feeds is not None else draw(model, sizes)
            expected = ReferenceEvaluator(model).run(None, dict(given))
            for reference, found in zip(expected, run_ort(lowered, given), strict=True):
                assert found.dtype == reference.dtype
                assert found.shape == reference.shape
                np.testing.assert_allclose(found, reference, rtol=tolerance, atol=tolerance)
        return dynamic

    return check


@pytest.fixture
def op_types() -> Callable[[ir.Model], list[str]]:
    """Operators of a graph, in order."""
    return lambda model: [node.op_type for node in model.graph]


@pytest.fixture
def build_model() -> Callable[..., onnx.ModelProto]:
    return build


@pytest.fixture
def run_plain() -> Callable[..., list[npt.NDArray[Any]]]:
    return run_ort
