"""Clipping: adds the chosen range of a tensor to the graph.

A quantiser clips to its range anyway. With a Clip in the graph, a quantiser that takes the smallest and the largest
value, such as the vendor's LINEAR algorithm, obtains the chosen range.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from clipmlu.graph.operators import QUANTISED
from clipmlu.graph.quantisation.derived import clipped


def clip_graph(
    model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]], *, without: frozenset[str] = frozenset()
) -> tuple[onnx.ModelProto, dict[str, tuple[float, float]]]:
    """Add a Clip before the operators that quantise a tensor."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []
    applied: dict[str, tuple[float, float]] = {}
    for node in result.graph.node:
        for position in QUANTISED.get(node.op_type, ()) if node.name not in without else ():
            name = node.input[position]
            if name not in ranges:
                continue
            inner = clipped(name)
            if name not in applied:
                low, high = (np.float32(end) for end in ranges[name])
                applied[name] = (float(low), float(high))
                ends = [f"{inner}:{end}" for end in ("min", "max")]
                result.graph.initializer.extend(
                    numpy_helper.from_array(np.asarray(value, np.float32), end)
                    for value, end in zip((low, high), ends, strict=True)
                )
                nodes.append(helper.make_node("Clip", [name, *ends], [inner], name=inner))
            node.input[position] = inner
        nodes.append(node)
    copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    result.graph.ClearField("node")
    result.graph.node.extend(copied)
    return result, applied
