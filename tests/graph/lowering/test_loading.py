"""Damaged graphs are one line that names the file, before any pass sees them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from clipmlu.errors import CompileError
from clipmlu.graph.lowering import lower_tower
from support import write_exported


@pytest.fixture(scope="module")
def graph_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_exported(tmp_path_factory.mktemp("damaged") / "tiny").path / "image.onnx"


def _set(target: object, **fields: object) -> None:
    for name, value in fields.items():
        setattr(target, name, value)


def _add_sparse(model: onnx.ModelProto) -> None:
    sparse = model.graph.sparse_initializer.add(dims=[3])
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "sparse"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64)))


def _add_external(model: onnx.ModelProto, **entries: str) -> None:
    """A weight of a million values that lies in the graph's own file, which has a few hundred bytes."""
    tensor = model.graph.initializer.add(name="far", data_type=onnx.TensorProto.FLOAT, dims=[1_000_000])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "image.onnx", **entries}.items():
        tensor.external_data.add(key=key, value=value)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda m: m.graph.initializer[0].dims.__setitem__(0, 7), "bytes; its shape (7"),
        (lambda m: m.graph.initializer[0].dims.__setitem__(0, -1), "has the shape (-1"),
        (lambda m: m.graph.initializer[0].dims.__setitem__(0, 10**12), "has the shape (1000000000000"),
        (lambda m: _set(m.graph.initializer[0], data_type=99), "99"),
        (lambda m: m.graph.initializer.__delitem__(0), "topologically sorted"),
        (lambda m: m.graph.node[0].input.__setitem__(0, "nope"), "input 'nope'"),
        (lambda m: m.graph.node[0].input.__delitem__(slice(None)), "has input size 0"),
        (lambda m: m.graph.node.append(m.graph.node[0]), "multiple times"),
        (lambda m: m.graph.node[0].attribute.__delitem__(slice(None)), "Required attribute"),
        (lambda m: m.opset_import.__delitem__(slice(None)), "opset"),
        (lambda m: _set(m.graph.output[0], name="nope"), "no node produces the output 'nope'"),
        (
            lambda m: m.graph.initializer[0].int64_data.append(1) or m.graph.initializer[0].ClearField("raw_data"),
            "the values of the weight 'weight' do not fit",
        ),
        (lambda m: m.MergeFromString(b"\x1a\x02\xc3\x28"), "can't decode byte 0xc3"),
        (lambda m: m.graph.node[0].MergeFromString(b"\x1a\x02\xc3\x28"), "'name' is not UTF-8"),
        (
            lambda m: _set(m.graph.input[0].type.tensor_type.shape.dim[1], dim_value=2**40),
            "has the shape (0, 1099511627776",
        ),
        (lambda m: m.graph.node[0].attribute[0].ints.__setitem__(0, 2**62), "'kernel_shape' of node"),
        (_add_sparse, "sparse"),
        (lambda m: _add_external(m, offset="-1"), "begins at byte -1"),
        (lambda m: _add_external(m, offset="x"), "invalid literal"),
        (lambda m: _add_external(m, length="10000000000"), " bytes; its shape (1000000,) needs 4,000,000"),
    ],
)
def test_damaged_graph_is_one_line(
    damage: Callable[[onnx.ModelProto], None],
    words: str,
    graph_file: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = onnx.load(graph_file)
    damage(model)
    path = tmp_path / "image.onnx"
    onnx.save(model, path)
    with pytest.raises(CompileError) as caught:
        lower_tower(path, tmp_path / "lowered.onnx")
    message = str(caught.value)
    assert message.startswith(f"The graph '{path}' is damaged: ")
    assert message.endswith("Export the model again, as a new bundle.")
    assert words in message
    assert len(message.splitlines()) == 1
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("content", [b"\xff\xff", None])
def test_file_that_is_no_graph_is_one_line(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "image.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CompileError, match=r"^Cannot read the graph '.*image\.onnx': .*\. Export the model again\.$"):
        lower_tower(path, tmp_path / "lowered.onnx")


def _put_behind(model: onnx.ModelProto, *nodes: onnx.NodeProto, **constants: np.ndarray) -> None:
    """Let the first node's result pass through more nodes: the first takes ``x``, the last gives ``y``."""
    passed = model.graph.node[0].output[0]
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    for node in model.graph.node[1:]:
        node.input[:] = ["y" if name == passed else name for name in node.input]
    for offset, node in enumerate(nodes):
        node.input[:] = [passed if name == "x" else name for name in node.input]
        model.graph.node.insert(1 + offset, node)


_ONES = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("inputs", "attributes", "scale", "words"),
    [
        (["x", "s", "b"], {"num_groups": 2}, _ONES, "has 3 channels in 2 groups"),
        (["x", "s", "b"], {"num_groups": 0}, _ONES, "has 3 channels in 0 groups"),
        (["x", "s", "b"], {"num_groups": -1}, _ONES, "'num_groups' of node 'norm' (GroupNormalization) is [-1]"),
        (["x", "s", "b"], {"num_groups": 3}, np.ones((3, 1), np.float32), "has a scale of shape (3, 1)"),
        (["x", "s", "b"], {"num_groups": 3}, np.ones(2, np.float32), "has a scale of shape (2,)"),
        (["x", "s", "b"], {}, _ONES, "num_groups"),
        (["x", "s", "b"], {"num_groups": 1.5}, _ONES, "num_groups"),
        (["x", "s"], {"num_groups": 1}, _ONES, "input size 2"),
        (["x", "", "b"], {"num_groups": 1}, _ONES, "input 1 is marked single"),
        (["s", "s", "b"], {"num_groups": 1}, _ONES, "norm"),
    ],
)
def test_group_normalization_is_checked_though_the_checker_refuses_it(
    inputs: list[str], attributes: dict[str, float], scale: np.ndarray, words: str, graph_file: Path, tmp_path: Path
) -> None:
    model = onnx.load(graph_file)
    _put_behind(
        model, helper.make_node("GroupNormalization", inputs, ["y"], name="norm", **attributes), s=scale, b=_ONES
    )
    path = tmp_path / "image.onnx"
    onnx.save(model, path)
    with pytest.raises(CompileError) as caught:
        lower_tower(path, tmp_path / "lowered.onnx")
    assert str(caught.value).startswith(f"The graph '{path}' ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("operator", "shape"),
    [
        ("ConstantOfShape", [1 << 16, 1 << 16]),
        ("Expand", [1 << 28, 1, 3, 2, 2]),
        ("Tile", [1 << 20, 1, 1 << 15, 1]),
    ],
)
def test_absurd_sizes_are_refused_before_they_are_allocated(
    operator: str, shape: list[int], graph_file: Path, tmp_path: Path
) -> None:
    model = onnx.load(graph_file)
    inputs = ["shape"] if operator == "ConstantOfShape" else ["x", "shape"]
    huge = helper.make_node(operator, inputs, ["huge"], name="huge")
    least = helper.make_node("ReduceMin", ["huge"], ["least"], keepdims=0)
    used = helper.make_node("Add", ["x", "least"], ["y"])
    _put_behind(model, huge, least, used, shape=np.array(shape, np.int64))
    path = tmp_path / "image.onnx"
    onnx.save(model, path)
    tracemalloc.start()
    try:
        with pytest.raises(CompileError, match=r"^The graph '.*image\.onnx' .*'huge'.* of the size \["):
            lower_tower(path, tmp_path / "lowered.onnx")
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("limits", [(0, 1 << 40, 1), (1 << 40, 0, -1)])
def test_ranges_without_end_are_no_memory(limits: tuple[int, int, int], graph_file: Path, tmp_path: Path) -> None:
    model = onnx.load(graph_file)
    nodes = [
        helper.make_node("Range", ["a", "b", "c"], ["numbers"], name="numbers"),
        helper.make_node("ReduceMax", ["numbers"], ["last"], keepdims=0),
        helper.make_node("Cast", ["last"], ["real"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Add", ["x", "real"], ["y"]),
    ]
    constants = {name: np.array(value, np.int64) for name, value in zip("abc", limits, strict=True)}
    _put_behind(model, *nodes, **constants)
    path = tmp_path / "image.onnx"
    onnx.save(model, path)
    with pytest.raises(CompileError, match=r"^The graph '.*image\.onnx' "):
        lower_tower(path, tmp_path / "lowered.onnx")


def test_what_crashes_the_native_shape_inference_never_reaches_it(tmp_path: Path) -> None:
    given, made = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 2]) for name in "xy")
    node = helper.make_node("GatherND", ["x", "i"], ["y"], name="pick", batch_dims=-5)
    index = numpy_helper.from_array(np.zeros((1, 1), np.int64), "i")
    graph = helper.make_graph([node], "g", [given], [made], [index])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "image.onnx")
    with pytest.raises(CompileError, match=r"'batch_dims' of node 'pick' \(GatherND\) is \[-5\]"):
        lower_tower(tmp_path / "image.onnx", tmp_path / "lowered.onnx")
