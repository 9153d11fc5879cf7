"""Imported files give the embeddings of the given ones, whatever their shape; references are NumPy and ONNX's own evaluator."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

import foreign_onnx as foreign
import support
from clipmlu.api.importing import import_onnx
from clipmlu.bundle.directory import ExportedBundle, open_exported
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.errors import ExportError, InputError, OptionError
from clipmlu.host import import_onnxruntime
from clipmlu.model import load

Array = npt.NDArray[Any]
TEXTS = ["", "a red circle", "some words of another length, and more of them than fit into the context"]
ONNXRUNTIME = tuple(map(int, version("onnxruntime").split(".")[:2]))


def run(bundle: ExportedBundle, tower: Any, array: Array) -> Array:
    session = import_onnxruntime().InferenceSession(str(bundle.tower_path(tower)), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: array})[0])


def pixels(count: int) -> Array:
    return np.random.default_rng(3).standard_normal((count, 3, support.SIDE, support.SIDE), np.float32)


def tokens(count: int) -> npt.NDArray[np.int64]:
    """Random texts of the stand-in tokenizer: begin, bytes, end, padding."""
    generator = np.random.default_rng(4)
    rows = np.zeros((count, support.CONTEXT), np.int64)
    for row in rows:
        length = int(generator.integers(1, support.CONTEXT - 2))
        row[: length + 2] = [1, *generator.integers(2, 258, length), foreign.END]
    return rows


def check(bundle: ExportedBundle, *, tolerance: float = 1e-6) -> None:
    """The bundle's towers compute what the tiny model computes in NumPy, for several batch sizes."""
    for count in (1, 2, 7):
        images, texts = pixels(count), tokens(count)
        assert np.abs(run(bundle, "image", images) - support.embed_images(images)).max() < tolerance
        assert np.abs(run(bundle, "text", texts) - support.embed_tokens(texts)).max() < tolerance


def imported(paths: Any, output: Path, **keywords: Any) -> ExportedBundle:
    return import_onnx(paths, output, on_note=lambda _line: None, **{**foreign.SHAPE, **keywords})


@pytest.fixture
def towers(tmp_path: Path) -> list[Path]:
    return foreign.write(tmp_path / "given", image=foreign.image_tower(), text=foreign.text_tower())


def test_two_towers_become_a_bundle_that_classifies(towers: list[Path], tmp_path: Path) -> None:
    notes: list[str] = []
    steps = support.StepRecorder()
    bundle = import_onnx(towers, tmp_path / "out", on_note=notes.append, on_step=steps, **foreign.SHAPE)
    check(bundle)
    assert [label for label in steps.labels() if "text" in label] == [
        "converting the text tower",
        "checking the text tower against the given file",
    ]
    manifest = open_exported(tmp_path / "out").manifest
    assert (manifest.logit_scale, manifest.logit_bias, manifest.embedding_dim) == (100.0, None, support.DIM)
    assert [note for note in notes if "logit scale is assumed to be 100" in note] == list(manifest.export.notes)
    assert set(manifest.export.source_files) == {"image.onnx", "text.onnx"}
    assert manifest.export.exporter == "clipmlu import of pytorch 1.13"
    assert str(manifest.model) == "onnx:image+text"
    assert {(record.tower, record.batch_size) for record in manifest.export.parity} == {
        (tower, size) for tower in ("image", "text") for size in (1, 3, 5)
    }
    compiled = compile_bundle(bundle, tmp_path / "cpu", CompileOptions(target="cpu", batch_size=2, max_batch=4))
    with load(compiled.path) as model:
        picture = support.picture(1)
        expected = support.embed_images(support.preprocess(picture)[None])
        assert np.abs(model.embed_images([picture]) - expected).max() < 1e-6
        found = model.classifier(["ant", "bee"], cache=False).predict(picture)
        assert found.class_name in ("ant", "bee")


def test_the_order_of_two_files_does_not_matter(towers: list[Path], tmp_path: Path) -> None:
    check(imported(towers[::-1], tmp_path / "out", logit_scale=20.0))


