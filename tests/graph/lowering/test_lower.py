"""The whole pass: names, shapes, determinism, files, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from clipmlu.errors import CompileError, OptionError
from clipmlu.graph.lowering import (
    MAGICMIND,
    check_int32_range,
    check_profile,
    lower_graph,
    lower_tower,
)
from clipmlu.specs import MODULE_KEY

Build = Callable[..., onnx.ModelProto]
node = helper.make_node


@pytest.fixture
def block(build_model: Build) -> onnx.ModelProto:
    """LayerNorm, a linear layer and GELU, named as an export names them."""
    nodes = [
        node(
            "LayerNormalization", ["x", "scale"], ["ln_1/LayerNormalization:0"], name="blocks.0.ln_1/LayerNormalization"
        ),
        node("MatMul", ["ln_1/LayerNormalization:0", "w"], ["fc:0"], name="blocks.0.mlp.c_fc/MatMul"),
        node("Gelu", ["fc:0"], ["y"], name="blocks.0.mlp.gelu/Gelu"),
    ]
    for each in nodes:
        each.metadata_props.add(key=MODULE_KEY, value=each.name.split("/")[0])
    constants = {"scale": np.ones(4, np.float32), "w": np.ones((4, 8), np.float32)}
    return build_model(nodes, {"x": ("float32", ("batch", 3, 4))}, ["y"], constants)


def test_names_and_blocks_survive(block: onnx.ModelProto) -> None:
    lowered = lower_graph(block)
    names = [each.name for each in lowered.graph]
    assert len(set(names)) == len(names)
    assert "blocks.0.mlp.c_fc/MatMul" in names
    assert {name.rsplit("/", 1)[0] for name in names if name.count("/") == 2} == {
        "blocks.0.ln_1/LayerNormalization",
        "blocks.0.mlp.gelu/Gelu",
    }
    assert all(each.metadata_props[MODULE_KEY] == each.name.split("/")[0] for each in lowered.graph)


def test_tensors_between_nodes_keep_their_names(block: onnx.ModelProto) -> None:
    """So that a canonical and a lowered graph can be compared tensor by tensor."""
    produced = {value.name for each in lower_graph(block).graph for value in each.outputs}
    assert {"ln_1/LayerNormalization:0", "fc:0", "y"} <= produced


def test_shapes_are_written_in_terms_of_the_batch(block: onnx.ModelProto) -> None:
    lowered = lower_graph(block)
    assert all(value.shape is not None and value.type is not None for each in lowered.graph for value in each.outputs)
    assert [str(size) for size in lowered.graph.outputs[0].shape] == ["batch", "3", "8"]
    assert lower_graph(block, batch={"batch": 5}).graph.outputs[0].shape == (5, 3, 8)


def test_the_source_is_not_changed(block: onnx.ModelProto, tmp_path: Path) -> None:
    before = block.SerializeToString()
    source = ir.from_proto(block)
    lower_graph(source, batch={"batch": 2})
    lower_graph(block)
    assert block.SerializeToString() == before
    assert ir.to_proto(source).SerializeToString() == ir.to_proto(ir.from_proto(block)).SerializeToString()


def test_equal_input_gives_equal_bytes(block: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(block, tmp_path / "source.onnx")
    for name in ("a.onnx", "b.onnx"):
        lower_tower(tmp_path / "source.onnx", tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_the_file_is_plain_opset_11(block: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(block, tmp_path / "source.onnx")
    lower_tower(tmp_path / "source.onnx", tmp_path / "lowered.onnx", batch={"batch": 3})
    written = onnx.load(tmp_path / "lowered.onnx")
    onnx.checker.check_model(written, full_check=True)
    onnx.shape_inference.infer_shapes(written, check_type=True, strict_mode=True)
    assert [(each.domain, each.version) for each in written.opset_import] == [("", 11)]
    inner = {value.name for value in written.graph.value_info} - {value.name for value in written.graph.initializer}
    assert not inner
    assert written.ir_version == 6


def test_large_weights_go_beside_the_file(
    block: onnx.ModelProto, tmp_path: Path, run_plain: Callable[..., Any]
) -> None:
    block.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.ones((4, 400), np.float32), "w"))
    onnx.save(block, tmp_path / "source.onnx")
    lower_tower(tmp_path / "source.onnx", tmp_path / "lowered.onnx", external_data_bytes=100)
    assert (tmp_path / "lowered.onnx.data").stat().st_size >= 6400
    assert (tmp_path / "lowered.onnx").stat().st_size < 6400
    feeds = {"x": np.ones((1, 3, 4), np.float32)}
    loaded = onnx.load(tmp_path / "lowered.onnx")
    np.testing.assert_array_equal(run_plain(loaded, feeds)[0], run_plain(lower_graph(block), feeds)[0])


def test_unknown_operator_is_named_with_its_node_and_block(block: onnx.ModelProto) -> None:
    block.graph.node[2].op_type = "Selu"
    with pytest.raises(
        CompileError, match=r"Node 'blocks.0.mlp.gelu/Gelu' of block 'blocks.0.mlp.gelu' \(operator Selu\)"
    ):
        lower_graph(block)


def test_foreign_domain_is_named(block: onnx.ModelProto) -> None:
    block.graph.node[2].domain = "com.microsoft"
    block.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(CompileError, match=r"operator com.microsoft.Gelu"):
        lower_graph(block)


def test_control_flow_is_refused(build_model: Build) -> None:
    branch = helper.make_graph([node("Neg", ["x"], ["z"])], "branch", [], [helper.make_empty_tensor_value_info("z")])
    choice = node("If", ["c"], ["y"], name="choice", then_branch=branch, else_branch=branch)
    inputs = {"c": ("bool", ()), "x": ("float32", ("batch", 2))}
    with pytest.raises(CompileError, match=r"Node 'choice'.*control flow"):
        lower_graph(build_model([choice], inputs, ["y"]))


def test_a_size_that_depends_on_data_is_refused(build_model: Build) -> None:
    model = build_model([node("NonZero", ["x"], ["y"], name="where")], {"x": ("float32", ("batch", 2))}, ["y"])
    with pytest.raises(CompileError, match=r"Node 'where'.*depends on data"):
        lower_graph(model)


def test_integers_beyond_32_bit_are_refused(build_model: Build) -> None:
    model = build_model(
        [node("Add", ["x", "c"], ["y"], name="shift")], {"x": ("int64", ("batch", 2))}, ["y"], {"c": np.array([2**31])}
    )
    with pytest.raises(CompileError, match=r"Node 'shift'.*constant 'c'.*32 bit"):
        lower_graph(model)
    fits = build_model(
        [node("Add", ["x", "c"], ["y"])], {"x": ("int64", ("batch", 2))}, ["y"], {"c": np.array([2**31 - 1, -(2**31)])}
    )
    check_int32_range(lower_graph(fits))


@pytest.mark.parametrize(
    ("batch", "words"), [({"rows": 2}, "no dynamic axis 'rows'.*'batch'"), ({"batch": 0}, "'batch' is 0")]
)
def test_wrong_batch_is_refused(block: onnx.ModelProto, batch: dict[str, int], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        lower_graph(block, batch=batch)


def test_one_of_two_axes_may_become_static(build_model: Build) -> None:
    inputs = {"a": ("float32", ("image_batch", 4)), "b": ("float32", ("text_batch", 4))}
    model = build_model([node("Transpose", ["b"], ["t"]), node("MatMul", ["a", "t"], ["y"])], inputs, ["y"])
    lowered = lower_graph(model, batch={"text_batch": 100})
    assert [str(size) for size in lowered.graph.outputs[0].shape] == ["image_batch", "100"]


def test_check_refuses_what_was_not_lowered(block: onnx.ModelProto, build_model: Build) -> None:
    with pytest.raises(CompileError, match="opset 20"):
        check_profile(ir.from_proto(block))
    unlowered = build_model(
        [node("ReduceSum", ["x", "axes"], ["y"], name="sum")],
        {"x": ("float32", (1, 2))},
        ["y"],
        {"axes": np.array([0])},
        opset=11,
    )
    with pytest.raises(CompileError, match=r"Node 'sum'.*2 inputs"):
        check_profile(ir.from_proto(unlowered))
    integers = build_model([node("Max", ["x", "x"], ["y"], name="max")], {"x": ("int64", (1, 2))}, ["y"], opset=11)
    with pytest.raises(CompileError, match=r"Node 'max'.*tensor\(int64\)"):
        check_profile(ir.from_proto(integers))
    sizes = build_model([node("Shape", ["x"], ["y"], name="size")], {"x": ("float32", (1, 2))}, ["y"], opset=11)
    with pytest.raises(CompileError, match=r"Node 'size'.*all sizes are static"):
        check_profile(ir.from_proto(sizes))
    axes = build_model([node("Neg", ["x"], ["y"])], {"x": ("float32", ("batch", "width"))}, ["y"], opset=11)
    with pytest.raises(CompileError, match="dynamic in axis 1"):
        check_profile(ir.from_proto(axes))


@pytest.mark.parametrize("operator", sorted(MAGICMIND.operators))
def test_every_listed_operator_is_one_of_opset_11_and_has_evidence(operator: str) -> None:
    assert onnx.defs.get_schema(operator, MAGICMIND.opset).name == operator
    assert MAGICMIND.operators[operator].kind in ("clip", "onnx", "sdk", "none")
    assert len(MAGICMIND.operators[operator].source) > 1
