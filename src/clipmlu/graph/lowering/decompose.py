"""Decomposition of operators that opset 11 does not have, one function each.

The forms are those of torch 1.7 for the same modules at opsets 10 and 11, since the vendor's parser is known to accept
such graphs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from clipmlu.errors import CompileError
from clipmlu.graph.lowering.nodes import (
    GraphEditor,
    Steps,
    attribute,
    constant_input,
    describe,
    input_or_none,
    rank_of,
    static_size,
)


def decompose_node(node: ir.Node, editor: GraphEditor) -> bool:
    """Decompose one node in place; return False if there is no rule for its operator."""
    rule = DECOMPOSITIONS.get(node.op_type) if not node.domain else None
    if rule is None:
        return False
    rule(node, Steps(editor, node))
    return True


def _source(node: ir.Node) -> ir.Value:
    value = input_or_none(node, 0)
    assert value is not None, describe(node)
    return value


def _refuse_other_outputs(node: ir.Node) -> None:
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        raise CompileError(f"{describe(node)} has more results in use than its first, which cannot be lowered.")
    node.resize_outputs(1)


def _layer_normalization(node: ir.Node, steps: Steps) -> None:
    """(x - mean) / sqrt(mean((x - mean)^2) + eps) * scale + bias over the axes from ``axis`` on."""
    _refuse_other_outputs(node)
    source, scale, bias = _source(node), node.inputs[1], input_or_none(node, 2)
    rank = rank_of(node, source)
    axes = list(range(attribute(node, "axis", -1) % rank, rank))
    mean = steps.add("ReduceMean", source, axes=axes, keepdims=1)
    centred = steps.add("Sub", source, mean)
    square = steps.add("Pow", centred, steps.like("two", 2, source))
    variance = steps.add("ReduceMean", square, axes=axes, keepdims=1)
    shifted = steps.add("Add", variance, steps.like("epsilon", attribute(node, "epsilon", 1e-5), source))
    normal = steps.add("Div", centred, steps.add("Sqrt", shifted))
    if bias is None:
        steps.finish("Mul", normal, scale)
    else:
        steps.finish("Add", steps.add("Mul", normal, scale), bias)


def _rms_normalization(node: ir.Node, steps: Steps) -> None:
    """Input / sqrt(mean(input^2) + eps) * scale."""
    source = _source(node)
    rank = rank_of(node, source)
    axes = list(range(attribute(node, "axis", -1) % rank, rank))
    square = steps.add("Pow", source, steps.like("two", 2, source))
    mean = steps.add("ReduceMean", square, axes=axes, keepdims=1)
    shifted = steps.add("Add", mean, steps.like("epsilon", attribute(node, "epsilon", 1e-5), source))
    steps.finish("Mul", steps.add("Div", source, steps.add("Sqrt", shifted)), node.inputs[1])


def _group_normalization(node: ir.Node, steps: Steps) -> None:
    """Normalise each group of channels to mean 0, variance 1; scale and bias per group at opset 18, per channel later."""
    source, scale, bias = _source(node), constant_input(node, 1), constant_input(node, 2)
    rank, groups = rank_of(node, source), attribute(node, "num_groups")
    channels = static_size(node, source, 1)
    spatial = [static_size(node, source, axis) for axis in range(2, rank)]
    assert scale is not None
    assert bias is not None
    if groups < 1 or channels % groups:
        raise CompileError(f"{describe(node)} has {channels} channels in {groups} groups; expected groups of one size.")
    if scale.shape != bias.shape or scale.shape not in ((groups,), (channels,)):
        raise CompileError(
            f"{describe(node)} has a scale of shape {scale.shape} and a bias of shape {bias.shape}; "
            f"expected one value for each of {groups} groups or {channels} channels."
        )
    flat = steps.add("Reshape", source, steps.integers("groups", [-1, groups, channels // groups * math.prod(spatial)]))
    mean = steps.add("ReduceMean", flat, axes=[2], keepdims=1)
    centred = steps.add("Sub", flat, mean)
    square = steps.add("Pow", centred, steps.like("two", 2, source))
    variance = steps.add("ReduceMean", square, axes=[2], keepdims=1)
    shifted = steps.add("Add", variance, steps.like("epsilon", attribute(node, "epsilon", 1e-5), source))
    normal = steps.add("Div", centred, steps.add("Sqrt", shifted), dtype=source.dtype)
    back = steps.add("Reshape", normal, steps.integers("shape", [-1, channels, *spatial]))
    shape = (channels, *[1] * (rank - 2))
    repeats = channels // scale.size
    gain = steps.constant("scale", scale.repeat(repeats).reshape(shape))
    offset = steps.constant("bias", bias.repeat(repeats).reshape(shape))
    steps.finish("Add", steps.add("Mul", back, gain), offset)


def _instance_normalization(node: ir.Node, steps: Steps) -> None:
    """Normalise each channel of each image to mean 0 and variance 1."""
    source, scale, bias = _source(node), constant_input(node, 1), constant_input(node, 2)
    assert scale is not None
    assert bias is not None
    rank = rank_of(node, source)
    axes = list(range(2, rank))
    centred = steps.add("Sub", source, steps.add("ReduceMean", source, axes=axes, keepdims=1))
    square = steps.add("Pow", centred, steps.like("two", 2, source))
    variance = steps.add("ReduceMean", square, axes=axes, keepdims=1)
    shifted = steps.add("Add", variance, steps.like("epsilon", attribute(node, "epsilon", 1e-5), source))
    normal = steps.add("Div", centred, steps.add("Sqrt", shifted))
    shape = (-1, *[1] * (rank - 2))
    scaled = steps.add("Mul", normal, steps.constant("scale", scale.reshape(shape)))
    steps.finish("Add", scaled, steps.constant("bias", bias.reshape(shape)))


def _gelu(node: ir.Node, steps: Steps) -> None:
    """Half the input times 1 + erf(input / sqrt 2), or the approximation with tanh."""
    source = _source(node)
    if attribute(node, "approximate", "none") == "tanh":
        cube = steps.add("Pow", source, steps.like("three", 3, source))
        inner = steps.add("Add", source, steps.add("Mul", cube, steps.like("cubic", 0.044715, source)))
        curve = steps.add("Tanh", steps.add("Mul", inner, steps.like("slope", math.sqrt(2 / math.pi), source)))
    else:
        curve = steps.add("Erf", steps.add("Div", source, steps.like("sqrt_two", math.sqrt(2), source)))
    shifted = steps.add("Add", curve, steps.like("one", 1, source))
    steps.finish("Mul", steps.add("Mul", source, shifted), steps.like("half", 0.5, source))


def _line(node: ir.Node, steps: Steps, alpha: float, beta: float) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return the line alpha x + beta, and the numbers 0 and 1: the inputs of a Clip."""
    source = _source(node)
    scaled = steps.add("Mul", source, steps.like("alpha", alpha, source))
    line = steps.add("Add", scaled, steps.like("beta", beta, source))
    return line, steps.like("zero", 0, source), steps.like("one", 1, source)


