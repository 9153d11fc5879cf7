"""Roles and block numbers of the quantisable operators of a lowered graph.

Roles depend on the graph's structure and not on names, so renaming does not change them:

    stream     tensors that are computed from pixels or from looked-up embeddings, see ``operator_graph``
    tower      the nodes whose stream comes from the same inputs of the graph; a joint graph has several towers
    spine      the nodes that every path of a tower passes through: the dominators of its last node
    stretch    the nodes between two neighbours on the spine; a residual stretch starts with a fork and ends with an
        addition

The operators around a Softmax are an attention. In a residual stretch the attention belongs to a block; on the spine it
pools.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import TYPE_CHECKING, Literal, get_args

from clipmlu.graph.operator_graph import OperatorGraph

if TYPE_CHECKING:  # onnx is imported on use: the command line parses selections, which need roles, without it
    import onnx

Role = Literal[
    "patch_embedding",
    "qkv",
    "attention_scores",
    "attention_values",
    "attention_output",
    "mlp_in",
    "mlp_out",
    "convolution",
    "pooling",
    "projection",
    "other",
]
ROLES: tuple[Role, ...] = get_args(Role)
"""All roles:

    patch_embedding     convolutions (or the linear layer) of the image, before the first block
    qkv                 projections to queries, keys and values: a fused one, or several
    attention_scores    queries x keys
    attention_values    probabilities x values
    attention_output    projection of the attention's result
    mlp_in, mlp_out     linear layers before and after a block's nonlinearity; a gated block has several ``mlp_in``
    convolution         all other convolutions of the body
    pooling             all operators of an attention pooling: separate queries, or a single token as the result
    projection          linear layers after the last block, up to the embedding
    other               none of these, such as the logits of a joint graph
