"""Reading and writing ONNX graphs without the package onnx, against that package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from clipmlu.bundle.wire import bytes_field, number_field
from clipmlu.graph.index import GraphIndex
from clipmlu.graph.messages import MessageIndex, Model, Node, Tensor, make_node, read_single_file, small_model

Array = npt.NDArray[Any]
DTYPES = [
    "float32",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "int32",
    "int64",
    "bool",
    "float16",
    "float64",
    "uint32",
    "uint64",
]


def _values(dtype: str, shape: tuple[int, ...] = (2, 3)) -> Array:
    values = np.random.default_rng(0).integers(-100, 100, shape)
    return np.abs(values).astype(dtype) if np.dtype(dtype).kind in "ub" else values.astype(dtype)


def _model() -> onnx.ModelProto:
    """A graph with all kinds of attributes, documentation, metadata, and weights in raw and typed fields."""
    node = helper.make_node
    nodes = [
        node("Transpose", ["x"], ["t"], name="move", perm=[1, 0], doc_string="swaps"),
        node("Softmax", ["t"], ["s"], name="softmax", axis=-1),
        node("Clip", ["s", "", "w"], ["c"], name="clip"),
        node("Other", ["c"], ["y", ""], "other", domain="a.b", a=1.5, b="text", c=[1.5, 2.0], d=["x", "y"]),
        node("Constant", [], ["k"], name="k", value=numpy_helper.from_array(_values("int8"), "value")),
        node("Empty", ["x"], ["e"], name="e", axes=np.array([], np.int64).tolist() or [-(2**63), 2**63 - 1, -1]),
    ]
    nodes[0].metadata_props.add(key="from", value="test")
    typed = helper.make_tensor("typed", TensorProto.INT64, [3], [-1, 2**40, 0])
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "k")],
        [numpy_helper.from_array(_values("float32"), "w"), typed],
        doc_string="a graph",
        value_info=[helper.make_tensor_value_info("t", TensorProto.FLOAT, [3, "batch"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13), helper.make_opsetid("a.b", 1)])
    helper.set_model_props(model, {"author": "test"})
    return model


def test_a_model_that_nothing_changes_stays_the_same() -> None:
    model = _model()
    assert onnx.load_from_string(Model.read(model.SerializeToString()).to_bytes()) == model


def test_nodes_and_the_index_are_those_of_the_package() -> None:
    model = _model()
    read = Model.read(model.SerializeToString())
    for ours, theirs in zip(read.graph.node, model.graph.node, strict=True):
        assert (ours.name, ours.op_type, ours.domain) == (theirs.name, theirs.op_type, theirs.domain)
        assert (ours.input, ours.output) == (list(theirs.input), list(theirs.output))
        kinds = (onnx.AttributeProto.INT, onnx.AttributeProto.INTS)
        integers = {each.name: helper.get_attribute_value(each) for each in theirs.attribute if each.type in kinds}
        assert ours.attributes == integers
    own, index = MessageIndex(read), GraphIndex(model)
    assert own.outputs == index.outputs == {"y", "k"}
    for mine, other in ((own.producers, index.producers), (own.nodes, index.nodes), (own.weights, index.weights)):
        assert {key: each.name for key, each in mine.items()} == {key: each.name for key, each in other.items()}
    assert {key: [(node.name, place) for node, place in users] for key, users in own.consumers.items()} == {
        key: [(node.name, place) for node, place in users] for key, users in index.consumers.items()
    }


def test_fields_that_are_repeated_or_unknown_are_read_as_by_the_package() -> None:
    node = helper.make_node("Softmax", ["x"], ["s"], name="softmax", axis=0).SerializeToString()
    attribute = bytes_field(1, "axis") + number_field(3, 0) + number_field(3, 2) + number_field(20, 2)
    content = node + bytes_field(3, "other") + bytes_field(99, "new")
    content = content.replace(bytes_field(5, onnx.NodeProto.FromString(node).attribute[0].SerializeToString()), b"")
    content += bytes_field(5, attribute + bytes_field(99, "new"))
    read, theirs = Node.read(memoryview(content)), onnx.NodeProto.FromString(content)
    assert (read.name, read.attributes) == (theirs.name, {"axis": theirs.attribute[0].i}) == ("other", {"axis": 2})
    output = bytes_field(7, bytes_field(12, bytes_field(1, "first") + bytes_field(1, "second")))
    assert Model.read(output).graph.output == [each.name for each in onnx.load_from_string(output).graph.output]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 4)])
def test_values_go_to_the_package_and_back(dtype: str, shape: tuple[int, ...]) -> None:
    values = _values(dtype, shape)
    theirs = numpy_helper.from_array(values, "w")
    typed = helper.make_tensor("w", theirs.data_type, shape, values.ravel().tolist())
    for message in (theirs, typed):
        tensor = Tensor(memoryview(message.SerializeToString()))
        assert (tensor.name, tensor.dims, tensor.is_external) == ("w", list(shape), False)
        np.testing.assert_array_equal(tensor.values, values, strict=True)
    written = onnx.TensorProto.FromString(b"".join(Tensor.of(values, "w").parts()))
    assert written == theirs


def test_values_of_another_type_and_of_another_size_are_refused() -> None:
    strings = helper.make_tensor("w", TensorProto.STRING, [1], [b"a"])
    with pytest.raises(ValueError, match="the weight 'w' has the type 8"):
        _ = Tensor(memoryview(strings.SerializeToString())).values
    short = numpy_helper.from_array(_values("float32"), "w")
    short.dims[0] = 7
    with pytest.raises(ValueError, match="cannot reshape"):
        _ = Tensor(memoryview(short.SerializeToString())).values


def test_a_changed_node_is_written() -> None:
    read = Model.read(_model().SerializeToString())
    node = read.graph.node[0]
    node.attributes["perm"] = [0, 1]
    other = node.copy(name="second", input=["t"], output=["u"])
    other.attributes["perm"] = [1, 0]
    read.graph.node.append(other)
    nodes = onnx.load_from_string(read.to_bytes()).graph.node
    for found, name, perm in ((nodes[0], "move", [0, 1]), (nodes[-1], "second", [1, 0])):
        expected = helper.make_node("Transpose", found.input, found.output, name=name, perm=perm, doc_string="swaps")
        expected.metadata_props.add(key="from", value="test")
        assert found == expected


def test_a_small_model_is_valid() -> None:
    weights = _values("float32", (3, 4))
    content = small_model(
        [make_node("MatMul", ["x", "w"], ["y"])], {"x": ("rows", 3)}, {"y": ("rows", 4)}, {"w": weights}
    )
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, model.opset_import[0].version) == (7, 13)
    shapes = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, size)
        for name, size in (("x", ["rows", 3]), ("y", ["rows", 4]))
    ]
    assert [*model.graph.input, *model.graph.output] == shapes


def test_a_graph_with_a_second_file_of_weights_is_not_read(tmp_path: Path) -> None:
    model = _model()
    onnx.save(model, tmp_path / "one.onnx")
    assert read_single_file(tmp_path / "one.onnx") is not None
    onnx.save(model, tmp_path / "two.onnx", save_as_external_data=True, location="two.data", size_threshold=0)
    assert read_single_file(tmp_path / "two.onnx") is None


@pytest.mark.parametrize("content", [b"no graph", b"\x3a\xff", b"\x3a\x05\x0a\x09"])
def test_a_damaged_file_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="it is not an ONNX file, or damaged at byte"):
        Model.read(content)
