"""A check whether the 8-bit matrix products of a runtime are exact on this CPU.

On CPUs without VNNI, the fast kernels multiply unsigned by signed bytes and add pairs of products in 16 bits, which saturate:
255 * 127 twice does not fit. Signed rows are shifted by 128 to unsigned ones first. The largest products show it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from clipmlu.graph.messages import make_node, small_model

IntegerProduct = Callable[[npt.NDArray[np.int8], npt.NDArray[np.int8]], npt.NDArray[np.float32]]
"""Multiplies rows of shape (N, K) and weights of shape (K, M), both above -128; the result has the shape (N, M)."""

_DEPTH, _WIDTH = 256, 64
_LARGEST = 127


def products_are_exact(multiply: IntegerProduct) -> bool:
    """Whether a runtime multiplies the largest 8-bit integers exactly, one row at a time and 64 rows at once.

    Args:
        multiply: runs ``integer_product_graph(weights)`` on the rows.
    """
    signs = np.where(np.arange(_WIDTH) % 2, 1, -1)
    rows = (_LARGEST * np.repeat(signs[:, None], _DEPTH, axis=1)).astype(np.int8)
    weights = np.ascontiguousarray(rows.T)
    exact = rows.astype(np.int64) @ weights.astype(np.int64)
    return all(np.array_equal(multiply(rows[:count], weights), exact[:count]) for count in (1, _WIDTH))


def integer_product_graph(weights: npt.NDArray[np.int8]) -> bytes:
    """An ONNX graph that multiplies integers as a tower in 8 bits does: a MatMul between QuantizeLinear and DequantizeLinear.

    Args:
        weights: shape (K, M), above -128; stored in the graph.

    Returns:
        The serialised graph. Its input ``x`` is float32 of shape (N, K) and holds integers above -128; all scales are 1. Its
        output ``y`` is float32 of shape (N, M).
    """
    depth, width = weights.shape
    nodes = [
        make_node(op_type, operands.split(), [result])
        for op_type, operands, result in (
            ("QuantizeLinear", "x one zero", "x_levels"),
            ("DequantizeLinear", "x_levels one zero", "x_again"),
            ("DequantizeLinear", "levels one zero", "weights"),
            ("MatMul", "x_again weights", "y"),
        )
    ]
    constants: dict[str, npt.NDArray[Any]] = {
        "one": np.array(1, np.float32),
        "zero": np.array(0, np.int8),
        "levels": weights,
    }
    return small_model(nodes, {"x": ("rows", depth)}, {"y": ("rows", width)}, constants)
