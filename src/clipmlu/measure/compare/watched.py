"""The tensors that a comparison of nodes reads."""

from __future__ import annotations

import dataclasses
from typing import Literal

from clipmlu.graph.roles import Role

Kind = Literal["operator", "input", "sum", "output"]
"""Kinds of tensors:

    operator    the result of a convolution or a matrix product
    input       an input of one: the result of a LayerNorm, an activation, a softmax
    sum         the result of a residual addition
    output      an output of the graph
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watched:
    """One tensor to read.

    Attributes:
        tensor: its name.
        node: the operator that produces or uses it, else the node that produces it.
        kind: kind of the tensor.
        role: role of the operator, or None.
        block: block of the operator; of a residual addition, the block before it.
        bytes: approximate size of one row; of the whole batch if its size is fixed.
    """

    tensor: str
    node: str
    kind: Kind
    role: Role | None
    block: int | None
    bytes: int
