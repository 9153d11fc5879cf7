"""Unsigned 8-bit integers: the same numbers for kernels that are exact with these only.

onnxruntime's kernels for signed weights add pairs of products in 16 bits on x86 CPUs without VNNI, and saturate there; those
for unsigned ones widen to 16 bits first and are exact, but take no VNNI where there is one (onnxruntime, ``mlas/lib/platform.cpp``
and "Quantize ONNX models", U8S8 and U8U8). So graphs are stored with signed integers, and turned around where that is needed.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_SHIFT = 128
_DEPTH = 64


def with_unsigned_integers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Shift all 8-bit levels and zero points by 128; no number that they stand for changes.

    Args:
        model: a graph whose QuantizeLinear and DequantizeLinear have zero points; it is not changed.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    weights = {weight.name: weight for weight in result.graph.initializer}
    shifted = {
        name
        for node in result.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for name in (node.input[0], node.input[2])
        if name in weights and weights[name].data_type == TensorProto.INT8
    }
    for name in shifted:
        levels = numpy_helper.to_array(weights[name]).astype(np.int16) + _SHIFT
        weights[name].CopyFrom(numpy_helper.from_array(levels.astype(np.uint8), name))
    return result


def saturation_probe() -> tuple[onnx.ModelProto, dict[str, np.ndarray], float]:
    """A product of the largest signed integers, whose pairs do not fit into 16 bits.

    Returns:
        The graph, what to feed it, and what each element of its result is where the arithmetic is exact.
    """
    one, zero = np.float32(1), np.int8(0)
    weight = np.full((_DEPTH, 32), 127, np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["levels"]),
        helper.make_node("DequantizeLinear", ["levels", "one", "zero"], ["activations"]),
        helper.make_node("DequantizeLinear", ["weight", "one", "zero"], ["weights"]),
        helper.make_node("MatMul", ["activations", "weights"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "saturation",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, _DEPTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 32])],
        [
            numpy_helper.from_array(np.asarray(array), name)
            for name, array in (("one", one), ("zero", zero), ("weight", weight))
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    return model, {"x": np.full((4, _DEPTH), 127, np.float32)}, float(_DEPTH * 127 * 127)
