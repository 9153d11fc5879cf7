"""Names that rewriting a graph gives to new tensors and nodes, and how the names of the lowered graph are read off them."""

from __future__ import annotations

MARK = "_mode_"
"""Stands between the name of a tensor or node of the lowered graph and what was made of it."""
ADDED = "emulated_"
"""Begins the name of every node and tensor that the emulated SDK adds around a graph."""
FLIPPED = "flipped"
"""What was made: the weight of a Gemm, transposed for a MatMul."""
INPUT = "input"
"""What was made: an input of the graph, rounded to binary16."""
SCALE, ZERO_POINT, INTEGERS = "_scale", "_zero_point", "_integers"
"""End the names of what a quantised tensor is made with: its scale, its zero point, and its integers."""

_CLIPPED = "/clipped"


def derived(name: str, what: str) -> str:
    """The name of something that is made of ``name``."""
    return f"{name}{MARK}{what}"


def is_derived(name: str, what: str) -> bool:
    """Whether it is the name that ``derived`` gives to something of that kind."""
    return name.endswith(derived("", what))


def original(name: str) -> str:
    """The name in the lowered graph; the name itself where nothing was derived."""
    return name.partition(MARK)[0]


def clipped(name: str) -> str:
    """The name of a tensor behind its Clip node, which has the same name."""
    return f"{name}{_CLIPPED}"


def unclipped(name: str) -> str:
    """The name of a tensor in front of its Clip node; the name itself where there is none."""
    return name.removesuffix(_CLIPPED)