def _hard_sigmoid(node: ir.Node, steps: Steps) -> None:
    """Clip(alpha x + beta, 0, 1)."""
    steps.finish("Clip", *_line(node, steps, attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)))


def _hard_swish(node: ir.Node, steps: Steps) -> None:
    """Input times Clip(input / 6 + 1/2, 0, 1)."""
    steps.finish("Mul", _source(node), steps.add("Clip", *_line(node, steps, 1 / 6, 0.5)))


def _swish(node: ir.Node, steps: Steps) -> None:
    """Input times sigmoid(alpha * input)."""
    source, alpha = _source(node), attribute(node, "alpha", 1.0)
    inner = source if alpha == 1 else steps.add("Mul", source, steps.like("alpha", alpha, source))
    steps.finish("Mul", source, steps.add("Sigmoid", inner))


def _mish(node: ir.Node, steps: Steps) -> None:
    """Input times tanh(log(1 + exp(input)))."""
    source = _source(node)
    steps.finish("Mul", source, steps.add("Tanh", steps.add("Softplus", source)))


def _cast_like(node: ir.Node, steps: Steps) -> None:
    """Cast to the type of the second input."""
    like = node.inputs[1]
    if like is None or like.dtype is None:
        raise CompileError(f"{describe(node)} casts to an unknown type.")
    steps.finish("Cast", _source(node), to=int(like.dtype))


