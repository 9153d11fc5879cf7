"""``mm.enums``: the enumerations by their second name (MC tacotron2 decoder.py)."""

from clipmlu.magicmind.emulator.types import (
    DataType,
    IActivation,
    IDetectionOutputAlgo,
    ILogic,
    INmsType,
    IPaddingMode,
    IReduce,
    Layout,
    ModelKind,
    QuantizationAlgorithm,
    TensorLocation,
)

__all__ = [
    "DataType",
    "IActivation",
    "IDetectionOutputAlgo",
    "ILogic",
    "INmsType",
    "IPaddingMode",
    "IReduce",
    "Layout",
    "ModelKind",
    "QuantizationAlgorithm",
    "TensorLocation",
]
