"""Operators that compute in integers, and operators that only move numbers."""

from __future__ import annotations

CONTRIBUTED = "com.microsoft"
"""Domain of onnxruntime's own operators; graphs use its quantising operators, which support 16 bits at any opset."""

QUANTISED = {"Conv": (0, 1), "ConvTranspose": (0, 1), "MatMul": (0, 1), "Gemm": (0, 1)}
"""Maps an operator with N-bit inputs in the ``qintN`` modes ("conv/matmul-like operators", CV docs) to these inputs."""

_MOVEMENT = """
    Concat DepthToSpace Dropout Expand Flatten Gather GatherElements GatherND Identity Max MaxPool Min Neg Abs Pad Relu
    Reshape ReduceMax ReduceMin Slice Split Squeeze Tile Transpose TopK Unsqueeze Where GlobalMaxPool
"""
MOVEMENT = frozenset(_MOVEMENT.split())
"""Operators whose results are a subset of their inputs (up to the sign, or zero), so that rounding again has no effect.
"""

PARAMETER_INPUTS = {"Resize": (1, 2, 3), "Upsample": (1,), "Clip": (), "Dropout": (1, 2)}
"""Floating-point inputs that are parameters of the operator, not data; they are not rounded."""
