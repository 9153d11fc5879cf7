"""Attention over (batch, tokens, width) instead of (tokens, batch, width), and one product each for queries, keys and values.

torch's ``nn.MultiheadAttention`` moves the tokens to the front, splits one product into three, and moves the tokens back.
Both CPU runtimes then copy every tensor of the attention several times, and OpenVINO does not join the scales of the 8-bit
product to it. The rewritten graph multiplies the same rows by the same columns, and moves the results in another order.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from clipmlu.graph.index import used_nodes
from clipmlu.graph.messages import Array, MessageIndex, Model, Node, Tensor, make_node

_PREFIX = "batch_first/"
_SWAPPED, _TOKENS_FIRST, _HEADS_FIRST = [1, 0, 2], [2, 0, 1, 3], [0, 2, 1, 3]
_PARTS = 3
_BY_ROW = ("QuantizeLinear", "DequantizeLinear", "MatMul", "Gemm", "Add")
"""Operators of the output projection, which handle every row of their first input by itself."""


def make_batch_first(model: Model) -> None:
    """Rewrite each attention of ``nn.MultiheadAttention``; other nodes stay as they are.

    Args:
        model: a lowered graph, quantised or not, changed in place.
    """
    search = _Search(MessageIndex(model))
    found = [search.attention(node) for node in model.graph.node if node.op_type == "Split"]
    rewriting = _Rewriting(model, search.index)
    for attention in filter(None, found):
        rewriting.rewrite(attention)
    if any(found):
        rewriting.finish()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Head:
    """The nodes from queries, keys or values to (batch, heads, tokens, width of a head)."""

    nodes: list[Node]
    shape: list[int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Attention:
    """An attention with the tokens first.

    Attributes:
        entry: moves the tokens to the front.
        product: computes queries, keys and values.
        bias: adds their bias; None without one.
        split: separates them.
        heads: what follows each of them.
        merge: moves the tokens to the front of the result.
        rows: separates the rows of the output projection into tokens and batch.
        leave: moves the tokens back.
    """

    entry: Node
    product: Node
    bias: Node | None
    split: Node
    heads: list[_Head]
    merge: Node
    rows: Node
    leave: Node


class _Search:
    def __init__(self, index: MessageIndex) -> None:
        self.index = index

    def attention(self, split: Node) -> _Attention | None:
        """Return the attention whose queries, keys and values a node separates, or None."""
        source = self._product(split)
        if source is None or len(split.output) != _PARTS or split.attributes.get("axis") != 2:
            return None
        product, bias = source
        entry = self._entry(product)
        heads = [head for head in map(self._head, split.output) if head is not None]
        if entry is None or len(heads) != _PARTS or any(head.shape != heads[0].shape for head in heads):
            return None
        values = self._user(heads[2].nodes[-1].output[0], "MatMul")
        merge = values and self._transpose(values.output[0], _TOKENS_FIRST)
        rows = merge and self._rows(merge.output[0])
        leave = rows and self._transpose(rows.output[0], _SWAPPED)
        if not merge or not rows or not leave or self._shape(rows)[0] != heads[0].shape[2]:
            return None
        return _Attention(
            entry=entry, product=product, bias=bias, split=split, heads=heads, merge=merge, rows=rows, leave=leave
        )

    def _product(self, split: Node) -> tuple[Node, Node | None] | None:
        """Return the product whose columns a node separates, and the addition of its bias."""
        last = self.index.producers.get(split.input[0])
        bias = None
        if last is not None and last.op_type == "Add" and last.input[1] in self.index.weights:
            bias, last = last, self.index.producers.get(last.input[0])
        if last is None or last.op_type != "MatMul" or self._user(last.output[0], "Add", "Split") is None:
            return None
        return (last, bias) if bias is None or self._user(bias.output[0], "Split") else None

    def _entry(self, product: Node) -> Node | None:
        """Return the node that moves the tokens of a product's rows to the front."""
        node: Node | None = product
        while node is not None and node.op_type in ("MatMul", "DequantizeLinear", "QuantizeLinear"):
            if self._user(node.input[0], node.op_type) is None:
                return None
            node = self.index.producers.get(node.input[0])
        return node if node is not None and self._moves(node, _SWAPPED) else None

    def _head(self, name: str) -> _Head | None:
        first = self._user(name, "Reshape")
        middle = first and self._transpose(first.output[0], _SWAPPED)
        last = middle and self._user(middle.output[0], "Reshape")
        if not first or not middle or not last:
            return None
        joined, shape = self._shape(first), self._shape(last)
        if len(joined) != 3 or len(shape) != 4 or joined[::2] != shape[2:] or min(*joined[::2], *shape[1:]) < 1:
            return None
        return _Head(nodes=[first, middle, last], shape=shape)

    def _rows(self, name: str) -> Node | None:
        """Return the node that separates rows into tokens and batch, after a projection of all rows."""
        flat = self._user(name, "Reshape")
        if flat is None or len(self._shape(flat)) != 2:
            return None
        node: Node | None = flat
        while node is not None:
            node = self._user(node.output[0], "Reshape", *_BY_ROW)
            if node is not None and node.op_type == "Reshape":
                return node if len(self._shape(node)) == 3 else None
        return None

    def _user(self, name: str, *op_types: str) -> Node | None:
        """Return the node that uses a tensor as its first input, if it has one of the types and nothing else uses the tensor."""
        node = self.index.only_user(name)
        if node is None or node.op_type not in op_types:
            return None
        return node if node.input[0] == name or node.op_type == "MatMul" else None

    def _transpose(self, name: str, order: list[int]) -> Node | None:
        node = self._user(name, "Transpose")
        return node if node is not None and self._moves(node, order) else None

    def _moves(self, node: Node, order: list[int]) -> bool:
        return node.op_type == "Transpose" and node.attributes.get("perm") == order

    def _shape(self, reshape: Node) -> list[int]:
        """Return the constant shape of a Reshape; empty if it is computed."""
        weight = self.index.weights.get(reshape.input[1])
        return [] if weight is None else [int(size) for size in weight.values]


