"""Exported graphs against torch, computed here without the exporter's own checks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from clipmlu.bundle.directory import ExportedBundle, open_exported
from clipmlu.bundle.manifest import ParityRecord
from clipmlu.data.tokenizer import Tokenizer
from clipmlu.errors import BundleExistsError, ExportError, ParityError
from clipmlu.export.checks import check_parity
from clipmlu.export.exporter import ExportOptions, export_model, identify_source
from clipmlu.export.graph import read_tower
from clipmlu.export.loading import load_model
from clipmlu.export.quiet import quiet_libraries
from clipmlu.export.source import resolve_source
from clipmlu.export.towers import tower_programs
from clipmlu.specs import MODULE_KEY
from hub_cache import put_into_cache
from tiny_models import CONFIGS, CONTEXT, EMBED_DIM, write_config

pytestmark = pytest.mark.torch

TEXTS = ["a photo of a cat", "", "a red circle " * 20, "Caf\u00e9 &amp; dog", "x"]
Tiny = Callable[[str], Path]
Exported = Callable[[str], ExportedBundle]


def reference(folder: Path) -> Any:
    """The model as open_clip itself loads it."""
    import open_clip

    with quiet_libraries():
        return open_clip.create_model(f"local-dir:{folder}").eval()


def hf_text_reference(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """open_clip looks up a relative ``hf_model_name`` in the working directory only."""
    monkeypatch.chdir(folder)
    return reference(folder)


def run(bundle: ExportedBundle, tower: str, **feeds: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    session = onnxruntime.InferenceSession(str(bundle.path / f"{tower}.onnx"), providers=["CPUExecutionProvider"])
    return [np.asarray(each) for each in session.run(None, feeds)]


def images(bundle: ExportedBundle, count: int) -> npt.NDArray[np.float32]:
    spec = bundle.manifest.preprocess
    return np.random.default_rng(3).standard_normal((count, 3, spec.height, spec.width), dtype=np.float32)


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_embeddings_equal_torch_for_any_batch(
    kind: str, tiny_model: Tiny, tiny_bundle: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    folder = tiny_model(kind)
    bundle = tiny_bundle(kind)
    model = hf_text_reference(folder, monkeypatch)
    tokenizer = Tokenizer.load(bundle.tokenizer_path, bundle.manifest.tokenizer)
    for count in (1, 2, 7, 11):
        pixels = images(bundle, count)
        ids = tokenizer([TEXTS[row % len(TEXTS)] for row in range(count)])
        with torch.no_grad():
            expected_images = torch.nn.functional.normalize(model.encode_image(torch.from_numpy(pixels)), dim=-1)
            expected_texts = torch.nn.functional.normalize(model.encode_text(torch.from_numpy(ids)), dim=-1)
        (image_embeds,) = run(bundle, "image", pixel_values=pixels)
        (text_embeds,) = run(bundle, "text", input_ids=ids)
        np.testing.assert_allclose(image_embeds, expected_images.numpy(), rtol=0, atol=1e-5)
        np.testing.assert_allclose(text_embeds, expected_texts.numpy(), rtol=0, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(image_embeds, axis=1), 1, atol=1e-6)
        assert text_embeds.dtype == image_embeds.dtype == np.float32


@pytest.mark.slow
def test_manifest_tells_what_was_exported(tiny_model: Tiny, tiny_bundle: Exported) -> None:
    folder = tiny_model("siglip")
    bundle = tiny_bundle("siglip")
    manifest = bundle.manifest
    model = reference(folder)
    assert manifest.model.name == f"local-dir:{folder}"
    assert manifest.model.random_seed is None
    assert manifest.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()), rel=1e-6)
    assert manifest.logit_bias == pytest.approx(float(model.logit_bias.detach()), rel=1e-6)
    assert manifest.embedding_dim == 64
    assert manifest.preprocess.mean == (0.5, 0.5, 0.5)
    assert (manifest.preprocess.height, manifest.preprocess.width) == (160, 160)
    assert manifest.tokenizer.context_length == CONTEXT
    assert not manifest.tokenizer.stand_in
    assert manifest.export.opset == 20
    assert {record.batch_size for record in manifest.export.parity} == {1, 2, 5, 8}
    assert {record.output for record in manifest.export.parity} == {"image_embeds", "text_embeds"}
    assert all(record.max_abs_diff <= 1e-5 for record in manifest.export.parity)
    assert {"clipmlu", "torch", "open_clip_torch", "onnxscript", "pillow"} <= set(manifest.tool_versions)
    assert open_exported(bundle.path).digest == bundle.digest


def test_interface_has_the_documented_names_and_one_dynamic_axis(tiny_bundle: Exported) -> None:
    bundle = tiny_bundle("vit")
    image, text = bundle.tower("image"), bundle.tower("text")
    assert [(each.name, each.dtype, each.shape) for each in (*image.inputs, *image.outputs)] == [
        ("pixel_values", "float32", ("batch", 3, 32, 32)),
        ("image_embeds", "float32", ("batch", EMBED_DIM)),
    ]
    assert [(each.name, each.dtype, each.shape) for each in (*text.inputs, *text.outputs)] == [
        ("input_ids", "int64", ("batch", CONTEXT)),
        ("text_embeds", "float32", ("batch", EMBED_DIM)),
    ]


@pytest.mark.slow
def test_joint_graph_gives_scaled_and_shifted_similarities(
    tiny_bundle: Callable[..., ExportedBundle],
) -> None:
    towers = tiny_bundle("siglip")
    joint = tiny_bundle("siglip", layout="joint")
    assert set(joint.manifest.towers) == {"joint"}
    assert joint.tower("joint").outputs[0].shape == ("image_batch", "text_batch")
    assert joint.tower("joint").outputs[1].shape == ("text_batch", "image_batch")
    pixels = images(towers, 3)
    ids = Tokenizer.load(towers.tokenizer_path, towers.manifest.tokenizer)(TEXTS)
    (image_embeds,), (text_embeds,) = run(towers, "image", pixel_values=pixels), run(towers, "text", input_ids=ids)
    bias = towers.manifest.logit_bias
    assert bias is not None
    expected = towers.manifest.logit_scale * image_embeds.astype(np.float64) @ text_embeds.T + bias
    per_image, per_text = run(joint, "joint", pixel_values=pixels, input_ids=ids)
    np.testing.assert_allclose(per_image, expected, rtol=0, atol=2e-4)
    np.testing.assert_array_equal(per_text, per_image.T)
    records = joint.manifest.export.parity
    assert {record.output for record in records} == {"logits_per_image", "logits_per_text"}
    assert all(record.min_cosine is None for record in records)
    assert records[0].allowed_abs_diff == pytest.approx(1e-5 * joint.manifest.logit_scale)


@pytest.mark.parametrize(("opset", "gelu"), [(20, "Gelu"), pytest.param(18, "Erf", marks=pytest.mark.slow)])
def test_opset_is_read_back_and_layer_norm_is_one_node(
    opset: int, gelu: str, tiny_bundle: Callable[..., ExportedBundle]
) -> None:
    bundle = tiny_bundle("vit", opset)
    model = onnx.load(str(bundle.tower_path("image")))
    assert model.opset_import[0].version == opset == bundle.manifest.export.opset
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("LayerNormalization") == 6  # before, after, and two in each of two blocks
    assert operators.count(gelu) == 2
    assert bundle.manifest.activation == "gelu"


def test_quick_gelu_is_exported_as_such(tiny_bundle: Exported) -> None:
    bundle = tiny_bundle("quick-gelu")
    operators = [node.op_type for node in onnx.load(str(bundle.tower_path("image"))).graph.node]
    assert operators.count("Sigmoid") == 1
    assert "Erf" not in operators
    assert "Gelu" not in operators
    assert bundle.manifest.activation == "quick_gelu"
    assert bundle.manifest.tokenizer.kind == "clip_bpe"


def test_nodes_are_named_after_the_blocks_of_the_model(tiny_model: Tiny, tiny_bundle: Exported) -> None:
    folder = tiny_model("vit")
    bundle = tiny_bundle("vit")
    modules = dict(reference(folder).named_modules())
    for tower in ("image", "text"):
        model = onnx.load(str(bundle.path / f"{tower}.onnx"))
        names = [node.name for node in model.graph.node]
        assert len(set(names)) == len(names)
        for node in model.graph.node:
            (module,) = [each.value for each in node.metadata_props if each.key == MODULE_KEY]
            assert module in modules
            assert node.name.startswith(module)
    image = onnx.load(str(bundle.path / "image.onnx")).graph
    named = [node.name for node in image.node if node.name.startswith("visual.transformer.resblocks.1.mlp.c_fc/")]
    assert named, "the second block's first linear layer"
    assert "visual.conv1.weight" in {each.name for each in image.initializer}


@pytest.mark.slow
def test_files_hold_no_paths_of_this_machine(tiny_model: Tiny, tiny_bundle: Exported) -> None:
    folder = tiny_model("hf-text")
    bundle = tiny_bundle("hf-text")
    for file in ("image.onnx", "text.onnx", "tokenizer.json"):
        content = (bundle.path / file).read_bytes()
        for path in (str(folder), str(Path.home()), str(Path(onnx.__file__).parent.parent), "site-packages", ".py"):
            assert path.encode() not in content, (file, path)


@pytest.mark.slow
def test_exporting_again_gives_the_same_bytes(tiny_model: Tiny, tiny_bundle: Exported, tmp_path: Path) -> None:
    """The quicker test of the same kind exports from a cache (``test_downloads``), the pipeline's a demo model."""
    first = tiny_bundle("resnet")
    second = export_model(f"local-dir:{tiny_model('resnet')}", tmp_path / "second")
    assert first.manifest.files == second.manifest.files
    assert first.digest == second.digest


