"""Models of the transformers library, exported from a directory as ``save_pretrained`` writes it, against the library itself."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
from PIL import Image

from clipmlu.bundle.directory import ExportedBundle
from clipmlu.cli import main
from clipmlu.data.preprocess import Preprocessor
from clipmlu.data.prompts import resolve_templates
from clipmlu.data.tokenizer import Tokenizer
from clipmlu.errors import DownloadError, ExportError, ParityError
from clipmlu.export.downloads import record_downloads
from clipmlu.export.exporter import ExportOptions, export_model, identify_source, is_current
from clipmlu.export.loading import LoadedModel
from clipmlu.export.quiet import quiet_libraries
from clipmlu.export.repositories import fetch_directory
from clipmlu.export.source import resolve_source
from clipmlu.export.tokenizers import PROBE_TEXTS, write_tokenizer
from clipmlu.export.transformers_checks import check_against_library
from clipmlu.export.transformers_model import load_transformers_model
from clipmlu.graph.lowering.lower import lower_graph
from clipmlu.specs import TokenizerSpec
from hub_cache import put_into_cache
from tiny_transformers import edit_json, write_transformers_model

pytest.importorskip("transformers", reason="needs the export extra (transformers)", exc_type=ImportError)
pytestmark = pytest.mark.torch

KINDS = ("chinese_clip", "clip", "siglip", "siglip2", "metaclip_2", "altclip", "align")
EXPORTED = [KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])]
Written = Callable[[str], Path]
Exported = Callable[[str], ExportedBundle]
NASTY = (
    *PROBE_TEXTS,
    "word " * 500,
    "\u732b" * 200,
    "\u4e00\u5f20\u732b\u7684\u7167\u7247\u3002",
    "\u5e74 2024\u3001\u732b&\u72d7\uff01",
    "A CAT. a cat",
    "na\u00efve caf\u00e9, \u00c5ngstr\u00f6m",
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """``written(kind)``: the directory of a tiny model, made once for all tests."""
    root = tmp_path_factory.mktemp("transformers")

    @functools.cache
    def write(kind: str) -> Path:
        with quiet_libraries():
            return write_transformers_model(root / kind, kind)

    return write


@pytest.fixture(scope="module")
def exported(written: Written, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """``exported(kind)``: its export."""
    root = tmp_path_factory.mktemp("bundles")
    return functools.cache(lambda kind: export_model(f"local-dir:{written(kind)}", root / kind))


def load_model(folder: Path, options: ExportOptions | None = None) -> tuple[LoadedModel, TokenizerSpec]:
    """What an export loads before it traces the towers; the tokenizer is written beside the folder."""
    options = options or ExportOptions()
    source = resolve_source(f"local-dir:{folder}", options)
    with quiet_libraries():
        loaded = load_transformers_model(source, options)
        return loaded, write_tokenizer(source, loaded, folder.with_suffix(".json"), options)


def library(folder: Path) -> tuple[Any, Any, Any]:
    """The model, the Pillow-based image processor and the tokenizer, as users of the library load them."""
    import transformers

    with quiet_libraries():
        return (
            transformers.AutoModel.from_pretrained(folder).eval(),
            transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False),
            transformers.AutoTokenizer.from_pretrained(folder),
        )


def run(bundle: ExportedBundle, tower: str, values: Any) -> Any:
    session = onnxruntime.InferenceSession(str(bundle.path / f"{tower}.onnx"), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: values})[0]


def pictures(square: bool) -> list[Image.Image]:
    generator = np.random.default_rng(5)
    shapes = [(37, 37), (100, 100)] if square else [(37, 51), (120, 45), (35, 32), (20, 90)]
    return [Image.fromarray(generator.integers(0, 256, (*shape, 3), np.uint8)) for shape in shapes]


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_tokens_and_embeddings_equal_the_librarys(kind: str, written: Written) -> None:
    """The library gets images and texts, with masks and positions of its own; the towers get pixels and ids."""
    import torch

    folder = written(kind)
    loaded, spec = load_model(folder)
    pixels, ids, result = library_results(folder, kind, spec.context_length)
    ours = Preprocessor(loaded.preprocess).batch(pictures(square=kind == "siglip2"))
    if pixels is not None:
        # ALIGN's scaling is rounded once more.
        np.testing.assert_allclose(ours, pixels, rtol=0, atol=2e-7 if kind == "align" else 0)
    found = Tokenizer.load(folder.with_suffix(".json"), spec)(list(NASTY))
    np.testing.assert_array_equal(found, ids)
    with torch.no_grad():
        images = loaded.module.encode_image(torch.from_numpy(ours), normalize=True)
        texts = loaded.module.encode_text(torch.from_numpy(found), normalize=True)
    np.testing.assert_allclose(images, unit(result.image_embeds), rtol=0, atol=1e-5)
    # AltCLIP counts no literal padding; without any token the library's two kinds of attention differ themselves.
    rows = [row for row, text in enumerate(NASTY) if kind != "altclip" or "<pad>" not in text]
    rows = [row for row in rows if (found[row] != spec.pad_id).any() or kind != "siglip2"]
    np.testing.assert_allclose(texts[rows], unit(result.text_embeds)[rows], rtol=0, atol=1e-5)
    logits = loaded.logit_scale * images @ texts.T + (loaded.logit_bias or 0.0)
    np.testing.assert_allclose(logits[:, rows], result.logits_per_image[:, rows], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", EXPORTED)
def test_exported_towers_equal_the_librarys(kind: str, written: Written, exported: Exported) -> None:
    """Whole prompts and empty ones; ids alone come in, and what the vendor's parser takes can be made of the graphs."""
    bundle = exported(kind)
    manifest = bundle.manifest
    _, ids, result = library_results(written(kind), kind, manifest.tokenizer.context_length)
    pixels = Preprocessor(manifest.preprocess).batch(pictures(square=kind == "siglip2"))
    np.testing.assert_allclose(run(bundle, "image", pixels), unit(result.image_embeds), rtol=0, atol=1e-5)
    plain = [row for row, text in enumerate(NASTY) if text.strip() and "<pad>" not in text]
    texts = run(bundle, "text", ids)[plain]
    np.testing.assert_allclose(texts, unit(result.text_embeds)[plain], rtol=0, atol=1e-5)
    for tower in manifest.towers.values():
        assert [each.name for each in tower.inputs] in (["pixel_values"], ["input_ids"])
        lower_graph(bundle.path / tower.file)


