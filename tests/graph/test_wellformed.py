"""The sizes of weights, compared with those of onnx-ir."""

from __future__ import annotations

import math

import onnx_ir as ir
import pytest
from onnx import TensorProto

from clipmlu.graph.wellformed import weight_bytes

NUMBERS = sorted(set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED, TensorProto.STRING})


@pytest.mark.parametrize("element", NUMBERS, ids=TensorProto.DataType.Name)
def test_bytes_of_a_weight_follow_its_element_type(element: int) -> None:
    for dims in ((3, 5), (), (0, 4)):
        expected = math.ceil(ir.DataType(element).bitwidth * math.prod(dims) / 8)
        assert weight_bytes(TensorProto(data_type=element, dims=dims)) == expected


def test_unknown_element_type_is_an_error() -> None:
    with pytest.raises(ValueError, match="99 is not an element type of ONNX"):
        weight_bytes(TensorProto(data_type=99, dims=(1,)))