"""

_JOINS = ("Add", "Sum")
_START = -1  # before a tower's first node


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operator:
    """One operator that the ``qintN`` modes quantise.

    Attributes:
        node: its name in the graph.
        role: its role.
        block: number of its residual block, from 0 in each tower; attention and MLP of a transformer block have the
            same number. None outside the blocks.
        macs: multiply-accumulates for one row of the batch.
        inputs: the activations that it multiplies, without weights.
        output: the tensor that it produces.
    """

    node: str
    role: Role
    block: int | None
    macs: int
    inputs: tuple[str, ...]
    output: str


def find_operators(model: onnx.ModelProto) -> list[Operator]:
    """Find the operators that are quantised, and their roles.

    Args:
        model: a lowered graph, of one tower or of both; it is not changed.

    Returns:
        One entry for each Conv, ConvTranspose, MatMul and Gemm, in the order of the graph.

    Raises:
        CompileError: a required shape cannot be inferred.
    """
    graph = OperatorGraph(model)
    roles: dict[int, Role] = {}
    blocks: dict[int, int] = {}
    for nodes in graph.towers():
        tower = _TowerRoles(graph, nodes)
        roles.update(tower.roles)
        blocks.update(tower.blocks)
    return [
        Operator(
            node=graph.nodes[index].name,
            role=roles.get(index, "other"),
            block=blocks.get(index),
            macs=graph.macs(index),
            inputs=graph.activations(index),
            output=graph.nodes[index].output[0],
        )
        for index in graph.operators
    ]


class _TowerRoles:
    """Roles and block numbers of one tower's operators.

    Attributes:
        roles: maps an operator to its role, if it has one.
        blocks: maps an operator to its block, if it is in one.
    """

    def __init__(self, graph: OperatorGraph, nodes: list[int]) -> None:
        self.roles: dict[int, Role] = {}
        self.blocks: dict[int, int] = {}
        self._graph = graph
        self._nodes = nodes
        self._spine, self._positions = _find_spine(graph, nodes)
        self._on_spine = frozenset(self._spine)
        self._stretches = self._residual_stretches()
        self._joins = {self._spine[position + 1] for position in self._stretches}
        self._pooled = len(self._spine)  # position of the first attention pooling
        attentive = self._name_attentions()
        self._name_blocks(attentive)
        self._name_rest()

    def _residual_stretches(self) -> dict[int, list[int]]:
        """Map each residual fork, by its position on the spine, to the operators of its branch, if some have weights."""
        held: dict[int, list[int]] = {}
        for node in self._nodes:
            if self._graph.is_operator(node) and node not in self._on_spine:
                held.setdefault(self._positions[node], []).append(node)
        return {
            position: operators
            for position, operators in sorted(held.items())
            if position and self._is_join(self._spine[position + 1]) and any(map(self._graph.is_weighted, operators))
        }

    def _is_join(self, node: int) -> bool:
        predecessors = [predecessor for predecessor in self._graph.predecessors[node] if predecessor in self._positions]
        return self._graph.nodes[node].op_type in _JOINS and len(predecessors) > 1

    def _name_attentions(self) -> set[int]:
        """Name the operators around each Softmax; return the positions of the stretches with self-attention."""
        positions = set()
        for node in self._nodes:
            if self._graph.nodes[node].op_type != "Softmax":
                continue
            attention = self._attention_around(node)
            if not attention["attention_scores"] or not attention["attention_values"]:
                continue
            position = self._positions[node]
            if self._is_self_attention(position, attention["attention_scores"]):
                positions.add(position)
            else:
                self._pooled = min(self._pooled, position)
                attention = {"pooling": set().union(*attention.values())}
            for role, operators in attention.items():
                self.roles.update(dict.fromkeys(operators, role))
        return positions

    def _attention_around(self, softmax: int) -> dict[Role, set[int]]:
        scores = {each for each in self._before(softmax) if self._is_product(each)}
        values = {each for each in self._after(softmax) if self._is_product(each)}
        beyond = self._joins | {softmax}  # weights may compute a position bias
        sources = set().union(*(self._before(product, beyond) for product in scores | values))
        results = set().union(*(self._after(product) for product in values))
        return {
            "attention_scores": scores,
            "attention_values": values,
            "qkv": set(filter(self._graph.is_weighted, sources)),
            "attention_output": set(filter(self._graph.is_weighted, results)),
        }

    def _is_product(self, operator: int) -> bool:
        """Return whether it multiplies two activations of this tower."""
        return operator in self._positions and not self._graph.is_weighted(operator)

    def _is_self_attention(self, position: int, scores: set[int]) -> bool:
        """Return whether tokens attend to each other beside a residual stream, as in a block; else it is a pooling."""
        return position in self._stretches and any(
            all(map(self._graph.is_stream, self._graph.activations(product)))
            and _is_square(self._graph.shape(self._graph.nodes[product].output[0]))
            for product in scores
        )

    def _name_blocks(self, attentive: set[int]) -> None:
        """Number the residual stretches; an MLP has the number of the attention before it."""
        block, lacks_mlp = -1, False
        for position, operators in self._stretches.items():
            if position >= self._pooled and position not in attentive:  # the MLP of an attention pooling
                self.roles.update(dict.fromkeys(operators, "pooling"))
                continue
            mlp = self._find_mlp(operators)
            self.roles.update(mlp)
            for operator in operators:
                if operator not in self.roles and self._graph.is_convolution(operator):
                    self.roles[operator] = "convolution"
            if not (mlp and lacks_mlp and position not in attentive):
                block += 1
            lacks_mlp = position in attentive and not mlp
            self.blocks.update((each, block) for each in operators if self.roles.get(each) != "pooling")

    def _find_mlp(self, operators: list[int]) -> dict[int, Role]:
        """Return the roles of a stretch's linear layers that directly follow each other."""
        layers = {each for each in operators if each not in self.roles and self._graph.is_pointwise(each)}
        feeders = {layer: self._before(layer, self._on_spine) & layers for layer in layers}
        first = set().union(*feeders.values())
        roles: dict[int, Role] = {layer: "mlp_out" for layer in layers if feeders[layer]}
        return roles | dict.fromkeys(first, "mlp_in")

    def _name_rest(self) -> None:
        """Name operators with weights outside the blocks, by their position."""
        positions = [self._positions[operator] for operator in self.blocks]
        first, last = (min(positions), max(positions)) if positions else (len(self._spine), _START)
        pictures = not any(map(self._graph.is_lookup, self._nodes))
        for node in self._nodes:
            if node in self.roles or node in self.blocks or not self._graph.is_weighted(node):
                continue
            position = self._positions[node]
            if self._graph.is_convolution(node):
                self.roles[node] = "patch_embedding" if position <= first else "convolution"
            elif position > last:
                self.roles[node] = "projection"
            elif position <= first and pictures:
                self.roles[node] = "patch_embedding"

    def _before(self, node: int, barriers: Collection[int] | None = None) -> set[int]:
        return self._graph.nearest(node, self._graph.predecessors, self._joins if barriers is None else barriers)

    def _after(self, node: int) -> set[int]:
        return self._graph.nearest(node, self._graph.successors, self._joins)


def _find_spine(graph: OperatorGraph, nodes: list[int]) -> tuple[list[int], dict[int, int]]:
    """Return the spine of a tower, ``_START`` first, and the position of each node's last dominator on the spine.

    Immediate dominators of an acyclic graph, in one pass in its order (Cooper, Harvey and Kennedy, "A simple, fast
    dominance algorithm", 2001).
    """
    above: dict[int, int] = {}
    depths = {_START: 0}
    for node in nodes:
        predecessors = [predecessor for predecessor in graph.predecessors[node] if predecessor in above] or [_START]
        above[node] = predecessors[0]
        for predecessor in predecessors[1:]:
            above[node] = _meet(above[node], predecessor, above, depths)
        depths[node] = depths[above[node]] + 1
    spine = [nodes[-1]]
    while spine[-1] != _START:
        spine.append(above[spine[-1]])
    spine.reverse()
    positions = {node: position for position, node in enumerate(spine)}
    for node in nodes:
        positions.setdefault(node, positions[above[node]])
    return spine, positions


def _meet(one: int, other: int, above: dict[int, int], depths: dict[int, int]) -> int:
    """Return the last node that dominates both."""
    while one != other:
        if depths[one] < depths[other]:
            one, other = other, one
        one = above[one]
    return one


def _is_square(shape: tuple[int, ...]) -> bool:
    return shape[-1] == shape[-2]
