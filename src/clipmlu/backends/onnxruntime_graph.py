"""Prepares an 8-bit graph for onnxruntime's kernels when it is loaded; the graph's values stay the same.

onnxruntime recognises products of integers between QuantizeLinear and DequantizeLinear, but adds a bias afterwards, in a
pass of its own over the result, and joins it to a GELU whose kernel has half the speed of the one without a bias. It also
converts the integers of a convolution's weight back to floats for every batch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clipmlu.backends.batch_first import make_batch_first
from clipmlu.graph.index import used_nodes
from clipmlu.graph.messages import Array, MessageIndex, Model, Node, Tensor, make_node, read_single_file
from clipmlu.graph.operators import CONTRIBUTED

_PREFIX = "onnxruntime/"
_ZERO = f"{_PREFIX}no zero point"
_SIGN = 128


def read_prepared(path: Path) -> bytes | None:
    """Read an 8-bit graph and prepare it for onnxruntime.

    Args:
        path: a file that ``graph.quantisation.rewrite`` has made.

    Returns:
        The prepared graph, serialised; None if the weights are in a second file.
    """
    model = read_single_file(path)
    if model is None:
        return None
    make_batch_first(model)
    prepare(model)
    return model.to_bytes()


def prepare(model: Model) -> None:
    """Make one operator of each product of integers and its bias, and floats of the weights that products in float32 use.

    Args:
        model: an 8-bit graph, changed in place.
    """
    _Preparation(model).run()


class _Preparation:
    def __init__(self, model: Model) -> None:
        self._graph = model.graph
        self._index = MessageIndex(model)
        self._made: dict[str, Array] = {_ZERO: np.array(0, np.int8)}
        self._replaced: dict[str, Node] = {}  # an operator's result -> the node that computes it now

    def run(self) -> None:
        for node in self._graph.node:
            if node.op_type == "MatMul":
                self._join_product(node)
            elif node.op_type == "Conv" and not self._is_quantised(node.output[0]):
                self._dequantise(node.input[1])
        nodes = [
            self._replaced.get(node.output[0], node)
            for node in self._graph.node
            if self._made.keys().isdisjoint(node.output)
        ]
        kept = used_nodes(nodes, self._index.outputs)
        used = {name for node in kept for name in node.input}
        weights = {name: weight for name, weight in self._index.weights.items() if name not in self._made}
        weights |= {name: Tensor.of(values, name) for name, values in self._made.items()}
        del self._graph.node[:], self._graph.initializer[:]
        self._graph.node.extend(kept)
        self._graph.initializer.extend(weight for name, weight in weights.items() if name in used)

    def _join_product(self, node: Node) -> None:
        rows, weight = self._rows(node.input[0]), self._weight(node.input[1])
        if rows is None or weight is None:
            return
        operands = [rows[0], weight[0], rows[1], weight[1], rows[2], _ZERO]
        result = node.output[0]
        addition = self._bias_addition(node)
        if addition is not None:
            operands.append(next(name for name in addition.input if name != result))
            result = addition.output[0]
        self._replaced[result] = make_node(
            "MatMulIntegerToFloat", operands, [result], name=node.name, domain=CONTRIBUTED
        )

    def _rows(self, name: str) -> tuple[str, str, str] | None:
        """Return a quantised activation's integers, made unsigned, its scale and zero point; None for another tensor."""
        node = self._index.producers.get(name)
        if node is None or node.op_type != "DequantizeLinear" or len(node.input) != 3:
            return None
        integers, scale, zero = node.input
        quantise = self._index.producers.get(integers)
        users = [user for user, _ in self._index.consumers[integers]]
        if quantise is None or quantise.op_type != "QuantizeLinear" or integers in self._index.outputs:
            return None
        levels = self._values(zero)
        if levels is None or levels.size != 1 or any(user.op_type != "DequantizeLinear" for user in users):
            return None
        if levels.dtype == np.int8:
            zero = f"{_PREFIX}unsigned/{zero}"
            self._made[zero] = (levels.astype(np.int16) + _SIGN).astype(np.uint8)
            for each in (quantise, *users):
                each.input[2] = zero
        return integers, scale, zero

    def _weight(self, name: str) -> tuple[str, str] | None:
        """Return a weight's integers, one column for each output, and its scale; None for another tensor."""
        node = self._index.producers.get(name)
        flipped = node is not None and node.op_type == "Transpose"
        if node is not None and flipped:
            node = self._index.producers.get(node.input[0])
        if node is None or node.op_type != "DequantizeLinear" or len(node.input) != 3:
            return None
        levels, scale, zero = (self._values(each) for each in node.input)
        if levels is None or scale is None or zero is None or levels.dtype != np.int8 or levels.ndim != 2 or zero.any():
            return None
        if scale.size > 1 and node.integer("axis", 1) != (0 if flipped else 1):
            return None
        if not flipped:
            return node.input[0], node.input[1]
        columns = f"{_PREFIX}columns/{name}"
        self._made[columns] = np.ascontiguousarray(levels.T)
        return columns, node.input[1]

    def _bias_addition(self, product: Node) -> Node | None:
        """Return the node that adds one constant to each column of a product, if nothing else uses the product."""
        result = product.output[0]
        addition = self._index.only_user(result)
        if addition is None or addition.op_type != "Add":
            return None
        bias = next((self._values(name) for name in addition.input if name != result), None)
        return addition if bias is not None and bias.ndim == 1 and bias.size > 1 else None

    def _is_quantised(self, name: str) -> bool:
        """Return whether a result is quantised, possibly after a Relu: then onnxruntime computes it in integers."""
        waiting, seen = [name], {name}
        while waiting:
            for user, _ in self._index.consumers[waiting.pop()]:
                if user.op_type == "QuantizeLinear":
                    return True
                if user.op_type in ("Relu", "Clip") and user.output[0] not in seen:
                    seen.add(user.output[0])
                    waiting.append(user.output[0])
        return False

    def _dequantise(self, name: str) -> None:
        """Store the floats of an integer weight."""
        node = self._index.producers.get(name)
        if node is None or node.op_type != "DequantizeLinear" or len(node.input) != 3:
            return
        levels, scale, zero = (self._values(each) for each in node.input)
        if levels is None or scale is None or zero is None:
            return
        if scale.size > 1:
            shape = [1] * levels.ndim
            shape[node.integer("axis", 1)] = scale.size
            scale, zero = scale.reshape(shape), zero.reshape(shape)
        self._made[name] = (levels.astype(np.int32) - zero.astype(np.int32)).astype(np.float32) * scale

    def _values(self, name: str) -> Array | None:
        weight = self._index.weights.get(name)
        return self._made.get(name) if weight is None else weight.values