def test_random_weights_follow_the_seed_and_leave_torchs_alone(tiny_model: Tiny) -> None:
    import torch

    folder = tiny_model("vit")
    torch.manual_seed(99)
    expected = torch.rand(3)
    torch.manual_seed(99)
    digests = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        options = ExportOptions(random_weights=True, seed=seed)
        with quiet_libraries():
            digests[name] = load_model(resolve_source(f"local-dir:{folder}", options), options).weights_digest
    assert digests["a"] == digests["b"] != digests["c"]
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.slow
def test_large_graphs_keep_their_weights_in_a_file_beside_and_nothing_is_printed(
    tiny_model: Tiny, tiny_bundle: Exported, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_model("vit")
    small = tiny_bundle("vit")
    capfd.readouterr()
    options = ExportOptions(external_data_bytes=10_000)
    large = export_model(f"local-dir:{folder}", str(tmp_path / "large"), options)  # a path may be a string
    assert capfd.readouterr() == ("", "")
    assert large.path == tmp_path / "large"
    assert set(large.manifest.files) == {
        *("image.onnx", "image.onnx.data", "text.onnx", "text.onnx.data", "tokenizer.json")
    }
    assert (large.path / "image.onnx").stat().st_size < 200_000 < (large.path / "image.onnx.data").stat().st_size
    pixels = images(small, 3)
    np.testing.assert_array_equal(
        run(large, "image", pixel_values=pixels)[0], run(small, "image", pixel_values=pixels)[0]
    )
    assert open_exported(large.path).digest == large.digest
    assert large.manifest.text_id != small.manifest.text_id


@dataclasses.dataclass(frozen=True)
class Written:
    """The image graph of the tiny ViT in a folder of its own, to be damaged."""

    path: Path
    check: Callable[[], tuple[ParityRecord, ...]]


@pytest.fixture
def written(tiny_model: Tiny, tiny_bundle: Exported, tmp_path: Path) -> Written:
    """The graph is as exported; ``check`` is the exporter's gate."""
    bundle, options = tiny_bundle("vit"), ExportOptions()
    tokenizer = Tokenizer.load(bundle.tokenizer_path, bundle.manifest.tokenizer)
    path = Path(shutil.copy(bundle.path / "image.onnx", tmp_path))
    with quiet_libraries():
        loaded = load_model(resolve_source(f"local-dir:{tiny_model('vit')}", options), options)
    program = next(each for each in tower_programs(loaded, "towers", EMBED_DIM) if each.tower == "image")
    return Written(path, lambda: check_parity(program, read_tower(path), tmp_path, loaded, tokenizer, options))


def test_wrong_weights_in_the_graph_fail_the_gate(written: Written) -> None:
    assert all(record.max_abs_diff <= 1e-5 for record in written.check())
    change_weight(written.path, "visual.ln_post.bias", lambda values: values + 1e-3 * (np.arange(len(values)) == 0))
    with pytest.raises(
        ParityError, match=r"image graph differs from torch in 'image_embeds' at batch size 1: .*e-0.*allowed 1e-05"
    ) as caught:
        written.check()
    assert caught.value.exit_code == 3
    assert caught.value.differences[0]["output"] == "image_embeds"
    assert caught.value.differences[0]["allowed_abs_diff"] == 1e-5


def change_weight(path: Path, weight: str, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> None:
    model = onnx.load(str(path))
    (tensor,) = [each for each in model.graph.initializer if each.name == weight]
    values = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(change(values).astype(values.dtype), weight))
    onnx.save(model, str(path))


def test_a_batch_baked_into_the_graph_is_found(written: Written) -> None:
    model = onnx.load(str(written.path))
    rows = next(node for node in model.graph.node if node.op_type == "Reshape")  # of the patches
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 64, 4]), "baked"))
    rows.input[1] = "baked"
    onnx.save(model, str(written.path))
    with pytest.raises(ExportError, match="does not run with a batch of 1"):
        written.check()


