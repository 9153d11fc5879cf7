"""Import paths, identities and small values (magicmind-api.md 1 to 2.4)."""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np
import pytest


def test_all_names_of_section_1_can_be_imported(mm: ModuleType) -> None:
    listed = """Network Builder BuilderConfig Calibrator CalibDataInterface RemoteConfig QuantizationAlgorithm Model Device
    System Dims DataType ModelKind Layout Status Code Tensor TensorLocation Context DumpMode FileFormat Profiler
    ProfilerOptions HostTracerLevel DeviceTracerLevel IDetectionOutputAlgo INmsType IActivation IPaddingMode IReduce
    Parser"""
    assert [name for name in listed.split() if not hasattr(mm, name)] == []
    assert mm.enums.ILogic.LT is not mm.enums.ILogic.LE
    assert mm.resources.Device is mm.Device
    assert mm.remote.IRpcSession.rpc_connect("127.0.0.1:9009") is None


def test_names_that_must_be_the_same_object_are(mm: ModuleType) -> None:
    assert importlib.import_module("magicmind.python.runtime.model").Model is mm.Model
    assert importlib.import_module("magicmind.python.runtime.parser").Parser is mm.Parser is mm.parser.Parser
    binding = importlib.import_module("magicmind.python.cc._pywrap_runtime")
    assert binding.enums.DataType is mm.DataType is mm.enums.DataType
    assert binding.ITensor is mm.ITensor
    types = importlib.import_module("magicmind.python.common.types")
    assert types.get_datatype_by_numpy(np.dtype("float32")) is mm.DataType.FLOAT32
    assert types.get_numpy_dtype_by_datatype(mm.DataType.INT32) == np.int32


def test_data_types_serve_as_keys_and_values(mm: ModuleType) -> None:
    listed = "INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 FLOAT16 FLOAT32 BOOL QINT8 QINT16 FLOAT64"
    table = {getattr(mm.DataType, name): name for name in listed.split()}
    assert table[mm.DataType.QINT16] == "QINT16"
    assert len(table) == 13


@pytest.mark.parametrize("sizes", [(1, 3, 4), [1, 3, 4], np.empty((1, 3, 4)).shape])
def test_dims_take_tuples_lists_and_array_shapes(mm: ModuleType, sizes: object) -> None:
    dims = mm.Dims(sizes)
    copy = dims.GetDims()
    copy[0] = 32
    assert dims.GetDims() == [1, 3, 4]
    assert mm.Dims(copy).GetDims() == [32, 3, 4]
    assert (dims.GetDimValue(1), dims.GetElementCount(), str(dims)) == (3, 12, "[1, 3, 4]")
    assert mm.Dims([]).GetElementCount() == 1
    assert mm.Dims((-1, 3)).GetElementCount() == -1


def test_status_forms(mm: ModuleType) -> None:
    assert mm.Status().ok() is True
    assert mm.Status.OK().ok()
    bad = mm.Status(mm.Code.OUT_OF_RANGE, "Data end reached")
    assert not bad.ok()
    assert bad.error_message() == "Data end reached"
    assert "OUT_OF_RANGE: Data end reached" in str(bad)


def test_a_bad_status_is_truthy_and_mute_in_the_strict_reading(mm: ModuleType) -> None:
    bad = mm.Status(mm.Code.INTERNAL, "x")
    assert bad
    assert not hasattr(bad, "code")


@pytest.mark.usefixtures("lenient")
def test_a_bad_status_is_falsy_and_tells_its_code_in_the_lenient_reading(mm: ModuleType) -> None:
    bad = mm.Status(mm.Code.INTERNAL, "x")
    assert not bad
    assert bad.code() is mm.Code.INTERNAL
    assert mm.Status()
