"""Network: the graph that a parser fills (api 2.6)."""

from __future__ import annotations

from typing import Any

from clipmlu.magicmind.emulator.network_graph import ITensor, NetworkGraph
from clipmlu.magicmind.emulator.types import DataType, Dims


class Network(NetworkGraph):
    """A graph; empty until a parser fills it."""

    def add_input(self, dtype: DataType, dims: Dims | None = None) -> ITensor:
        """Raise: the emulator runs parsed graphs only."""
        raise NotImplementedError(_BY_HAND.format(call="add_input"))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("add_i_"):
            raise NotImplementedError(_BY_HAND.format(call=name))
        raise AttributeError(f"'Network' object has no attribute '{name}'")


_BY_HAND = "{call}: the emulated MagicMind SDK runs parsed ONNX graphs and builds none by hand"
