"""Rewriting an ONNX graph so that onnxruntime's float32 kernels compute the results of a precision mode.

    force_float32         the graph is not changed
    force_float16         every tensor and every weight rounded to binary16 (to nearest even, overflow to infinity),
        sums inside an operator in float32; onnxruntime has no binary16 kernels on the CPU
    qintN_mixed_floatM    convolutions and matrix products with N-bit inputs and weights; the rest as in force_floatM

The vendor's rounding and accumulation inside an operator are not public (api 7.11); "conv/matmul-like operators in
N-bit integers, the rest in floatM" is (CV docs). Single nodes may have their own types (api 2.6). "api" is
docs/magicmind-api.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from clipmlu.errors import CalibrationError
from clipmlu.graph.index import attributes_of
from clipmlu.graph.operators import CONTRIBUTED, MOVEMENT, PARAMETER_INPUTS, QUANTISED
from clipmlu.graph.quantisation.derived import FLIPPED, INPUT, INTEGERS, SCALE, ZERO_POINT, derived
from clipmlu.graph.quantisation.parameters import Array, Quantisation, for_weights, from_range
from clipmlu.graph.quantisation.plan import NodeTypes, Plan, uniform_types
from clipmlu.graph.shapes import infer_shapes
from clipmlu.specs import Precision, QuantisationOptions, TensorQuantisation

_FLOAT_TYPES = ("float16", "float32")
_BITS = {"qint8": 8, "qint16": 16}
_NO_TYPES = NodeTypes()


def quantised_tensors(model: onnx.ModelProto, without: frozenset[str] = frozenset()) -> list[str]:
    """Return the activations that are inputs of quantised operators, each once, in the order of the graph.

    Args:
        model: the graph.
        without: names of operators that are not quantised.
    """
    weights = {weight.name for weight in model.graph.initializer}
    names: dict[str, None] = {}
    for node in model.graph.node:
        if node.name in without:
            continue
        for index in QUANTISED.get(node.op_type, ()):
            if node.input[index] not in weights:
                names[node.input[index]] = None
    return list(names)


def apply_numerics(
    model: onnx.ModelProto, element_types: Mapping[str, int], plan: Plan
) -> tuple[onnx.ModelProto, dict[str, TensorQuantisation]]:
    """Rewrite a graph.

    Args:
        model: the graph; it is not changed.
        element_types: maps each tensor to its ONNX element type; types of weights are not used.
        plan: the precision of each node.

    Returns:
        The rewritten graph, and a map from the name of each quantised tensor to its quantisation.

    Raises:
        CalibrationError: a tensor to be quantised has no range.
    """
    if not plan.half and plan.bits is None and not plan.node_types:
        return model, {}
    return _Rewriter(model, element_types, plan).rewrite()


def rewrite_for_runtime(
    model: onnx.ModelProto,
    precision: Precision,
    how: QuantisationOptions,
    ranges: Mapping[str, tuple[float, float]],
    node_types: Mapping[str, str],
) -> tuple[onnx.ModelProto, dict[str, TensorQuantisation]]:
    """Rewrite a lowered graph for onnxruntime on the CPU in a mode.

    Args:
        model: the graph; it is not changed.
        precision: the mode.
        how: options of the quantisation.
        ranges: maps a tensor to the (smallest, largest) value of quantised activations.
        node_types: maps a node to ``float16`` or ``float32`` for all its inputs and outputs; overrides the mode.

    Returns:
        The rewritten graph, and a map from tensor name to its quantisation.

    Raises:
        CalibrationError: a tensor to quantise has no range.
    """
    plan = Plan(
        half=precision.float_type == "float16",
        bits=precision.bits,
        per_axis=how.granularity == "per_axis",
        centred=how.activation == "symmetric",
        least_noise=how.algorithm == "eqnm",
        ranges=dict(ranges),
        node_types={
            node.name: uniform_types(node, node_types[node.name])
            for node in model.graph.node
            if node.name in node_types
        },
        # 16-bit integers have no kernels of their own; half needs rounding between operators that would be fused.
        integer_kernels=precision is Precision.QINT8_MIXED_FLOAT32,
    )
    element_types = {name: found.element_type for name, found in infer_shapes(model).items()}
    rewritten, record = apply_numerics(model, element_types, plan)
    if not any(entry.domain == CONTRIBUTED for entry in rewritten.opset_import):
        rewritten.opset_import.append(helper.make_opsetid(CONTRIBUTED, 1))
    return rewritten, record


class _Rewriter:
    def __init__(self, model: onnx.ModelProto, element_types: Mapping[str, int], plan: Plan) -> None:
        self._model = model
        self._element_types = element_types
        self._plan = plan
        self._weights = {weight.name: weight for weight in model.graph.initializer}
        self._nodes: list[onnx.NodeProto] = []
        self._made: dict[str, onnx.TensorProto] = {}
        self._derived: dict[tuple[str, str], str] = {}
        self._rounded: set[str] = set()
        self._inputs: dict[str, str] = {}  # input of the graph -> its rounded form
        self._sources: dict[str, str] = {}  # the inverse
        self._record: dict[str, TensorQuantisation] = {}

    def rewrite(self) -> tuple[onnx.ModelProto, dict[str, TensorQuantisation]]:
        if self._plan.half:
            self._round_inputs()
        for node in self._model.graph.node:
            self._rewrite_node(node)
        result = onnx.ModelProto()
        result.ir_version = self._model.ir_version
        result.opset_import.extend(self._model.opset_import)
        graph = result.graph
        graph.name = self._model.graph.name
        graph.input.extend(self._model.graph.input)
        graph.output.extend(self._model.graph.output)
        graph.node.extend(self._nodes)
        used = {name for node in self._nodes for name in node.input} | {output.name for output in graph.output}
        graph.initializer.extend(weight for name, weight in self._weights.items() if name in used)
        graph.initializer.extend(self._made.values())
        return result, self._record

    def _round_inputs(self) -> None:
        """Round the inputs of a graph in binary16."""
        for value in self._model.graph.input:
            if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                new = derived(value.name, INPUT)
                self._round(value.name, new)
                self._inputs[value.name] = new
                self._sources[new] = value.name

    def _rewrite_node(self, source: onnx.NodeProto) -> None:
        node = onnx.NodeProto()
        node.CopyFrom(source)
        types = self._plan.node_types.get(node.name, _NO_TYPES)
        bits = self._node_bits(node, types)
        keep = PARAMETER_INPUTS.get(node.op_type, ())
        for index, name in enumerate(node.input):
            if name and index not in keep and self._is_float(name):
                taken = name if types.inputs.get(index) == "float32" else self._inputs.get(name, name)
                node.input[index] = self._input(node, index, taken, types, bits)
        inputs = [name for name in node.input if name and self._is_float(name)]
        moves = node.op_type in MOVEMENT and bool(inputs) and self._rounded.issuperset(inputs)
        self._nodes += _as_product(node) if self._plan.integer_kernels and bits is not None else [node]
        if node.name in self._plan.exact_nodes:
            return
        for index, name in enumerate(node.output):
            if not name or not self._is_float(name):
                continue
            wanted = types.outputs.get(index)
            half = wanted == "float16" if wanted in _FLOAT_TYPES else self._plan.half
            if moves and half:
                self._rounded.add(name)
            elif half:
                node.output[index] = derived(name, "exact")
                self._round(node.output[index], name)

    def _node_bits(self, node: onnx.NodeProto, types: NodeTypes) -> int | None:
        """Return the bits of this node's operands: set for it, else the mode's, for operators that can be quantised."""
        operands = QUANTISED.get(node.op_type, ())
        given = [types.inputs[index] for index in operands if index in types.inputs]
        if not operands or any(dtype in _FLOAT_TYPES for dtype in given):
            return None
        return _BITS[given[0]] if given else self._plan.bits

    def _input(self, node: onnx.NodeProto, index: int, name: str, types: NodeTypes, bits: int | None) -> str:
        weight = self._weights.get(name)
        if bits is not None and index in QUANTISED[node.op_type]:
            return self._quantise_weight(node, index, weight, bits) if weight else self._quantise(name, bits)
        wanted = types.inputs.get(index)
        half = wanted == "float16" if wanted in _FLOAT_TYPES else self._plan.half
        if weight is not None:
            return self._round_weight(weight) if half else name
        if wanted == "float16" and name not in self._rounded:
            return self._derive(name, "half", lambda new: self._round(name, new))
        return name

    def _derive(self, name: str, kind: str, make: Any) -> str:
        """Return another form of a tensor, created once."""
        if (name, kind) not in self._derived:
            new = derived(name, kind)
            self._derived[name, kind] = new
            make(new)
        return self._derived[name, kind]

    def _round(self, name: str, new: str) -> None:
        """Add nodes that round ``name`` to binary16 as ``new``."""
        small = derived(new, "float16")
        self._nodes.append(helper.make_node("Cast", [name], [small], name=derived(new, "down"), to=TensorProto.FLOAT16))
        self._nodes.append(helper.make_node("Cast", [small], [new], name=derived(new, "up"), to=TensorProto.FLOAT))
        self._rounded.add(new)

    def _round_weight(self, weight: onnx.TensorProto) -> str:
        def make(new: str) -> None:
            with np.errstate(over="ignore"):
                self._add_weight(new, _values(weight).astype(np.float16).astype(np.float32))
            self._rounded.add(new)

        return self._derive(weight.name, "float16", make)

    def _quantise_weight(self, node: onnx.NodeProto, index: int, weight: onnx.TensorProto, bits: int) -> str:
        axis = channel_axis(node, index, list(weight.dims)) if self._plan.per_axis else None

        def make(new: str) -> None:
            values = _values(weight)
            how = for_weights(values, bits, axis, least_noise=self._plan.least_noise)
            if self._plan.integer_kernels:
                self._add_integer_weight(new, values, how)
            else:
                self._add_weight(new, how.apply(values))
            self._record[weight.name] = how.record(values.min(initial=0.0), values.max(initial=0.0))

        return self._derive(weight.name, f"int{bits}_{axis}", make)

    def _add_integer_weight(self, new: str, values: Array, how: Quantisation) -> None:
        whole, parameters = f"{new}{INTEGERS}", [f"{new}{SCALE}", f"{new}{ZERO_POINT}"]
        self._add_weight(whole, how.levels(values))
        self._add_weight(parameters[0], how.scale)
        self._add_weight(parameters[1], np.zeros(how.scale.shape, how.dtype))
        axis: dict[str, Any] = {} if how.axis is None else {"axis": how.axis}
        node = helper.make_node(
            "DequantizeLinear",
            [whole, *parameters],
            [new],
            name=f"{new}_DequantizeLinear",
            domain=CONTRIBUTED,
            **axis,
        )
        self._nodes.append(node)
        self._element_types = {**self._element_types, new: TensorProto.FLOAT}

    def _quantise(self, name: str, bits: int) -> str:
        tensor = self._sources.get(name, name)
        ends = self._plan.ranges.get(tensor) or self._plan.ranges.get("")
        if ends is None:
            raise CalibrationError(f"tensor '{tensor}' must be quantised, but was not calibrated")
        how = from_range(bits, *ends, centred=self._plan.centred)

        def make(new: str) -> None:
            self._add_quantisation(name, new, how)
            self._record[tensor] = how.record(*ends)

        return self._derive(name, f"int{bits}", make)

    def _add_quantisation(self, name: str, new: str, how: Quantisation) -> None:
        """Add QuantizeLinear and DequantizeLinear; the contributed operators support 16 bits at any opset."""
        scale, zero = f"{new}{SCALE}", f"{new}{ZERO_POINT}"
        self._add_weight(scale, how.scale.reshape(()))
        self._add_weight(zero, np.array(how.zero_point, how.dtype))
        parameters = [scale, zero]
        whole = f"{new}{INTEGERS}"
        for op_type, source, target in (("QuantizeLinear", name, whole), ("DequantizeLinear", whole, new)):
            node = helper.make_node(
                op_type, [source, *parameters], [target], name=f"{new}_{op_type}", domain=CONTRIBUTED
            )
            self._nodes.append(node)

    def _add_weight(self, name: str, values: Array) -> None:
        self._made[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)

    def _is_float(self, name: str) -> bool:
        if name in self._made or name in self._rounded:
            return True
        weight = self._weights.get(name)
        kind = weight.data_type if weight is not None else self._element_types.get(name, 0)
        return kind == TensorProto.FLOAT


def _as_product(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return a linear layer as MatMul and Add, which have integer kernels; other nodes unchanged."""
    attributes = attributes_of(node)
    plain = all(attributes.get(name, 1.0) == 1.0 for name in ("alpha", "beta")) and not attributes.get("transA", 0)
    if node.op_type != "Gemm" or not plain:
        return [node]
    nodes = []
    operands = list(node.input[:2])
    if attributes.get("transB", 0):
        flipped = derived(node.input[1], FLIPPED)
        nodes.append(helper.make_node("Transpose", [operands[1]], [flipped], name=flipped, perm=[1, 0]))
        operands[1] = flipped
    product = derived(node.output[0], "product") if len(node.input) > 2 else node.output[0]
    nodes.append(helper.make_node("MatMul", operands, [product], name=node.name))
    if len(node.input) > 2:
        nodes.append(
            helper.make_node("Add", [product, node.input[2]], [node.output[0]], name=derived(node.name, "bias"))
        )
    return nodes


def _values(weight: onnx.TensorProto) -> Array:
    return np.asarray(numpy_helper.to_array(weight), np.float32)


def channel_axis(node: onnx.NodeProto, index: int, dims: list[int]) -> int | None:
    """Return the output channel axis of a weight; per_axis excludes depthwise convolutions (python_common README)."""
    attributes = attributes_of(node)
    if node.op_type in ("Conv", "ConvTranspose"):
        if attributes.get("group", 1) > 1 and dims[1] == 1:
            return None
        return 0 if node.op_type == "Conv" else 1
    if len(dims) < 2:
        return None
    flipped = attributes.get("transA" if index == 0 else "transB", 0)
    last = len(dims) - 1
    across, along = (last, last - 1) if index == 1 else (last - 1, last)
    return along if flipped else across