class _Rewriting:
    def __init__(self, model: Model, index: MessageIndex) -> None:
        self._graph = model.graph
        self._index = index
        self._replaced: dict[str, list[Node]] = {}  # a node's first result -> the nodes in its place
        self._made: dict[str, Array] = {}

    def rewrite(self, attention: _Attention) -> None:
        for node, position in self._index.consumers[attention.entry.output[0]]:
            node.input[position] = attention.entry.input[0]
        self._replace(attention.entry, [])
        self._separate(attention)
        for head, source in zip(attention.heads, attention.split.output, strict=True):
            self._split_heads(head, source)
        attention.merge.attributes["perm"] = _HEADS_FIRST
        tokens, batch, width = self._constant(attention.rows.input[1]).tolist()
        shape = self._add(f"{attention.rows.name}:shape", np.array([batch, tokens, width]))
        rows = make_node(
            "Reshape", [attention.rows.input[0], shape], [attention.leave.output[0]], name=attention.rows.name
        )
        self._replace(attention.rows, [rows])
        self._replace(attention.leave, [])

    def finish(self) -> None:
        """Write nodes and weights into the graph."""
        nodes = [new for node in self._graph.node for new in self._replaced.get(node.output[0], [node])]
        nodes = used_nodes(nodes, self._index.outputs)
        used = {name for node in nodes for name in node.input}
        weights = [weight for weight in self._graph.initializer if weight.name in used]
        weights += [Tensor.of(values, name) for name, values in self._made.items()]
        del self._graph.node[:], self._graph.initializer[:]
        self._graph.node.extend(nodes)
        self._graph.initializer.extend(weights)

    def _split_heads(self, head: _Head, source: str) -> None:
        """(batch, tokens, width) to (batch, heads, tokens, width of a head)."""
        first, middle, last = head.nodes
        batch, heads, tokens, width = head.shape
        shape = self._add(f"{first.name}:shape", np.array([batch, tokens, heads, width]))
        separate = make_node("Reshape", [source, shape], [first.output[0]], name=first.name)
        move = make_node("Transpose", [first.output[0]], [last.output[0]], name=middle.name, perm=_HEADS_FIRST)
        self._replace(first, [separate])
        self._replace(middle, [])
        self._replace(last, [move])

    def _separate(self, attention: _Attention) -> None:
        """Make three products of one, unless its weight is computed otherwise than by DequantizeLinear."""
        columns = self._columns(attention.product.input[1])
        if columns is None:
            return
        nodes = []
        for number, ((made, weight), result) in enumerate(zip(columns, attention.split.output, strict=True)):
            nodes += [*made, *self._part(attention, number, weight, result)]
        self._replace(attention.product, [])
        if attention.bias is not None:
            self._replace(attention.bias, [])
        self._replace(attention.split, nodes)

    def _part(self, attention: _Attention, number: int, weight: str, result: str) -> list[Node]:
        """Return the product with a part of the columns, and the addition of its bias."""
        product, bias = attention.product, attention.bias
        rows = product.input[0]
        if bias is None:
            return [make_node("MatMul", [rows, weight], [result], name=f"{_PREFIX}{product.name}/{number}")]
        values = np.split(self._constant(bias.input[1]), _PARTS, axis=-1)[number]
        operands = [f"{_PREFIX}{product.output[0]}/{number}", self._add(f"{bias.input[1]}/{number}", values)]
        return [
            make_node("MatMul", [rows, weight], operands[:1], name=f"{_PREFIX}{product.name}/{number}"),
            make_node("Add", operands, [result], name=f"{_PREFIX}{bias.name}/{number}"),
        ]

    def _columns(self, name: str) -> list[tuple[list[Node], str]] | None:
        """Return each third of a weight's columns: the nodes that compute it, and its name."""
        if name in self._index.weights:
            return [([], part) for part in self._thirds(name)]
        node = self._index.producers[name]
        if node.op_type != "DequantizeLinear" or any(each not in self._index.weights for each in node.input):
            return None
        if node.integer("axis", 1) != 1 and self._constant(node.input[1]).size > 1:
            return None
        found = []
        for number, operands in enumerate(zip(*map(self._thirds, node.input), strict=True)):
            part = node.copy(name=f"{node.name}/{number}", input=operands, output=[f"{_PREFIX}{name}/{number}"])
            found.append(([part], part.output[0]))
        return found

    def _thirds(self, name: str) -> list[str]:
        """Add the thirds of a constant along its last axis, and return their names; one number is its own third."""
        values = self._constant(name)
        if values.size == 1:
            return [name] * _PARTS
        parts = np.split(values, _PARTS, axis=-1)
        return [self._add(f"{name}/{number}", part) for number, part in enumerate(parts)]

    def _add(self, name: str, values: Array) -> str:
        self._made[f"{_PREFIX}{name}"] = np.ascontiguousarray(values)
        return f"{_PREFIX}{name}"

    def _constant(self, name: str) -> Array:
        return self._index.weights[name].values

    def _replace(self, node: Node, nodes: list[Node]) -> None:
        self._replaced[node.output[0]] = nodes
