"""Shape inference, against shapes and values worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from clipmlu.graph.shapes import NodeEvaluator, ShapeInferenceError, TensorShape, UnknownOperatorError, infer_shapes

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def graph_of(nodes: Sequence[onnx.NodeProto], shape: Sequence[int | str], **weights: Sequence[int]) -> onnx.ModelProto:
    """A graph of opset 11 with the float input ``x``, the output ``y``, and int64 weights."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, ["wrong"])],
        [numpy_helper.from_array(np.array(values, np.int64), name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)])


@pytest.fixture
def flattened() -> onnx.ModelProto:
    """``x`` with its last two axes made one; the target is computed as exporters of opset 11 did."""
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "first"], ["batch"]),
        helper.make_node("Concat", ["batch", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    return graph_of(nodes, ["batch", 3, 4], first=[0], rest=[-1])


def test_computed_reshape_is_followed_where_the_batch_is_given(flattened: onnx.ModelProto) -> None:
    assert infer_shapes(flattened, {"x": (5, 3, 4)})["y"] == TensorShape((5, 12), FLOAT)
    assert infer_shapes(flattened, free_size=1)["y"] == TensorShape((1, 12), FLOAT)
    assert flattened.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch", "the graph is not changed"


def test_axis_that_may_vary_is_unknown() -> None:
    node = helper.make_node("Transpose", ["x"], ["y"], perm=[1, 0, 2])
    found = infer_shapes(graph_of([node], ["batch", 3, 4], unused=[7, 8]))
    assert found == {"x": ((-1, 3, 4), FLOAT), "y": ((3, -1, 4), FLOAT), "unused": ((2,), INT64)}


def test_result_of_quantising_and_coming_back_has_the_shape_of_its_input() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], domain="com.microsoft"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], domain="com.microsoft"),
    ]
    assert infer_shapes(graph_of(nodes, [2, 3], scale=[1], zero=[0]))["y"].shape == (2, 3)


def test_contradiction_names_the_node(flattened: onnx.ModelProto) -> None:
    del flattened.graph.node[:3]
    flattened.graph.node[0].name = "cut"
    flattened.graph.node[0].input[1] = "constant"
    flattened.graph.initializer.append(numpy_helper.from_array(np.array([1, 7], np.int64), "constant"))
    with pytest.raises(ShapeInferenceError, match=r"node 'cut' reshapes \[2, 3, 4\] to \[1, 7\]"):
        infer_shapes(flattened, {"x": (2, 3, 4)})


def test_unknown_operator_names_the_node() -> None:
    with pytest.raises(UnknownOperatorError, match="node 'odd': unknown operator Thing"):
        infer_shapes(graph_of([helper.make_node("Thing", ["x"], ["y"], "odd")], [1]))


def test_node_is_computed_for_several_inputs() -> None:
    node = helper.make_node("Split", ["x"], ["low", "high"], axis=0)
    evaluator = NodeEvaluator(node, [helper.make_opsetid("", 11)])
    for start in (0.0, 10.0):
        found = evaluator.run({"x": np.arange(start, start + 4, dtype=np.float32)})
        assert {name: values.tolist() for name, values in found.items()} == {
            "low": [start, start + 1],
            "high": [start + 2, start + 3],
        }