def _or_equal(node: ir.Node, steps: Steps) -> None:
    """Not Greater, or not Less: equal for all numbers except NaN."""
    opposite = "Greater" if node.op_type == "LessOrEqual" else "Less"
    steps.finish("Not", steps.add(opposite, *node.inputs, dtype=ir.DataType.BOOL))


def _lp_normalization(node: ir.Node, steps: Steps) -> None:
    """X divided by its norm along one axis."""
    source = _source(node)
    order = attribute(node, "p", 2)
    axis = attribute(node, "axis", -1) % rank_of(node, source)
    if order == 2:
        norm = steps.add("ReduceL2", source, axes=[axis], keepdims=1)
    else:
        norm = steps.add("ReduceSum", steps.add("Abs", source), axes=[axis], keepdims=1)
    steps.finish("Div", source, norm)


def _reduce_l1(node: ir.Node, steps: Steps) -> None:
    """Sum of absolute values; only the form with constant axes."""
    axes = constant_input(node, 1)
    rank = rank_of(node, node.inputs[0])
    chosen = [int(axis) % rank for axis in axes.ravel()] if axes is not None else list(range(rank))
    steps.finish("ReduceSum", steps.add("Abs", _source(node)), axes=chosen, keepdims=attribute(node, "keepdims", 1))


def _einsum(node: ir.Node, steps: Steps) -> None:
    """Write a product of two tensors as Transpose, Reshape, MatMul; each letter is batch, kept on one side, or summed."""
    equation = str(attribute(node, "equation")).replace(" ", "")
    terms, _, result = equation.partition("->")
    sides = terms.split(",")
    if (
        len(sides) != 2
        or not result
        or "." in equation
        or any(len(set(each)) != len(each) for each in (*sides, result))
    ):
        raise CompileError(
            f"{describe(node)} has the equation '{equation}', which is not a plain product of two tensors."
        )
    left, right = sides
    shared = set(left) & set(right)
    batch = [letter for letter in result if letter in shared]
    summed = [letter for letter in left if letter in shared - set(result)]
    rows = [letter for letter in result if letter in set(left) - shared]
    columns = [letter for letter in result if letter in set(right) - shared]
    if len(batch) + len(rows) + len(columns) != len(result) or (set(left) | set(right)) - set(result) - set(summed):
        raise CompileError(f"{describe(node)} has the equation '{equation}', which sums an index of only one input.")
    sizes: dict[str, int | ir.SymbolicDim] = {}
    for side, value in zip(sides, node.inputs, strict=True):
        assert value is not None
        assert value.shape is not None
        sizes |= dict(zip(side, value.shape, strict=True))
    first = _matrices(node, steps, 0, left, (batch, rows, summed), sizes)
    second = _matrices(node, steps, 1, right, (batch, summed, columns), sizes)
    product = steps.add("MatMul", first, second)
    order = [*batch, *rows, *columns]
    shaped = steps.add("Reshape", product, steps.integers("shape", _numbers(node, order, sizes)))
    steps.finish("Transpose", shaped, perm=[order.index(letter) for letter in result])


def _matrices(
    node: ir.Node,
    steps: Steps,
    index: int,
    letters: str,
    parts: tuple[list[str], list[str], list[str]],
    sizes: dict[str, int | ir.SymbolicDim],
) -> ir.Value:
    """Return one operand with the axes (batch..., rows, columns), rows and columns flattened."""
    order = [letter for part in parts for letter in part]
    moved = steps.add("Transpose", node.inputs[index], perm=[letters.index(letter) for letter in order])
    flat = [
        math.prod(_static(node, sizes[letter]) for letter in part) if not _is_open(part, sizes) else -1
        for part in parts[1:]
    ]
    target = [*_numbers(node, parts[0], sizes), *flat]
    if target.count(-1) > 1:
        raise CompileError(f"{describe(node)} has more than one axis that depends on the batch.")
    return steps.add("Reshape", moved, steps.integers(f"matrix{index}", target))


