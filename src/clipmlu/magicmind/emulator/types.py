"""Dims, element types and other enumerations (api 2.2 to 2.4)."""

from __future__ import annotations

import enum
import operator
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Shape = tuple[int, ...]


class Dims:
    """A shape; -1 is an unknown size, and an empty shape a scalar.

    Args:
        sizes: a tuple, a list or an array's shape (MC clip gen_model.py, model_process.py; tacotron2 decoder.py).
    """

    def __init__(self, sizes: Iterable[int] = ()) -> None:
        self._sizes: Shape = sizes._sizes if isinstance(sizes, Dims) else tuple(operator.index(size) for size in sizes)

    def GetDims(self) -> list[int]:
        """Return the sizes as a new list; model_process.py assigns to its first entry."""
        return list(self._sizes)

    def GetDimValue(self, index: int) -> int:
        """Return one size."""
        return self._sizes[index]

    def GetElementCount(self) -> int:
        """Return the product of the sizes, or -1 if one is unknown (C++: S#49760091045)."""
        return -1 if any(size < 0 for size in self._sizes) else int(np.prod(self._sizes, dtype=np.int64))

    def __str__(self) -> str:
        return str(list(self._sizes))

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dims) and self._sizes == other._sizes

    def __hash__(self) -> int:
        return hash(self._sizes)


class DataType(enum.Enum):
    """Element types (api 2.3). It is not known whether members convert to int (7.18); these do not."""

    FLOAT16 = "FLOAT16"
    FLOAT32 = "FLOAT32"
    FLOAT64 = "FLOAT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    BOOL = "BOOL"
    QINT8 = "QINT8"
    QINT16 = "QINT16"


FLOATS = frozenset({DataType.FLOAT16, DataType.FLOAT32, DataType.FLOAT64})
WIDE = {DataType.INT64: DataType.INT32, DataType.FLOAT64: DataType.FLOAT32}
"""Maps a 64-bit type to the type after ``type64to32_conversion``."""

_NUMPY_NAMES = {
    DataType.FLOAT16: "float16",
    DataType.FLOAT32: "float32",
    DataType.FLOAT64: "float64",
    DataType.INT8: "int8",
    DataType.INT16: "int16",
    DataType.INT32: "int32",
    DataType.INT64: "int64",
    DataType.UINT8: "uint8",
    DataType.UINT16: "uint16",
    DataType.UINT32: "uint32",
    DataType.BOOL: "bool",
}
_BY_NUMPY = {np.dtype(name): member for member, name in _NUMPY_NAMES.items()}
_ONNX_CODES = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool"}
_ONNX_CODES |= {10: "float16", 11: "float64", 12: "uint32"}
_TO_ONNX = {name: code for code, name in _ONNX_CODES.items()}


def get_datatype_by_numpy(dtype: npt.DTypeLike) -> DataType:
    """Return the SDK's type for a NumPy type (``magicmind.python.common.types``, MC resnet50_onnx calibrator.py)."""
    return _BY_NUMPY[np.dtype(dtype)]


def get_numpy_dtype_by_datatype(datatype: DataType) -> np.dtype[np.generic]:
    """Return the NumPy type for an SDK type (same module)."""
    return np.dtype(_NUMPY_NAMES[datatype])


def datatype_from_onnx(code: int) -> DataType | None:
    """Return the SDK's type for an ONNX element type, or None if it has none."""
    name = _ONNX_CODES.get(code)
    return None if name is None else _BY_NUMPY[np.dtype(name)]


def onnx_from_datatype(datatype: DataType) -> int | None:
    """Return the ONNX element type for an SDK type, or None for the quantised ones."""
    name = _NUMPY_NAMES.get(datatype)
    return None if name is None else _TO_ONNX[name]


class ModelKind(enum.Enum):
    """Frameworks of the parser (MC framework_parser.py)."""

    kCaffe = 0
    kOnnx = 1
    kPytorch = 2
    kTensorflow = 3


class QuantizationAlgorithm(enum.Enum):
    """Calibration algorithms (MC common_calibrate.py): minimum and maximum, or least quantisation noise."""

    LINEAR_ALGORITHM = 0
    EQNM_ALGORITHM = 1


class Layout(enum.Enum):
    """Axis orders; Python code shows only NONE (MC yolov7 adapter_model.py), C++ and logs the others."""

    NONE = 0
    NCHW = 1
    NHWC = 2
    HWCN = 3
    NDHWC = 4


class TensorLocation(enum.Enum):
    """Location of a runtime tensor (MC-old tacotron2 mm_utils.py; MC cpp_common/buffer.cc)."""

    kHost = 0
    kMLU = 1
    kRemoteHost = 2
    kRemoteMLU = 3


class DumpMode(enum.Enum):
    """Tensors that a context dumps: -1 off, 0 named tensors, 1 all, 2 outputs (YX magicmind_model.py)."""

    kOff = -1
    kSpecificTensors = 0
    kAllTensors = 1
    kOutputTensors = 2


class FileFormat(enum.Enum):
    """Format of dumped files (S#33294089808)."""

    kBinary = 0
    kText = 1


class HostTracerLevel(enum.Enum):
    """Profiler level of the host (S#33358317571)."""

    kOff = 0
    kCritical = 1


class DeviceTracerLevel(enum.Enum):
    """Profiler level of the card (S#33358317571)."""

    kOff = 0
    kOn = 1


class IActivation(enum.Enum):
    """Activations of hand-built graphs (CV options.py; S#33777239416)."""

    SIGMOID = "Sigmoid"
    RELU = "Relu"


class IPaddingMode(enum.Enum):
    """Padding of hand-built convolutions (S#33777239416)."""

    EXPLICIT = 0


class IReduce(enum.Enum):
    """Reductions of hand-built graphs (MC tacotron2 decoder.py)."""

    MAX = "ReduceMax"


class ILogic(enum.Enum):
    """Comparisons of hand-built graphs (MC tacotron2 decoder.py: ``mm.enums.ILogic``)."""

    LT = "Less"
    LE = "LessOrEqual"


class INmsType(enum.Enum):
    """Suppression algorithms of detection outputs (ME yolov4)."""

    DIOU_NMS = 0


class IDetectionOutputAlgo(enum.Enum):
    """Detection heads (CV options.py, ME yolov4)."""

    YOLOV2 = 0
    YOLOV3 = 1
    YOLOV4 = 2
    YOLOV5 = 3
    FASTERRCNN = 4
    SSD = 5
    REFINEDET = 6