def test_values_that_are_not_finite_are_an_error_and_nothing_is_published(tiny_model: Tiny, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = write_config(tmp_path / "model", CONFIGS["quick-gelu"])
    state = load_file(str(tiny_model("quick-gelu") / "open_clip_model.safetensors"))
    state["visual.proj"][0, 0] = torch.nan
    save_file(state, str(folder / "open_clip_model.safetensors"))
    with pytest.raises(ExportError, match="torch model itself gives values in 'image_embeds' that are not finite"):
        export_model(f"local-dir:{folder}", tmp_path / "out")
    assert list(tmp_path.iterdir()) == [folder]


def test_taken_output_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "model", CONFIGS["vit"])
    (folder / "open_clip_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ExportError, match="safetensors"):
        export_model(f"local-dir:{folder}", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    with pytest.raises(BundleExistsError):
        export_model(f"local-dir:{folder}", tmp_path / "out", ExportOptions(overwrite=True))


@pytest.mark.slow
def test_identity_is_what_the_manifest_says(tiny_model: Tiny, tiny_bundle: Exported) -> None:
    folder = tiny_model("hf-text")
    bundle = tiny_bundle("hf-text")
    identity, files = identify_source(f"local-dir:{folder}", ExportOptions())
    assert bundle.manifest.model == identity
    assert bundle.manifest.export.source_files == files
    config = (folder / "open_clip_config.json").read_bytes()
    assert files["open_clip_config.json"].sha256 == hashlib.sha256(config).hexdigest()
    assert set(files) == {
        *("open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        "text_cfg/config.json",
    }


def test_listed_quick_gelu_weights_are_loaded_as_quick_gelu_under_the_plain_name(
    tiny_model: Tiny, tmp_path: Path, give_config: Callable[..., None]
) -> None:
    """ViT-B-32 with OpenAI's weights: the architecture's own configuration has plain GELU."""
    import torch

    folder = tiny_model("quick-gelu")
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    config.pop("quick_gelu")
    give_config(lambda _name: config)
    name = "open_clip_model.safetensors"
    put_into_cache(tmp_path, "timm/vit_base_patch32_clip_224.openai", name, (folder / name).read_bytes())
    options = ExportOptions(cache_dir=tmp_path, offline=True)
    with quiet_libraries():
        source = resolve_source("ViT-B-32::openai", options)
        loaded = load_model(source, options)
    assert str(source.identity) == "ViT-B-32::openai"
    assert loaded.activation == "quick_gelu"
    assert loaded.preprocess.mean == (0.48145466, 0.4578275, 0.40821073)
    texts = np.random.default_rng(5).integers(1, 49408, (3, 16))
    expected = reference(folder).encode_text(torch.from_numpy(texts))
    torch.testing.assert_close(loaded.module.encode_text(torch.from_numpy(texts)), expected, rtol=0, atol=1e-6)


def test_demo_model_is_exported_from_the_package(demo_bundle: ExportedBundle) -> None:
    assert str(demo_bundle.manifest.model) == "demo"
    assert not demo_bundle.manifest.tokenizer.stand_in
