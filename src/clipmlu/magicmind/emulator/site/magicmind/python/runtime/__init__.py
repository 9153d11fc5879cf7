"""``magicmind.python.runtime``, usually imported as ``mm`` (api 1)."""

from clipmlu.magicmind.emulator import emulated_version
from clipmlu.magicmind.emulator.builder import Builder
from clipmlu.magicmind.emulator.calibrator import CalibDataInterface, Calibrator, RemoteConfig
from clipmlu.magicmind.emulator.config import BuilderConfig
from clipmlu.magicmind.emulator.devices import Device, System
from clipmlu.magicmind.emulator.jobs import Queue
from clipmlu.magicmind.emulator.model import Model
from clipmlu.magicmind.emulator.network import Network
from clipmlu.magicmind.emulator.network_graph import INode, ITensor
from clipmlu.magicmind.emulator.parser import Parser
from clipmlu.magicmind.emulator.plugins import LoadPluginLibrary
from clipmlu.magicmind.emulator.profiling import Profiler, ProfilerOptions
from clipmlu.magicmind.emulator.runtime import Context, Engine
from clipmlu.magicmind.emulator.status import Code, Status
from clipmlu.magicmind.emulator.tensor import Tensor
from clipmlu.magicmind.emulator.types import (
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
    "LoadPluginLibrary",
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
