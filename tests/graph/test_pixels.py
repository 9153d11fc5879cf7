"""Pixels of uint8: what is put in front of a graph, on every kind of graph and in every mode that the CPU runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx.compose
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import support
from clipmlu.backends import SessionOptions, get_backend
from clipmlu.backends.base import CompiledGraph
from clipmlu.backends.cpu_graphs import take_uint8
from clipmlu.backends.onnxruntime import OnnxRuntimeBackend
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle, open_compiled, open_exported
from clipmlu.bundle.manifest import Tower
from clipmlu.bundle.verify import file_record
from clipmlu.chain import compiled_folder_name
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions, plan_compilation
from clipmlu.data.calibration import CalibrationOptions
from clipmlu.errors import CompileError, OptionError, ShapeError
from clipmlu.graph.pixels import (
    insert_normalisation,
    mean_and_variance,
    remove_normalisation,
    takes_uint8,
    with_float_pixels,
    with_uint8_pixels,
)
from clipmlu.magicmind.build import _check_pixels
from clipmlu.magicmind.client.answers import BuiltFacts
from clipmlu.model import Model
from clipmlu.specs import MluBuild, Precision, PreprocessSpec, QuantisationOptions, TensorSpec

SPEC = PreprocessSpec(height=16, width=16, mean=support.CLIP_MEAN, std=support.CLIP_STD)
CLASSES = ("ant", "bee", "cat", "dog")


@pytest.fixture
def clip(exported: ExportedBundle) -> ExportedBundle:
    return support.with_clips_normalisation(exported)


@pytest.fixture
def calibration(tmp_path: Path) -> CalibrationOptions:
    for number in range(6):
        (tmp_path / "seen").mkdir(exist_ok=True)
        support.picture(number).save(tmp_path / "seen" / f"{number}.png")
    return CalibrationOptions(dataset=str(tmp_path / "seen"), samples=6)


def compile_both(exported: ExportedBundle, folder: Path, **options: Any) -> tuple[CompiledBundle, CompiledBundle]:
    """The same with float32 and with uint8 pixels."""
    given = {"target": "cpu", "batch_size": 4, **options}
    plain = compile_bundle(exported, folder / "float32", CompileOptions(**given))
    return plain, compile_bundle(exported, folder / "uint8", CompileOptions(**given, uint8_input=True))


def noise(rows: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(5).integers(0, 256, (rows, 3, support.SIDE, support.SIDE), np.uint8)


def graph_of(opset: int, *clashing: str) -> onnx.ModelProto:
    """Pixels and what they are when they go into the first layer."""
    shape = ["batch", 3, 16, 16]
    nodes = [helper.make_node("Identity", ["pixel_values"], ["seen"], name="first")]
    nodes += [helper.make_node("Identity", ["pixel_values"], [name], name=name) for name in clashing]
    graph = helper.make_graph(
        nodes,
        "pixels",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("seen", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6)


def join_towers(bundle: ExportedBundle) -> ExportedBundle:
    """The bundle, changed in place, with both towers in one graph."""
    image, text = (onnx.load(bundle.tower_path(name)) for name in ("image", "text"))
    text = onnx.compose.add_prefix(text, "text_", rename_inputs=False, rename_outputs=False)
    inputs = [*image.graph.input, *text.graph.input]
    for value, axis in zip(inputs, ("image_batch", "text_batch"), strict=True):
        value.type.tensor_type.shape.dim[0].dim_param = axis
    scale = numpy_helper.from_array(np.array(support.LOGIT_SCALE, np.float32), "scale")
    last = [
        helper.make_node("Transpose", ["text_embeds"], ["turned"], name="turn", perm=[1, 0]),
        helper.make_node("MatMul", ["image_embeds", "turned"], ["cosines"], name="compare"),
        helper.make_node("Mul", ["cosines", "scale"], ["logits_per_image"], name="scale_up"),
    ]
    logits = helper.make_tensor_value_info("logits_per_image", TensorProto.FLOAT, ["image_batch", "text_batch"])
    nodes = [*image.graph.node, *text.graph.node, *last]
    weights = [*image.graph.initializer, *text.graph.initializer, scale]
    graph = helper.make_graph(nodes, "joint", inputs, [logits], weights)
    path = bundle.path / "joint.onnx"
    onnx.save(helper.make_model(graph, opset_imports=image.opset_import, ir_version=10), path)
    axes = ("image_batch", "text_batch")
    given = [*bundle.tower("image").inputs, *bundle.tower("text").inputs]
    tower = Tower(
        file=path.name,
        inputs=tuple(
            msgspec.structs.replace(each, shape=(axis, *each.shape[1:])) for each, axis in zip(given, axes, strict=True)
        ),
        outputs=(TensorSpec(name="logits_per_image", dtype="float32", shape=axes),),
    )
    files = {**bundle.manifest.files, path.name: file_record(path)}
    joint = msgspec.to_builtins({"layout": "joint", "towers": {"joint": tower}, "files": files})
    support.edit_manifest(bundle.path, **joint)
    return open_exported(bundle.path)


@pytest.mark.parametrize("opset", [11, 18, 20])
def test_every_value_is_normalised_to_the_last_bit(opset: int) -> None:
    model = graph_of(opset)
    insert_normalisation(model, SPEC)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16), (2, 3, 16, 16))
    (found,) = session.run(None, {"pixel_values": np.ascontiguousarray(pixels)})
    np.testing.assert_array_equal(found, support.normalise_as_clip(pixels))


def test_names_that_are_taken_are_not_taken_again() -> None:
    model = graph_of(18, "uint8_input/Cast", "uint8_input_/Div")
    before = model.SerializeToString()
    insert_normalisation(model, SPEC)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node[:4]] == ["Cast", "Div", "Sub", "Div"]
    remove_normalisation(model)
    assert model.SerializeToString() == before
    with pytest.raises(ValueError, match="does not begin by normalising 'pixel_values'"):
        remove_normalisation(model)


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("precision", OnnxRuntimeBackend.precisions)
def test_every_mode_on_the_cpu_gives_the_same_bits(
    clip: ExportedBundle, calibration: CalibrationOptions, tmp_path: Path, precision: Precision, dynamic: bool
) -> None:
    data = calibration if precision.bits else None
    options = {"precision": precision, "calibration": data, "dynamic_shape": dynamic, "check": dynamic}
    plain, taking = compile_both(clip, tmp_path, **options)
    pixels = noise(9)
    with Model(plain) as encoder, Model(taking) as uint8_encoder:
        expected = encoder.encode_images(support.normalise_as_clip(pixels))
        np.testing.assert_array_equal(uint8_encoder.encode_images(pixels), expected)
    assert taking.compilation.quantised == plain.compilation.quantised
    assert taking.compilation.parity == (plain.compilation.parity if dynamic else ())


def test_weights_beside_the_file_stay_as_they_are(clip: ExportedBundle, tmp_path: Path) -> None:
    path = clip.path / "image.onnx"
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="image.onnx.data", size_threshold=0)
    files = {name: file_record(clip.path / name) for name in (*clip.manifest.files, "image.onnx.data")}
    support.edit_manifest(clip.path, files=msgspec.to_builtins(files))
    for dynamic in (True, False):
        options = CompileOptions(target="cpu", batch_size=4, dynamic_shape=dynamic, uint8_input=True)
        compiled = compile_bundle(open_exported(clip.path), tmp_path / f"large-{dynamic}", options)
        assert compiled.manifest.files["image.onnx.data"] == files["image.onnx.data"]
        pixels = noise(5)
        with Model(compiled) as encoder:
            expected = support.embed_images(support.normalise_as_clip(pixels))
            np.testing.assert_allclose(encoder.encode_images(pixels), expected, atol=1e-5)


@pytest.mark.parametrize("target", ["cpu", "emulated-mlu"])
def test_calibrated_on_the_same_data_both_quantise_the_same_numbers(
    clip: ExportedBundle, calibration: CalibrationOptions, tmp_path: Path, target: str
) -> None:
    """The emulated calibrator too gets normalised floats."""
    precision = Precision.QINT8_MIXED_FLOAT32
    given = {"precision": precision, "calibration": calibration, "quantisation": QuantisationOptions()}
    plain, taking = compile_both(clip, tmp_path, target=target, **given)
    records = [bundle.compilation.quantised["image"].tensors for bundle in (plain, taking)]
    assert records[0]
    assert records[0] == records[1]


@pytest.mark.parametrize("target", ["cpu", "emulated-mlu"])
def test_classifying_and_embedding_give_what_they_give_with_float_pixels(
    clip: ExportedBundle, tmp_path: Path, target: str
) -> None:
    plain, taking = compile_both(clip, tmp_path, target=target)
    pictures = [support.picture(number) for number in range(7)]
    with Model(plain) as encoder, Model(taking) as uint8_encoder:
        expected, found = (each.embed_images(pictures) for each in (encoder, uint8_encoder))
        np.testing.assert_allclose(found, expected, atol=1e-5)
        pixels = np.stack([np.asarray(picture).transpose(2, 0, 1) for picture in pictures])
        np.testing.assert_allclose(found, support.embed_images(support.normalise_as_clip(pixels)), atol=1e-5)
        predicted = [each.classifier(CLASSES, cache=False).predict(pictures) for each in (encoder, uint8_encoder)]
        names = [[each.class_name for each in rows] for rows in predicted]  # type: ignore[union-attr]
        assert names[0] == names[1]
        with pytest.raises(
            ShapeError, match=r"takes 'pixel_values' as float32 \(batch, 3, 8, 8\); got uint8 \(4, 3, 8, 8\)"
        ):
            encoder.encode_images(pixels)


@pytest.mark.parametrize("target", ["cpu", "emulated-mlu"])
def test_joint_layout_takes_uint8_pixels_beside_its_texts(clip: ExportedBundle, tmp_path: Path, target: str) -> None:
    mlu = None if target == "cpu" else MluBuild(text_rows=3)
    options = CompileOptions(target=target, batch_size=4, mlu=mlu, uint8_input=True)
    bundle = compile_bundle(join_towers(clip), tmp_path / "out", options)
    pixels, ids = noise(4), np.arange(3 * support.CONTEXT).reshape(3, support.CONTEXT) % support.VOCAB
    images, texts = support.embed_images(support.normalise_as_clip(pixels)), support.embed_tokens(ids)
    with get_backend(bundle.compilation.backend).open(bundle.runnable, "joint", SessionOptions()) as session:
        assert [tensor.dtype for tensor in session.inputs.values()] == ["uint8", "int64"]
        found = session.run({"pixel_values": pixels, "input_ids": ids})["logits_per_image"]
    np.testing.assert_allclose(found, support.LOGIT_SCALE * images @ texts.T, atol=1e-5 * support.LOGIT_SCALE)


def test_manifest_tells_and_older_ones_mean_float(clip: ExportedBundle, tmp_path: Path) -> None:
    plain, taking = compile_both(clip, tmp_path, check=False)
    opened = open_compiled(taking.path)
    assert opened.compilation.uint8_input
    assert opened.tower("image").inputs == (
        TensorSpec(name="pixel_values", dtype="uint8", shape=("batch", 3, support.SIDE, support.SIDE)),
    )
    assert opened.tower("text") == plain.tower("text")
    facts = msgspec.to_builtins(plain.compilation)
    assert facts.pop("uint8_input") is False
    support.edit_manifest(plain.path, compilation=facts)
    assert not open_compiled(plain.path).compilation.uint8_input


def test_a_run_keeps_both_kinds_apart(exported: ExportedBundle) -> None:
    names, facts = set(), []
    for uint8 in (False, True):
        options = CompileOptions(target="cpu", uint8_input=uint8)
        plan = plan_compilation(options)
        names.add(compiled_folder_name(plan, options))
        facts.append(plan.facts(options, exported.digest, None))
    assert names == {"cpu-force_float32-1-64", "cpu-force_float32-1-64-uint8"}
    assert facts[0] != facts[1]


@pytest.mark.parametrize("uint8", [False, True])
@pytest.mark.parametrize("wrap", [lambda part: part, lambda part: {"builder_config": part}])
def test_a_normalisation_of_the_users_own_is_refused_before_anything_is_compiled(
    exported: ExportedBundle, tmp_path: Path, uint8: bool, wrap: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    part = wrap({"insert_bn_before_firstnode": {"0": {"mean": [0, 0, 0], "var": [1, 1, 1]}}})
    options = CompileOptions(target="emulated-mlu", mlu=MluBuild(build_config=part), uint8_input=uint8)
    with pytest.raises(OptionError, match="leave it out of --build-config, and give --uint8-input"):
        compile_bundle(exported, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_the_sdk_gets_mean_and_variance_of_pixels_as_they_are() -> None:
    """ImageNet's, as MC swintransformer's run.sh has them."""
    spec = msgspec.structs.replace(SPEC, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    mean, variance = mean_and_variance(spec)
    assert mean == pytest.approx([123.675, 116.28, 103.53])
    assert variance == pytest.approx([3409.976, 3262.694, 3291.89], rel=1e-5)


def test_a_model_that_did_not_become_uint8_is_refused() -> None:
    pixels = TensorSpec(name="pixel_values", dtype="float32", shape=("batch", 3, 8, 8))
    tower = Tower(file="image.mm", inputs=(pixels,), outputs=())
    changed = with_uint8_pixels(tower)
    assert takes_uint8(changed)
    assert not takes_uint8(tower)
    assert with_float_pixels(changed) == tower
    built = {"bytes": 1, "calibration_batches": 0, "warnings": [], "outputs": []}
    shape = [-1, 3, 8, 8]
    _check_pixels(changed, msgspec.convert({**built, "inputs": [{"shape": shape, "dtype": "uint8"}]}, BuiltFacts))
    with pytest.raises(CompileError, match=r"takes float32 for 'pixel_values'\. Compile without --uint8-input"):
        _check_pixels(changed, msgspec.convert({**built, "inputs": [{"shape": shape, "dtype": "float32"}]}, BuiltFacts))


def test_what_was_quantised_is_kept_when_the_file_is_written_anew(tmp_path: Path) -> None:
    onnx.save(graph_of(18), tmp_path / "image.onnx")
    pixels = TensorSpec(name="pixel_values", dtype="float32", shape=("batch", 3, 16, 16))
    before = CompiledGraph(tower=Tower(file="image.onnx", inputs=(pixels,), outputs=()))
    after = take_uint8(before, SPEC, tmp_path)
    assert after.quantised is before.quantised
    assert takes_uint8(after.tower)
