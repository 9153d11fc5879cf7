"""Graph files are looked through before a runtime opens them: numbers, weights beside them, and no control flow."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import support
from clipmlu.bundle.directory import ExportedBundle, open_bundle
from clipmlu.bundle.graph_file import scan_graph
from clipmlu.bundle.verify import file_record
from clipmlu.errors import BundleCorruptError

Change = Callable[[onnx.ModelProto], None]


def _publish(bundle: ExportedBundle, change: Change) -> None:
    """Change a graph of the bundle, and give the manifest the digest of what it is now."""
    path = bundle.path / "image.onnx"
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    files = msgspec.to_builtins(bundle.manifest.files)
    for each in bundle.path.iterdir():
        if each.name in files:
            files[each.name] = msgspec.to_builtins(file_record(each))
    support.edit_manifest(bundle.path, files=files)


def test_facts_equal_those_that_onnx_reads(exported: ExportedBundle) -> None:
    path = exported.path / "image.onnx"
    with path.open("rb") as stream:
        facts = scan_graph(stream)
    graph = onnx.load(path).graph
    for ports, values in ((facts.inputs, graph.input), (facts.outputs, graph.output)):
        assert [port.name for port in ports] == [value.name for value in values]
        for port, value in zip(ports, values, strict=True):
            tensor = value.type.tensor_type
            assert port.dtype == helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
            assert port.shape == tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)
    assert facts.data_files == frozenset()


def test_weights_are_no_inputs_though_old_files_list_them_so(exported: ExportedBundle) -> None:
    model = onnx.load(exported.path / "image.onnx")
    weight = model.graph.initializer[0]
    model.graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    facts = scan_graph(model.SerializeToString())
    assert [port.name for port in facts.inputs] == ["pixel_values"]


def test_graph_may_leave_the_shape_of_its_output_open(exported: ExportedBundle) -> None:
    _publish(exported, lambda model: model.graph.output[0].type.tensor_type.ClearField("shape"))
    assert open_bundle(exported.path).tower("image").outputs[0].shape == ("batch", support.DIM)


def test_graph_with_more_fields_than_any_tower_has_is_refused(exported: ExportedBundle) -> None:
    with pytest.raises(ValueError, match="more than 20 fields"):
        scan_graph((exported.path / "image.onnx").read_bytes(), max_fields=20)


def _body() -> onnx.GraphProto:
    given = [helper.make_tensor_value_info("i", TensorProto.INT64, []), _bool("go")]
    return helper.make_graph([helper.make_node("Identity", ["go"], ["again"])], "body", given, [_bool("again")])


def _bool(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.BOOL, [])


def _add_loop(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "true"))
    model.graph.node.append(helper.make_node("Loop", ["", "true"], ["ended"], name="endless", body=_body()))


def _add_if(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [_bool("true")])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "true"))
    model.graph.node.append(
        helper.make_node("If", ["true"], ["ended"], name="branch", then_branch=inner, else_branch=inner)
    )


def _add_list_of_graphs(model: onnx.ModelProto) -> None:
    attribute = helper.make_attribute("anything", [_body()])
    model.graph.node[0].attribute.append(attribute)


def _add_function(model: onnx.ModelProto) -> None:
    body = [helper.make_node("Loop", ["", "x"], ["y"], body=_body())]
    model.functions.append(helper.make_function("own", "Endless", ["x"], ["y"], body, [helper.make_opsetid("", 18)]))


def _add_training(model: onnx.ModelProto) -> None:
    model.training_info.add().algorithm.CopyFrom(_body())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_add_loop, r"node 'endless' \(Loop\) contains a subgraph"),
        (_add_if, r"node 'branch' \(If\) contains a subgraph"),
        (_add_list_of_graphs, "contains a subgraph"),
        (_add_function, "functions"),
        (_add_training, "training"),
    ],
)
def test_control_flow_is_refused_before_a_runtime_sees_it(exported: ExportedBundle, change: Change, words: str) -> None:
    _publish(exported, change)
    with pytest.raises(BundleCorruptError, match=rf"Graph 'image\.onnx' of bundle '.*tiny' cannot be used: .*{words}"):
        open_bundle(exported.path)


def _outside(name: str, location: str) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def _as_weight(model: onnx.ModelProto, location: str) -> None:
    model.graph.initializer.append(_outside("more", location))


def _as_attribute(model: onnx.ModelProto, location: str) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["more"], value=_outside("more", location)))


def _as_list(model: onnx.ModelProto, location: str) -> None:
    attribute = onnx.AttributeProto(name="any", type=onnx.AttributeProto.TENSORS, tensors=[_outside("m", location)])
    model.graph.node[0].attribute.append(attribute)


def _as_sparse(model: onnx.ModelProto, location: str) -> None:
    sparse = model.graph.sparse_initializer.add(dims=[1])
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "more"))
    sparse.indices.CopyFrom(_outside("", location))


def _without_the_flag(model: onnx.ModelProto, location: str) -> None:
    tensor = _outside("more", location)
    tensor.data_location = TensorProto.DEFAULT
    model.graph.initializer.append(tensor)


@pytest.mark.parametrize("place", [_as_weight, _as_attribute, _as_list, _as_sparse, _without_the_flag])
@pytest.mark.parametrize("location", ["image.onnx.data", "/etc/passwd", "*/_ORT_MEM_ADDR_/*"])
def test_weights_in_a_file_that_is_not_listed_are_refused(exported: ExportedBundle, place: Any, location: str) -> None:
    (exported.path / "image.onnx.data").write_bytes(bytes(4))
    _publish(exported, lambda model: place(model, location))
    with pytest.raises(BundleCorruptError, match=r"takes weights from '.*', which the manifest does not list"):
        open_bundle(exported.path)


@pytest.mark.parametrize("location", ["tokenizer.json", "text.onnx", "./image.onnx.data", "sub/../image.onnx.data"])
def test_weights_in_another_file_of_the_bundle_are_refused(exported: ExportedBundle, location: str) -> None:
    _list_weights(exported)
    _publish(exported, lambda model: _as_weight(model, location))
    with pytest.raises(BundleCorruptError, match="takes weights from"):
        open_bundle(exported.path)


def test_weights_in_a_listed_file_of_the_graph_are_taken(exported: ExportedBundle) -> None:
    _list_weights(exported)
    _publish(open_bundle(exported.path), lambda model: _as_weight(model, "image.onnx.data"))  # type: ignore[arg-type]
    assert open_bundle(exported.path)


def _list_weights(bundle: ExportedBundle) -> None:
    path = bundle.path / "image.onnx.data"
    path.write_bytes(bytes(4))
    files = {**bundle.manifest.files, path.name: file_record(path)}
    support.edit_manifest(bundle.path, files=msgspec.to_builtins(files))


def test_external_weights_without_a_name_are_refused(exported: ExportedBundle) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].data_location = TensorProto.EXTERNAL

    _publish(exported, change)
    with pytest.raises(BundleCorruptError, match="is in another file, but the file name is missing"):
        open_bundle(exported.path)


def _input_axis(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 10**18


def _input_type(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def _output_rank(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim.add(dim_value=1)


def _second_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(_bool("more"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_input_axis, r"'pixel_values' with the shape \['batch', 3, 1000000000000000000, 8\]"),
        (_input_type, "float64"),
        (_output_rank, r"'image_embeds' with the shape \['batch', 12, 1\]"),
        (_second_input, "'more'"),
        (lambda model: model.graph.ClearField("output"), r"has \[\]"),
    ],
)
def test_graph_that_is_not_what_the_manifest_says_is_refused(
    exported: ExportedBundle, change: Change, words: str
) -> None:
    _publish(exported, change)
    with pytest.raises(BundleCorruptError, match=rf"Graph 'image\.onnx'.*{words}.*; the manifest says"):
        open_bundle(exported.path)


@pytest.mark.parametrize(
    "content", [b"", b"PK\3\4", b"\x0b" * 64, b"\xff" * 64, b"\x3a\xff\xff\xff\xff\x7f", b"\x08\x0a"]
)
def test_what_is_no_graph_is_refused(exported: ExportedBundle, content: bytes) -> None:
    (exported.path / "image.onnx").write_bytes(content)
    files = {**exported.manifest.files, "image.onnx": file_record(exported.path / "image.onnx")}
    support.edit_manifest(exported.path, files=msgspec.to_builtins(files))
    with pytest.raises(BundleCorruptError, match=r"Graph 'image\.onnx' of bundle '.*' cannot be used: it is"):
        open_bundle(exported.path)


def test_pipe_in_the_place_of_a_file_is_refused_at_once(exported: ExportedBundle) -> None:
    path = exported.path / "image.onnx"
    path.unlink()
    os.mkfifo(path)
    files = {**exported.manifest.files, "image.onnx": {"sha256": "0" * 64, "size": 0}}
    support.edit_manifest(exported.path, files=msgspec.to_builtins(files))
    with pytest.raises(BundleCorruptError, match=r"File 'image\.onnx'.*not a regular file"):
        open_bundle(exported.path)


def test_every_truncation_is_noticed(exported: ExportedBundle, tmp_path: Path) -> None:
    content = (exported.path / "image.onnx").read_bytes()
    end_of_graph = len(content) - len(onnx.load_from_string(content).opset_import[0].SerializeToString()) - 2
    for size in range(0, end_of_graph, 7):
        (tmp_path / "cut.onnx").write_bytes(content[:size])
        with (tmp_path / "cut.onnx").open("rb") as stream, pytest.raises(ValueError, match="it is"):
            scan_graph(stream)
