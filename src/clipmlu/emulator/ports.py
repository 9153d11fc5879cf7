"""Inputs and outputs of a built model."""

from __future__ import annotations

import dataclasses

from clipmlu.emulator.types import DataType, Shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Port:
    """One input or output of a built model.

    Attributes:
        name: the ONNX name (7.14: logs show ONNX names kept).
        dtype: element type at run time.
        dims: the shape; -1 for axes that may vary.
        minimum: smallest shape of a mutable input, or None when unbounded.
        maximum: largest shape of a mutable input, or None when unbounded.
    """

    name: str
    dtype: DataType
    dims: Shape
    minimum: Shape | None = None
    maximum: Shape | None = None
