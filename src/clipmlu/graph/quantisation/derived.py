"""Names that rewriting a graph gives, by which it can be undone."""

from __future__ import annotations

MARK = "_mode_"
"""Stands between the name of a tensor or node of the lowered graph and what was made of it."""
ADDED = "emulated_"
"""Begins the name of every node and tensor that the emulated SDK adds around a graph."""


def derived(name: str, what: str) -> str:
    """The name of something that is made of ``name``."""
    return f"{name}{MARK}{what}"


def original(name: str) -> str:
    """The name in the lowered graph; the name itself where nothing was derived."""
    return name.partition(MARK)[0]