def test_nothing_of_the_export_stage_is_needed(
    towers: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch", "open_clip", "transformers", "onnxscript", "timm"):
        monkeypatch.setitem(sys.modules, name, None)
    check(imported(towers, tmp_path / "out"))


@pytest.mark.parametrize(("scale", "bias", "products"), [(20.0, None, 1), (97.5, -12.25, 1), (100.0, None, 2)])
def test_a_fused_graph_of_the_sample_is_split(tmp_path: Path, scale: float, bias: float | None, products: int) -> None:
    graph = foreign.fused_of_the_sample(scale=scale, bias=bias, products=products)
    paths = foreign.write(tmp_path / "given", clip=graph)
    bundle = imported(paths[0], tmp_path / "out")
    check(bundle)
    manifest = bundle.manifest
    assert manifest.logit_scale == pytest.approx(scale, rel=1e-6)
    assert manifest.logit_bias == (None if bias is None else pytest.approx(bias, rel=1e-6))
    # Logits of ONNX's own evaluator of the given file equal those that a classifier computes.
    images, texts = pixels(3), tokens(4)
    feeds = {"image": images, "text": texts.astype(np.int32)}
    per_image, per_text = ReferenceEvaluator(graph).run(None, feeds)
    cosines = run(bundle, "image", images) @ run(bundle, "text", texts).T
    assert np.abs(per_image - (manifest.logit_scale * cosines + (manifest.logit_bias or 0.0))).max() < 1e-4
    assert np.abs(per_text - per_image.T).max() < 1e-4


@pytest.mark.parametrize("pad_id", [0, foreign.END])
def test_the_mask_of_transformers_is_computed_from_the_padding(tmp_path: Path, pad_id: int) -> None:
    """With the end token as padding, as in CLIP's tokenizer there, its first occurrence belongs to the text."""
    paths = foreign.write(tmp_path / "given", model=foreign.fused_of_transformers())
    bundle = imported(paths, tmp_path / "out", pad_id=pad_id, context_length=support.CONTEXT)
    assert [port.name for port in bundle.tower("text").inputs] == ["input_ids"]
    rows = tokens(5)
    lengths = (rows == foreign.END).argmax(axis=1) + 1
    mask = np.arange(support.CONTEXT)[None] < lengths[:, None]
    rows[~mask] = pad_id
    assert np.abs(run(bundle, "text", rows) - foreign.embed_masked(rows, mask)).max() < 1e-6
    images = pixels(2)
    assert np.abs(run(bundle, "image", images) - support.embed_images(images)).max() < 1e-6
    assert bundle.manifest.logit_scale == pytest.approx(20.0)


def test_embeddings_without_unit_norm_are_normalised(tmp_path: Path) -> None:
    graphs = {"image": foreign.image_tower(normalise=False), "text": foreign.text_tower()}
    check(imported(foreign.write(tmp_path / "given", **graphs), tmp_path / "out"))


def test_weights_of_16_bits_become_float32(tmp_path: Path) -> None:
    graphs = {"image": foreign.to_halves(foreign.image_tower()), "text": foreign.to_halves(foreign.text_tower())}
    bundle = imported(foreign.write(tmp_path / "given", **graphs), tmp_path / "out")
    check(bundle, tolerance=2e-3)
    images = pixels(3)
    weight = foreign.IMAGE_WEIGHT.astype(np.float16).astype(np.float64)
    half = support.SIDE // 2
    quarters = images.astype(np.float64).reshape(-1, 3, 2, half, 2, half).mean(axis=(3, 5)).reshape(-1, 12) @ weight
    expected = quarters / np.linalg.norm(quarters, axis=1, keepdims=True)
    assert np.abs(run(bundle, "image", images) - expected).max() < 1e-6
    assert any("16-bit" in note for note in bundle.manifest.export.notes)


def test_a_fused_graph_of_16_bits_is_split(tmp_path: Path) -> None:
    paths = foreign.write(tmp_path / "given", model=foreign.to_halves(foreign.fused_of_transformers(scale=64.0)))
    bundle = imported(paths, tmp_path / "out", context_length=support.CONTEXT)
    assert bundle.manifest.logit_scale == 64.0


def test_external_weights_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "given"
    paths = foreign.write(folder, text=foreign.text_tower())
    onnx.save(
        foreign.image_tower(),
        str(folder / "image.onnx"),
        save_as_external_data=True,
        location="image.onnx_data",
        size_threshold=0,
    )
    bundle = imported([folder / "image.onnx", *paths], tmp_path / "out")
    check(bundle)
    assert set(bundle.manifest.export.source_files) == {"image.onnx", "image.onnx_data", "text.onnx"}


def test_links_of_a_cache_are_followed(tmp_path: Path) -> None:
    """The cache of huggingface_hub: a snapshot has links to files side by side in another folder."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1" / "onnx"
    snapshot.mkdir(parents=True)
    foreign.write(blobs, text=foreign.text_tower())
    onnx.save(
        foreign.image_tower(),
        str(blobs / "image"),
        save_as_external_data=True,
        location="vision_model.onnx_data",
        size_threshold=0,
    )
    for link, blob in (
        ("vision_model.onnx", "image"),
        ("vision_model.onnx_data", "vision_model.onnx_data"),
        ("text_model.onnx", "text.onnx"),
        ("../tokenizer.json", "tokenizer.json"),
    ):
        (snapshot / link).symlink_to(blobs / blob)
    check(imported(snapshot.parent, tmp_path / "out"))


@pytest.mark.parametrize("opset", [10, 11, 13, 17])
def test_older_opsets_are_converted(tmp_path: Path, opset: int) -> None:
    """The forms of each opset, written by hand: ReduceSum and Unsqueeze had attributes before 13, LpNormalization never changed."""
    graph = foreign.fused_of_the_sample(bias=-2.0)
    if opset < 13:
        for node in graph.graph.node:
            if node.op_type == "ReduceSum":
                del node.input[1]
                node.attribute.append(helper.make_attribute("axes", [1]))
    graph.opset_import[0].version = opset
    graph.ir_version = 5
    bundle = imported(foreign.write(tmp_path / "given", clip=graph), tmp_path / "out")
    check(bundle)
    assert bundle.manifest.export.opset == 18
    images = pixels(2)
    expected = ReferenceEvaluator(graph).run(
        ["images"] if False else None, {"image": images, "text": tokens(2).astype(np.int32)}
    )[0]
    cosines = run(bundle, "image", images) @ run(bundle, "text", tokens(2)).T
    assert np.abs(expected - (20.0 * cosines - 2.0)).max() < 1e-4


@pytest.mark.skipif(ONNXRUNTIME < (1, 25), reason="onnxruntime runs all operators of opset 22 since 1.25")
def test_newer_opsets_are_kept(tmp_path: Path) -> None:
    graphs = {"image": foreign.image_tower(), "text": foreign.text_tower()}
    for graph in graphs.values():
        graph.opset_import[0].version = 22
        graph.ir_version = 10
    bundle = imported(foreign.write(tmp_path / "given", **graphs), tmp_path / "out")
    check(bundle)
    assert bundle.manifest.export.opset == 22


def _second_output(graph: onnx.ModelProto, name: str) -> onnx.ModelProto:
    graph.graph.output[0].name = "first"
    for node in graph.graph.node:
        node.output[0] = "first" if node.output[0] == "image_embeds" else node.output[0]
    graph.graph.output.append(helper.make_tensor_value_info(name, foreign.FLOAT, ("batch", support.DIM)))
    graph.graph.node.append(foreign.node("Neg", ["first"], name))
    return graph


def test_a_known_name_decides_among_several_outputs(tmp_path: Path) -> None:
    graph = _second_output(foreign.image_tower(), "image_embeds")
    bundle = imported(foreign.write(tmp_path / "given", image=graph, text=foreign.text_tower()), tmp_path / "out")
    assert np.abs(run(bundle, "image", pixels(2)) + support.embed_images(pixels(2))).max() < 1e-6


def test_a_wrong_name_of_a_fused_graphs_output_is_answered_with_the_names(tmp_path: Path) -> None:
    files = foreign.write(tmp_path / "given", model=foreign.fused_of_transformers())
    with pytest.raises(
        ExportError, match=r"image output is 'image_embed'; expected one of .*Did you mean 'image_embeds'"
    ):
        imported(files, tmp_path / "bundle", image_output="image_embed")


def test_the_user_names_the_output_where_no_name_is_known(tmp_path: Path) -> None:
    graph = _second_output(foreign.image_tower(), "second")
    paths = foreign.write(tmp_path / "given", image=graph, text=foreign.text_tower())
    with pytest.raises(ExportError, match=r"outputs 'first' .* 'second' .*give its name as --image-output"):
        imported(paths, tmp_path / "out")
    check(imported(paths, tmp_path / "out", image_output="first"))


_PROCESSOR = """{"image_processor_type": "CLIPImageProcessor", "do_center_crop": true, "size": {"shortest_edge": 10},
"crop_size": {"height": 8, "width": 8}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2}"""


@pytest.mark.parametrize("layout", ["", "onnx"])
def test_a_directory_is_recognised(tmp_path: Path, layout: str) -> None:
    """The layouts of Optimum, and of transformers.js with the graphs in a folder."""
    folder = tmp_path / "some-clip"
    foreign.write(folder)
    foreign.write(folder / layout, model_quantized=foreign.image_tower(), model=foreign.fused_of_transformers())
    (folder / "config.json").write_text('{"model_type": "clip"}')
    (folder / "preprocessor_config.json").write_text(_PROCESSOR)
    notes: list[str] = []
    bundle = import_onnx(folder, tmp_path / "out", on_note=notes.append, interpolation="bicubic")
    name = f"{layout}/model.onnx".lstrip("/")
    assert notes == [
        f"taking '{name}', not model_quantized.onnx",
        "images are prepared as 'preprocessor_config.json' says",
    ]
    spec = bundle.manifest.preprocess
    assert (spec.height, spec.width, spec.resize_to, spec.resize_mode) == (8, 8, (10, 10), "shortest")
    assert (spec.mean, spec.std, spec.interpolation) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic")
    assert bundle.manifest.tokenizer.context_length == support.CONTEXT
    assert str(bundle.manifest.model) == "onnx:some-clip"


@pytest.mark.parametrize(
    ("content", "size", "message"),
    [
        (_PROCESSOR.replace("8", "9"), None, r"image size is 8 x 8, but '.*preprocessor_config.json' says 9 x 9"),
        (
            _PROCESSOR.replace('"resample": 2', '"resample": 1'),
            None,
            r"as '.*' says: the filter 'resample' is 1 \(lanczos\)",
        ),
        ("{}", 16, r"image size is 16 x 16, but the graph takes 8 x 8"),
    ],
)
def test_preprocessing_that_does_not_fit_is_refused(
    towers: list[Path], tmp_path: Path, content: str, size: int | None, message: str
) -> None:
    (towers[0].parent / "preprocessor_config.json").write_text(content)
    with pytest.raises((ExportError, OptionError), match=message):
        import_onnx(towers, tmp_path / "out", image_size=size, on_note=lambda _line: None)


def test_a_directory_of_quantised_graphs_is_refused(tmp_path: Path) -> None:
    foreign.write(
        tmp_path / "clip" / "onnx", text_model_int8=foreign.text_tower(), vision_model_q4=foreign.image_tower()
    )
    with pytest.raises(
        InputError, match=r"has the graphs text_model_int8.onnx, vision_model_q4.onnx; expected float weights"
    ):
        imported(tmp_path / "clip", tmp_path / "out")


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    text = foreign.text_tower()
    for weight in text.graph.initializer:
        if weight.name == "table":
            weight.CopyFrom(onnx.numpy_helper.from_array(foreign.TOKEN_TABLE[:200], "table"))
    paths = foreign.write(tmp_path / "given", image=foreign.image_tower(), text=text)
    with pytest.raises(ExportError, match=r"The tokenizer has the id 258, but the token embedding of .* ends at 199"):
        imported(paths, tmp_path / "out")


def test_the_tokenizer_of_a_bundle_comes_with_its_settings(
    towers: list[Path], tmp_path: Path, exported: ExportedBundle
) -> None:
    bundle = imported(towers, tmp_path / "out", tokenizer=exported.path)
    assert bundle.manifest.tokenizer == exported.manifest.tokenizer
    bundle = imported(towers, tmp_path / "other", tokenizer=exported.path, clean="none", pad_id=3)
    assert (bundle.manifest.tokenizer.clean, bundle.manifest.tokenizer.pad_id) == ("none", 3)


@pytest.mark.parametrize(
    ("model_type", "tokenizer", "length"),
    [("chinese_clip", 77, 52), ("clip", 77, 77), ("clip", 10**30, 64), ("siglip", 512, 64)],
)
def test_the_context_length_is_that_of_the_configurations(
    tmp_path: Path, model_type: str, tokenizer: int, length: int
) -> None:
    """Of models that are trained with fewer tokens than they have room for, as hf: exports them, it is the trained number."""
    folder = tmp_path / "given"
    foreign.write(folder, model=foreign.fused_of_transformers())
    (folder / "config.json").write_text(
        f'{{"model_type": "{model_type}", "text_config": {{"max_position_embeddings": 64}}}}'
    )
    (folder / "tokenizer_config.json").write_text(f'{{"pad_token": "<pad>", "model_max_length": {tokenizer}}}')
    assert imported(folder, tmp_path / "out").manifest.tokenizer.context_length == length


def test_towers_of_different_sizes_are_refused(tmp_path: Path) -> None:
    image = foreign.image_tower()
    image.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(foreign.IMAGE_WEIGHT[:, :8], "weight"))
    image.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 8
    paths = foreign.write(tmp_path / "given", image=image, text=foreign.text_tower())
    with pytest.raises(ExportError, match=r"'image_embeds' has 8 elements, the text embedding 'text_embeds' 12"):
        imported(paths, tmp_path / "out")


def _fused_with(*nodes: onnx.NodeProto, drop: int, **more: Array) -> onnx.ModelProto:
    graph = foreign.fused_of_the_sample()
    kept = list(graph.graph.node)[:-drop]
    del graph.graph.node[:]
    graph.graph.node.extend([*kept, *nodes])
    graph.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in more.items())
    return graph


def _custom() -> onnx.ModelProto:
    graph = foreign.fused_of_the_sample()
    graph.graph.node[0].domain = "com.microsoft"
    graph.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return graph


def _branching() -> onnx.ModelProto:
    branch = helper.make_graph(
        [foreign.node("Identity", ["image"], "same")], "branch", [], [onnx.ValueInfoProto(name="same")]
    )
    chosen = helper.make_node("If", ["yes"], ["chosen"], name="/visual/If", then_branch=branch, else_branch=branch)
    graph = foreign.fused_of_the_sample()
    graph.graph.node.insert(0, chosen)
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    return graph


def _quantised() -> onnx.ModelProto:
    graph = foreign.fused_of_the_sample()
    graph.graph.node[2].op_type = "MatMulInteger"
    return graph


def _function(name: str, body: list[onnx.NodeProto]) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, ["x"], ["y"], body, opsets)


def _with_functions(*functions: onnx.FunctionProto) -> onnx.ModelProto:
    """The graph with the first function before its image tower."""
    graph = foreign.fused_of_the_sample()
    graph.graph.node[0].input[0] = "called"
    graph.graph.node.insert(0, helper.make_node(functions[0].name, ["image"], ["called"], domain="own"))
    graph.opset_import.append(helper.make_opsetid("own", 1))
    graph.functions.extend(functions)
    return graph


def test_functions_are_inlined(tmp_path: Path) -> None:
    """torch's first exporter on its new graphs wrote every module as a function."""
    inner = _function("Inner", [foreign.node("Neg", ["x"], "y")])
    outer = _function("Outer", [helper.make_node("Inner", ["x"], ["z"], domain="own"), foreign.node("Neg", ["z"], "y")])
    paths = foreign.write(tmp_path / "given", clip=_with_functions(outer, inner))
    check(imported(paths, tmp_path / "out"))


def _bomb() -> onnx.ModelProto:
    """Functions that each call the next one ten times: 10**9 nodes."""
    functions = []
    for number in range(10):
        chain = ["x", *(f"t{step}" for step in range(9)), "y"]
        calls = [
            helper.make_node("Neg", [before], [after])
            if number == 9
            else helper.make_node(f"F{number + 1}", [before], [after], domain="own")
            for before, after in itertools.pairwise(chain)
        ]
        functions.append(_function(f"F{number}", calls))
    return _with_functions(*functions)


def _nested_functions() -> onnx.ModelProto:
    """A function that calls the next one, and so on: deeper than the library inlines."""
    calls = [[helper.make_node(f"F{number + 1}", ["x"], ["y"], domain="own")] for number in range(2000)]
    last = [helper.make_node("Neg", ["x"], ["y"])]
    return _with_functions(*(_function(f"F{number}", body) for number, body in enumerate([*calls, last])))


def _endless_function() -> onnx.ModelProto:
    """Two functions that call each other."""
    call_second, call_first = (helper.make_node(name, ["x"], ["y"], domain="own") for name in ("F1", "F0"))
    return _with_functions(_function("F0", [call_second]), _function("F1", [call_first]))


REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "custom operator": (
        _custom,
        r"node '/pooled/AveragePool' \(operator com.microsoft.AveragePool\) of the domain 'com.microsoft'",
    ),
    "control flow": (_branching, r"node '/visual/If' \(operator If\), which is control flow"),
    "quantised": (_quantised, r"is quantised: it has the node '/raw_images/MatMul' \(operator MatMulInteger\)"),
    "probabilities": (
        lambda: foreign.fused_of_the_sample(softmax=True),
        r"node '/logits_per_image/Softmax' \(operator Softmax\) before the output 'logits_per_image'",
    ),
    "another meeting": (
        lambda: _fused_with(
            foreign.node("Concat", ["scaled", "texts"], "logits_per_image", axis=0),
            foreign.node("Identity", ["logits_per_image"], "logits_per_text"),
            drop=5,
        ),
        r"node '/logits_per_image/Concat' \(operator Concat\) where image and text meet",
    ),
    "a bomb": (_bomb, r"functions that stand for more than 1,000,000 nodes"),
    "functions that call each other": (_endless_function, r"functions that stand for more than 1,000,000 nodes"),
    "functions in functions": (_nested_functions, r"cannot be inlined: Function call chain depth exceeds limit"),
    "an old opset": (lambda: _with_opset(9), r"has opset 9; expected 10 or a later one"),
}


