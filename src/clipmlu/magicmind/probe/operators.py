"""One small graph for each operator that lowered graphs may hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from clipmlu.magicmind.probe.draft import WEIGHT, Draft, random_values

Recipe = Callable[[Draft], None]


def _simple(op: str, positive: bool = False, **attributes: Any) -> Recipe:
    def recipe(draft: Draft) -> None:
        values = random_values(2, 8)
        draft.node(op, draft.feed(np.abs(values) + np.float32(0.1) if positive else values), **attributes)

    return recipe


def _pair(op: str, positive: bool = False) -> Recipe:
    def recipe(draft: Draft) -> None:
        second = random_values(1, 8, seed=2)
        draft.node(
            op, draft.feed(random_values(2, 8)), draft.weight(np.abs(second) + np.float32(0.5) if positive else second)
        )

    return recipe


def _picture(op: str, **attributes: Any) -> Recipe:
    def recipe(draft: Draft) -> None:
        draft.node(op, draft.feed(random_values(1, 2, 6, 6)), **attributes)

    return recipe


def _compared(op: str) -> Recipe:
    """A comparison; its result is cast to float32."""

    def recipe(draft: Draft) -> None:
        second = random_values(2, 8, seed=2)
        second[0, :3] = random_values(2, 8)[0, :3]  # some are equal
        draft.node("Cast", draft.node(op, draft.feed(random_values(2, 8)), draft.weight(second)), to=1)

    return recipe


def _logical(op: str) -> Recipe:
    def recipe(draft: Draft) -> None:
        x = draft.feed(random_values(2, 8))
        sides = [draft.node("Less", x, draft.weight(np.float32(0.5)))]
        if op != "Not":
            sides.append(draft.node("Less", draft.weight(np.float32(-0.5)), x))
        draft.node("Cast", draft.node(op, *sides), to=1)

    return recipe


def _batch_normalization(draft: Draft) -> None:
    values = random_values(1, 2, 6, 6)
    scale, bias, mean = (random_values(2, seed=seed) for seed in (2, 3, 4))
    variance = np.abs(random_values(2, seed=5)) + np.float32(0.5)
    draft.node("BatchNormalization", draft.feed(values), *map(draft.weight, (scale, bias, mean, variance)))
    a, b, m, v = (each.reshape(1, 2, 1, 1) for each in (scale, bias, mean, variance))
    # onnx.reference mixes the batch's own mean into this operator's before opset 14, as in training.
    draft.expected = [(a * (values - m) / np.sqrt(v + np.float32(1e-5)) + b).astype(np.float32)]


def _cast(draft: Draft) -> None:
    draft.node("Cast", draft.node("Cast", draft.feed(random_values(2, 8)), to=6), to=1)


def _clip(draft: Draft) -> None:
    draft.node("Clip", draft.feed(random_values(2, 8)), draft.weight(np.float32(-0.5)), draft.weight(np.float32(1.0)))


def _concat(draft: Draft) -> None:
    draft.node("Concat", draft.feed(random_values(2, 8)), draft.weight(random_values(2, 3, seed=2)), axis=1)


def _constant_of_shape(draft: Draft) -> None:
    x = draft.feed(random_values(2, 8))
    draft.node("Add", x, draft.node("ConstantOfShape", draft.node("Shape", x)))


def _conv(draft: Draft) -> None:
    weights = [draft.weight(random_values(3, 2, 3, 3, seed=2)), draft.weight(random_values(3, seed=3))]
    draft.node("Conv", draft.feed(random_values(1, 2, 6, 6)), *weights, kernel_shape=[3, 3], strides=[3, 3])


def _expand(draft: Draft) -> None:
    draft.node("Expand", draft.feed(random_values(2, 1)), draft.weight(np.array([2, 8])))


def _gather(draft: Draft) -> None:
    draft.node("Gather", draft.feed(random_values(2, 8)), draft.weight(np.array([[0, 7], [3, 3]])), axis=1)


def _gather_nd(draft: Draft) -> None:
    draft.node("GatherND", draft.feed(random_values(2, 8)), draft.weight(np.array([[0, 7], [1, 3]])))


def _gemm(draft: Draft) -> None:
    weights = [draft.weight(random_values(5, 8, seed=2)), draft.weight(random_values(5, seed=3))]
    draft.node("Gemm", draft.feed(random_values(2, 8)), *weights, transB=1, alpha=0.5, beta=2.0)


def _is_nan(draft: Draft) -> None:
    x = draft.feed(random_values(2, 8))
    draft.node("Cast", draft.node("IsNaN", x), to=1)


def _matmul(draft: Draft) -> None:
    draft.node("MatMul", draft.feed(random_values(2, 3, 8)), draft.weight(WEIGHT))


def _pad(draft: Draft) -> None:
    draft.node("Pad", draft.feed(random_values(2, 8)), draft.weight(np.array([0, 1, 1, 2])), mode="constant")


def _power(draft: Draft) -> None:
    draft.node("Pow", draft.feed(random_values(2, 8)), draft.weight(np.float32(2.0)))


def _range(draft: Draft) -> None:
    x = draft.feed(random_values(2, 8))
    size = draft.node("Gather", draft.node("Shape", x), draft.weight(np.array(1)), axis=0)
    numbers = draft.node("Range", draft.weight(np.array(0)), size, draft.weight(np.array(1)))
    draft.node("Add", x, draft.node("Cast", numbers, to=1))


def _reshape(draft: Draft) -> None:
    draft.node("Reshape", draft.feed(random_values(2, 8)), draft.weight(np.array([2, 2, -1])))


def _resize(draft: Draft) -> None:
    empty = draft.weight(np.zeros(0, np.float32))
    scales = draft.weight(np.array([1, 1, 2, 2], np.float32))
    how: dict[str, Any] = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    draft.node("Resize", draft.feed(random_values(1, 2, 3, 3)), empty, scales, **how)


def _shape(draft: Draft) -> None:
    draft.node("Shape", draft.feed(random_values(2, 8)))


def _slice(draft: Draft) -> None:
    ends = [draft.weight(np.array(each)) for each in ([1], [7], [1], [2])]
    draft.node("Slice", draft.feed(random_values(2, 8)), *ends)


def _split(draft: Draft) -> None:
    draft.node("Split", draft.feed(random_values(2, 8)), count=2, axis=1, split=[3, 5])


def _squeeze(draft: Draft) -> None:
    draft.node("Squeeze", draft.feed(random_values(2, 1, 8)), axes=[1])


def _tile(draft: Draft) -> None:
    draft.node("Tile", draft.feed(random_values(2, 8)), draft.weight(np.array([2, 3])))


def _where(draft: Draft) -> None:
    x = draft.feed(random_values(2, 8))
    draft.node(
        "Where", draft.node("Less", x, draft.weight(np.float32(0.0))), draft.weight(random_values(2, 8, seed=2)), x
    )


OPERATOR_RECIPES: dict[str, Recipe] = {
    "Abs": _simple("Abs"),
    "Add": _pair("Add"),
    "And": _logical("And"),
    "ArgMax": _simple("ArgMax", axis=1, keepdims=0),
    "AveragePool": _picture("AveragePool", kernel_shape=[2, 2], strides=[2, 2]),
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "Div": _pair("Div", positive=True),
    "Equal": _compared("Equal"),
    "Erf": _simple("Erf"),
    "Exp": _simple("Exp"),
    "Expand": _expand,
    "Flatten": _picture("Flatten"),
    "Floor": _simple("Floor"),
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Gemm": _gemm,
    "GlobalAveragePool": _picture("GlobalAveragePool"),
    "Greater": _compared("Greater"),
    "Identity": _simple("Identity"),
    "IsNaN": _is_nan,
    "LeakyRelu": _simple("LeakyRelu", alpha=0.2),
    "Less": _compared("Less"),
    "Log": _simple("Log", positive=True),
    "LogSoftmax": _simple("LogSoftmax", axis=1),
    "MatMul": _matmul,
    "Max": _pair("Max"),
    "MaxPool": _picture("MaxPool", kernel_shape=[2, 2], strides=[2, 2]),
    "Min": _pair("Min"),
    "Mul": _pair("Mul"),
    "Neg": _simple("Neg"),
    "Not": _logical("Not"),
    "Or": _logical("Or"),
    "Pad": _pad,
    "Pow": _power,
    "Range": _range,
    "Reciprocal": _simple("Reciprocal", positive=True),
    "ReduceL2": _simple("ReduceL2", axes=[1], keepdims=1),
    "ReduceMax": _simple("ReduceMax", axes=[1], keepdims=0),
    "ReduceMean": _simple("ReduceMean", axes=[1], keepdims=1),
    "ReduceMin": _simple("ReduceMin", axes=[1], keepdims=0),
    "ReduceSum": _simple("ReduceSum", axes=[1], keepdims=1),
    "Relu": _simple("Relu"),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Sigmoid": _simple("Sigmoid"),
    "Slice": _slice,
    "Softmax": _simple("Softmax", axis=1),
    "Softplus": _simple("Softplus"),
    "Split": _split,
    "Sqrt": _simple("Sqrt", positive=True),
    "Squeeze": _squeeze,
    "Sub": _pair("Sub"),
    "Tanh": _simple("Tanh"),
    "Tile": _tile,
    "Transpose": _simple("Transpose", perm=[1, 0]),
    "Unsqueeze": _simple("Unsqueeze", axes=[1]),
    "Where": _where,
}
"""Operator -> how to draw its graph; the operators of ``clipmlu.graph.lowering.MAGICMIND``, which a test compares."""
