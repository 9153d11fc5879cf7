"""``magicmind.python.runtime``, usually imported as ``mm`` (api 1)."""

from clipmlu.emulator import emulated_version
from clipmlu.emulator.builder import Builder
from clipmlu.emulator.calibrator import CalibDataInterface, Calibrator, RemoteConfig
from clipmlu.emulator.config import BuilderConfig
from clipmlu.emulator.devices import Device, System
from clipmlu.emulator.jobs import Queue
from clipmlu.emulator.model import Model
from clipmlu.emulator.network import INode, ITensor, Network
from clipmlu.emulator.parser import Parser
from clipmlu.emulator.profiling import Profiler, ProfilerOptions
from clipmlu.emulator.runtime import Context, Engine
from clipmlu.emulator.status import Code, Status
from clipmlu.emulator.tensor import Tensor
from clipmlu.emulator.types import (
    DataType,
    DeviceTracerLevel,
    Dims,
    DumpMode,
    FileFormat,
    HostTracerLevel,
    IActivation,
    IDetectionOutputAlgo,
    INmsType,
    IPaddingMode,
    IReduce,
    Layout,
    ModelKind,
    QuantizationAlgorithm,
    TensorLocation,
)
from magicmind import EMULATED
from magicmind.python.runtime import enums, model, parser, remote, resources

__version__ = emulated_version()

__all__ = [
    "EMULATED",
    "Builder",
    "BuilderConfig",
    "CalibDataInterface",
    "Calibrator",
    "Code",
    "Context",
    "DataType",
    "Device",
    "DeviceTracerLevel",
    "Dims",
    "DumpMode",
    "Engine",
    "FileFormat",
    "HostTracerLevel",
    "IActivation",
    "IDetectionOutputAlgo",
    "INmsType",
    "INode",
    "IPaddingMode",
    "IReduce",
    "ITensor",
    "Layout",
    "Model",
    "ModelKind",
    "Network",
    "Parser",
    "Profiler",
    "ProfilerOptions",
    "QuantizationAlgorithm",
    "Queue",
    "RemoteConfig",
    "Status",
    "System",
    "Tensor",
    "TensorLocation",
    "__version__",
    "enums",
    "model",
    "parser",
    "remote",
    "resources",
]