def library_results(folder: Path, kind: str, length: int) -> tuple[Any, Any, Any]:
    """Pixels (None for patches), ids and what the model's own forward returns, as users of the library get them."""
    import torch

    model, images, words = library(folder)
    with quiet_libraries(), torch.no_grad():
        found = images(pictures(square=kind == "siglip2"), return_tensors="pt")
        encoded = words(list(NASTY), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        result = model(**found, **encoded)
    return None if kind == "siglip2" else found["pixel_values"].numpy(), encoded["input_ids"].numpy(), result


def unit(rows: Any) -> np.ndarray:
    return np.asarray(rows / rows.norm(dim=-1, keepdim=True))


def test_chinese_labels_and_templates_work_to_the_end(
    written: Written, exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    names = ["\u732b", "\u72d7", "\u7ea2\u8272\u7684\u9e1f"]
    (tmp_path / "labels.txt").write_text("\n".join(names), encoding="utf-8")
    picture = pictures(square=False)[1]
    picture.save(tmp_path / "picture.png")
    target = str(tmp_path / "cpu")
    assert main(["compile", str(exported("chinese_clip").path), "--target", "cpu", "-o", target]) == 0
    capsys.readouterr()
    given = ["--labels", str(tmp_path / "labels.txt"), "--templates", "chinese", "--format", "json"]
    assert main(["classify", target, str(tmp_path / "picture.png"), *given]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["results"]
    model, images, words = library(written("chinese_clip"))
    means = []
    with quiet_libraries(), torch.no_grad():
        for name in names:
            prompts = [template.replace("{}", name) for template in resolve_templates("chinese")]
            rows = unit(features(model.get_text_features(**words(prompts, padding=True, return_tensors="pt"))))
            means.append(rows.mean(axis=0) / np.linalg.norm(rows.mean(axis=0)))
        image = unit(features(model.get_image_features(**images(picture, return_tensors="pt"))))[0]
    logits = float(model.logit_scale.detach().exp()) * np.stack(means) @ image
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    found = {each["class_name"]: each["score"] for each in answer["predictions"]}
    assert found.keys() == set(names)
    np.testing.assert_allclose([found[name] for name in names], expected, atol=1e-4)


def features(result: Any) -> Any:
    return getattr(result, "pooler_output", result)


def test_identity_and_origin_are_those_of_other_directories(written: Written, exported: Exported) -> None:
    folder, manifest = written("chinese_clip"), exported("chinese_clip").manifest
    assert manifest.model.name == f"local-dir:{folder}"
    identity, files = identify_source(f"local-dir:{folder}", ExportOptions())
    assert (identity, files) == (manifest.model, manifest.export.source_files)
    assert {"config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"} <= files.keys()
    assert "transformers" in manifest.tool_versions
    assert is_current(exported("chinese_clip"), ExportOptions())
    assert manifest.export.notes == (
        "texts are cut to 52 tokens, with which such models are trained, though the text tower has room for 64",
    )
    rows = [record.batch_size for record in manifest.export.parity if record.tower == "image"]
    assert rows[-1] == 3, "the library's own forward was compared, too"


def cache_of(folder: Path, cache: Path, repo: str = "org/name") -> None:
    for path in folder.iterdir():
        put_into_cache(cache, repo, path.name, path.read_bytes())


def test_repository_in_the_cache_needs_no_network(written: Written, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache_of(written("clip"), cache)
    options = ExportOptions(offline=True, cache_dir=cache)
    source = resolve_source("hf:org/name", options)
    with record_downloads() as record:
        local = fetch_directory(source, options)
    assert (str(local.identity), local.format) == ("hf:org/name", "transformers")
    assert local.checkpoint is not None
    assert local.checkpoint.read_bytes() == (written("clip") / "model.safetensors").read_bytes()
    assert {"org/name::config.json", "org/name::model.safetensors", "org/name::tokenizer.json"} <= record.keys()
    assert identify_source("hf:org/name", options)[1] == {}


@pytest.mark.slow  # the export itself; the test above is of the same kind
def test_repository_is_exported_like_a_directory(written: Written, exported: Exported, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache_of(written("clip"), cache)
    options = ExportOptions(offline=True, cache_dir=cache)
    bundle = export_model("hf:org/name", tmp_path / "bundle", options)
    assert bundle.manifest.files == exported("clip").manifest.files
    assert str(bundle.manifest.model) == "hf:org/name"
    assert bundle.manifest.export.source_files == {}
    assert is_current(bundle, options)
    put_into_cache(cache, "org/name", "config.json", b"{}", commit="1" * 40)
    assert not is_current(bundle, options)


def test_missing_files_of_a_repository_are_named(written: Written, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    options = ExportOptions(offline=True, cache_dir=cache)
    for name, missing in (
        ("x.txt", "config.json"),
        ("config.json", "model.safetensors"),
        ("model.safetensors", "tokenizer.json"),
    ):
        path = written("clip") / name
        put_into_cache(cache, "org/name", name, path.read_bytes() if path.exists() else b"")
        with pytest.raises(DownloadError, match=rf"^'org/name/{missing}' is not in the cache .*--offline"):
            export_model("hf:org/name", tmp_path / "bundle", options)


@pytest.fixture
def copied(written: Written, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written("clip"), tmp_path / "model"))


def refusal(folder: Path, options: ExportOptions | None = None) -> str:
    with pytest.raises(ExportError) as caught:
        export_model(f"local-dir:{folder}", folder.with_name("refused"), options)
    assert "\n" not in str(caught.value)
    assert not folder.with_name("refused").exists()
    return str(caught.value)


def test_what_cannot_be_loaded_is_one_line(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    for changes, words in (
        (
            {"model_type": "jina_clip", "auto_map": {"AutoModel": "code.Model"}},
            "its own Python code ('auto_map'), which clipmlu never",
        ),
        ({"model_type": 3}, "describes no model"),
        ({"text_config": {**config["text_config"], "num_hidden_layers": 10**9}}, "num_hidden_layers 1000000000"),
        (
            {"vision_config": {**config["vision_config"], "image_size": 48, "patch_size": 12}},
            "images of 48x48, its preprocessing makes 32x32",
        ),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "are quantised"),
    ):
        edit_json(copied / "config.json", **changes)
        assert words in refusal(copied)
        (copied / "config.json").write_text(json.dumps(config))
    edit_json(copied / "preprocessor_config.json", resample=1)
    assert "'resample' is 1 (lanczos)" in refusal(copied)
    edit_json(copied / "preprocessor_config.json", resample=[3])
    assert "'resample' is [3]" in refusal(copied)
    edit_json(copied / "preprocessor_config.json", resample=3, image_std=10**400)
    assert "'image_std' has '1000" in refusal(copied)
    (copied / "preprocessor_config.json").unlink()
    assert "does not say how images are prepared" in refusal(copied)


def test_weights_are_checked(copied: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    file = copied / "model.safetensors"
    state = {name: value.clone() for name, value in load_file(file).items()}  # not mapped from the file, which changes
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "a Git LFS pointer" in refusal(copied)
    save_file(
        {name: value for name, value in state.items() if name != "visual_projection.weight"}, file, {"format": "pt"}
    )
    assert "1 weights of CLIPModel are missing in it ('visual_projection.weight')" in refusal(copied)
    file.unlink()
    assert "has no weights: expected 'model.safetensors'" in refusal(copied)
    torch.save(state, copied / "pytorch_model.bin")
    loaded, _ = load_model(copied)
    assert torch.equal(loaded.module.visual_projection.weight, state["visual_projection.weight"])


def test_a_length_that_is_no_number_is_refused(copied: Path) -> None:
    edit_json(copied / "tokenizer_config.json", model_max_length="x")
    assert "model_max_length is 'x'" in refusal(copied)


def test_weights_of_other_places_are_refused(copied: Path) -> None:
    """An index that leaves the directory, an adapter, another name in the configuration: the library would follow each."""
    whole = copied / "model.safetensors"
    (copied / "adapter_config.json").write_text('{"base_model_name_or_path": "other/model"}')
    assert "has an adapter ('adapter_config.json') beside the weights" in refusal(copied)
    (copied / "adapter_config.json").unlink()
    edit_json(copied / "config.json", transformers_weights="other.safetensors")
    assert "takes the weights from 'other.safetensors' ('transformers_weights')" in refusal(copied)
    edit_json(copied / "config.json", transformers_weights=None)
    outside = Path(whole.rename(copied.with_name("outside.safetensors")))
    index = copied / "model.safetensors.index.json"
    for name, words in (
        ("../outside.safetensors", "from '../outside.safetensors', which is not in its directory"),
        (str(outside), "which is not in its directory"),
        ("model-00001-of-00002.safetensors", "names 'model-00001-of-00002.safetensors', which is missing"),
    ):
        index.write_text(json.dumps({"weight_map": {"logit_scale": name}}))
        assert words in refusal(copied)
    index.write_text("[1")
    assert "it is no index of weights in several files" in refusal(copied)


def test_a_pickle_that_would_run_code_is_named(copied: Path) -> None:
    import torch

    (copied / "model.safetensors").unlink()
    torch.save({"logit_scale": torch.zeros(()), "more": Harmful()}, copied / "pytorch_model.bin")
    assert "beside or instead of weights it holds the Python object '" in refusal(copied)
    assert not Path(Harmful.made).exists()


class Harmful:
    made = "made-by-a-pickle"

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (self.made,)


def test_weights_are_not_rounded_to_the_configurations_type(copied: Path) -> None:
    from safetensors.torch import load_file

    stored = load_file(copied / "model.safetensors")["visual_projection.weight"]
    edit_json(copied / "config.json", dtype="float16", torch_dtype="float16")
    assert load_model(copied)[0].module.visual_projection.weight.tolist() == stored.tolist()


@pytest.mark.parametrize("difference", ["pixels", "results"])
def test_gate_against_the_library_finds_a_difference(difference: str, written: Written, exported: Exported) -> None:
    folder, bundle = written("chinese_clip"), exported("chinese_clip")
    loaded, _ = load_model(folder)
    tokenizer = Tokenizer.load(bundle.path / "tokenizer.json", bundle.manifest.tokenizer)
    error: type[Exception] = ParityError
    if difference == "pixels":
        spec = msgspec.structs.replace(loaded.preprocess, interpolation="bilinear")
        loaded, error = dataclasses.replace(loaded, preprocess=spec), ExportError
    else:
        loaded.module.wrapped_model.text_projection.weight.mul_(-1)
    with pytest.raises(error, match=r"differs from (that of transformers on an image|torch in 'text_embeds')"):
        check_against_library(bundle.manifest.towers, bundle.path, folder, loaded, tokenizer, ExportOptions())


def test_random_weights_need_no_tokenizer(copied: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copied / name).unlink()
    assert "There is no tokenizer in" in refusal(copied)
    options = ExportOptions(random_weights=True, seed=1)
    first, spec = load_model(copied, options)
    again, _ = load_model(copied, options)
    assert spec.stand_in
    assert (
        first.weights_digest
        == again.weights_digest
        != load_model(copied, ExportOptions(random_weights=True))[0].weights_digest
    )
