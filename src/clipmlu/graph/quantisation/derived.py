"""Names of the tensors and nodes that rewriting adds, and the names in the lowered graph that they derive from."""

from __future__ import annotations

MARK = "_mode_"
"""Separator between the name of a tensor or node of the lowered graph and the name of the derived part."""
ADDED = "emulated_"
"""Prefix of every node and tensor that the emulated SDK adds to a graph."""
FLIPPED = "flipped"
"""Kind of a derived tensor: the weight of a Gemm, transposed for a MatMul."""
INPUT = "input"
"""Kind of a derived tensor: an input of the graph, rounded to binary16."""
SCALE, ZERO_POINT, INTEGERS = "_scale", "_zero_point", "_integers"
"""Suffixes of the tensors that quantise a tensor: its scale, its zero point, and its integers."""

_CLIPPED = "/clipped"
_SMOOTHED = "/smoothed"


def derived(name: str, what: str) -> str:
    """Return the name of a part derived from ``name``."""
    return f"{name}{MARK}{what}"


def is_derived(name: str, what: str) -> bool:
    """Return whether ``derived`` gave this name to a part of that kind."""
    return name.endswith(derived("", what))


def original(name: str) -> str:
    """Return the name in the lowered graph; the name itself if it is not derived."""
    return name.partition(MARK)[0]


def clipped(name: str) -> str:
    """Return the name of a tensor after its Clip node; the node has the same name."""
    return f"{name}{_CLIPPED}"


def unclipped(name: str) -> str:
    """Return the name of a tensor before its Clip node; the name itself if there is none."""
    return name.removesuffix(_CLIPPED)


def smoothed(name: str) -> str:
    """Return the name of a tensor after the Mul that divides its channels; the node has the same name."""
    return f"{name}{_SMOOTHED}"