def _with_opset(version: int) -> onnx.ModelProto:
    graph = foreign.fused_of_the_sample()
    graph.opset_import[0].version = version
    return graph


@pytest.mark.parametrize("kind", list(REFUSED))
def test_what_is_not_understood_is_refused_with_the_node(tmp_path: Path, kind: str) -> None:
    build, message = REFUSED[kind]
    paths = foreign.write(tmp_path / "given", clip=build())
    with pytest.raises(ExportError, match=message) as caught:
        imported(paths, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_logits_that_are_no_scaled_cosines_are_refused(tmp_path: Path) -> None:
    """The products of embeddings without unit norm: the towers' cosines would rank classes in another order."""
    graph = foreign.fused_of_the_sample()
    for node in graph.graph.node:
        node.input[:] = ["raw_images" if name == "images" else name for name in node.input]
    paths = foreign.write(tmp_path / "given", clip=graph)
    with pytest.raises(
        ExportError, match=r"'logits_per_image' of the fused graph is not 20 times the cosine similarity"
    ):
        imported(paths, tmp_path / "out")


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "link.bin", "a\\b.bin", ""])
def test_external_weights_outside_the_directory_are_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "given"
    paths = foreign.write(folder, image=foreign.image_tower(), text=foreign.text_tower())
    graph = onnx.load(str(paths[0]))
    weight = graph.graph.initializer[0]
    content = weight.raw_data
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    onnx.save(graph, str(paths[0]))
    for path in (tmp_path / "secret.bin", tmp_path / "elsewhere" / "file.bin"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    (folder / "link.bin").symlink_to(tmp_path / "elsewhere" / "file.bin")
    with pytest.raises(ExportError, match=r"'weight' from '.*', which is not in its directory"):
        imported(paths, tmp_path / "out")


def test_external_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "given"
    paths = foreign.write(folder, text=foreign.text_tower())
    onnx.save(
        foreign.image_tower(), str(folder / "image.onnx"), save_as_external_data=True, location="data", size_threshold=0
    )
    (folder / "data").write_bytes((folder / "data").read_bytes()[:-8])
    with pytest.raises(ExportError, match=r"'weight' has \d+ bytes; its shape \(12, 12\) needs 576"):
        imported([folder / "image.onnx", *paths], tmp_path / "out")