def _is_open(part: list[str], sizes: dict[str, int | ir.SymbolicDim]) -> bool:
    return any(not isinstance(sizes[letter], int) for letter in part)


def _static(node: ir.Node, size: int | ir.SymbolicDim) -> int:
    if not isinstance(size, int):
        raise CompileError(f"{describe(node)} needs a static axis, not '{size}'.")
    return size


def _numbers(node: ir.Node, letters: list[str], sizes: dict[str, int | ir.SymbolicDim]) -> list[int]:
    numbers = [size if isinstance(size := sizes[letter], int) else -1 for letter in letters]
    if numbers.count(-1) > 1:
        raise CompileError(f"{describe(node)} has more than one axis that depends on the batch.")
    return numbers


def _attention(node: ir.Node, steps: Steps) -> None:
    """softmax(scale q k^T + mask) v on four-dimensional inputs, without cache, grouping or causality."""
    query, key, value = node.inputs[:3]
    mask = input_or_none(node, 3)
    plain = not any(attribute(node, name, 0) for name in ("is_causal", "softcap", "qk_matmul_output_mode"))
    if not plain or any(each is not None for each in node.inputs[4:]) or rank_of(node, query) != 4:
        raise CompileError(f"{describe(node)} is causal, cached, capped or not four-dimensional, which is not lowered.")
    if static_size(node, query, 1) != static_size(node, key, 1) or query is None or key is None or value is None:
        raise CompileError(f"{describe(node)} shares keys between heads, which is not lowered.")
    _refuse_other_outputs(node)
    factor = attribute(node, "scale") or 1 / math.sqrt(static_size(node, query, 3))
    scaled = steps.add("Mul", query, steps.like("scale", factor, query))
    scores = steps.add("MatMul", scaled, steps.add("Transpose", key, perm=[0, 1, 3, 2]))
    if mask is not None:
        if mask.dtype == ir.DataType.BOOL:
            zero, low = steps.like("zero", 0, query), steps.like("masked", -math.inf, query)
            mask = steps.add("Where", mask, zero, low, dtype=query.dtype)
        scores = steps.add("Add", scores, mask)
    steps.finish("MatMul", steps.add("Softmax", scores, axis=3), value)


def _cumulative_sum(node: ir.Node, steps: Steps) -> None:
    """Add up, for each place of an axis, the products with a row of zeros and ones; in float, where counts are exact."""
    source, given = _source(node), constant_input(node, 1)
    assert given is not None
    rank = rank_of(node, source)
    axis = int(given.reshape(())) % rank
    length = static_size(node, source, axis)
    until = np.tri(length, k=-attribute(node, "exclusive", 0), dtype=np.float32)
    until = (until.T if attribute(node, "reverse", 0) else until).reshape(length, length, *[1] * (rank - 1 - axis))
    assert source.dtype is not None
    real, float32 = source.dtype.is_floating_point(), ir.DataType.FLOAT
    number = source if real else steps.add("Cast", source, dtype=float32, to=int(float32))
    assert number.dtype is not None
    wide = steps.add("Unsqueeze", number, axes=[axis])
    parts = steps.add("Mul", wide, steps.constant("until", until.astype(number.dtype.numpy())))
    if real:
        steps.finish("ReduceSum", parts, axes=[axis + 1], keepdims=0)
    else:
        steps.finish("Cast", steps.add("ReduceSum", parts, axes=[axis + 1], keepdims=0), to=int(source.dtype))


DECOMPOSITIONS: dict[str, Callable[[ir.Node, Steps], None]] = {
    "Attention": _attention,
    "CastLike": _cast_like,
    "CumSum": _cumulative_sum,
    "Einsum": _einsum,
    "Gelu": _gelu,
    "GreaterOrEqual": _or_equal,
    "GroupNormalization": _group_normalization,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization,
    "LessOrEqual": _or_equal,
    "LpNormalization": _lp_normalization,
    "Mish": _mish,
    "RMSNormalization": _rms_normalization,
    "ReduceL1": _reduce_l1,
    "Swish": _swish,
}
"""Maps an operator to its decomposition."""
