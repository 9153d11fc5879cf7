"""Whole towers: lowered, they give the canonical graph's embeddings, for every architecture of the export list."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from clipmlu.bundle import ExportedBundle
from clipmlu.compile.lowering import check_int32_range, lower_tower, remaining_shape_nodes
from clipmlu.data.tokenizer import write_stand_in_tokenizer
from clipmlu.export.exporter import ExportOptions, export_model
from clipmlu.parity import (
    FLOAT32_MIN_COSINE,
    FLOAT32_TOLERANCE,
    allowed_logit_difference,
    measure_difference,
)
from clipmlu.specs import MODULE_KEY

pytestmark = pytest.mark.torch

VOCAB = 300
CONTEXT = 12

_VIT = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
_TEXT = {
    "context_length": CONTEXT,
    "vocab_size": VOCAB,
    "width": 32,
    "heads": 2,
    "layers": 2,
    "hf_tokenizer_name": "own",
}
_SIGLIP_TEXT = {
    **_TEXT,
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
    "act_kwargs": {"approximate": "tanh"},
}
_HF_TEXT = {
    "hf_model_name": "text-tower",
    "hf_tokenizer_name": "own",
    "context_length": CONTEXT,
    "hf_proj_type": "mlp",
    "hf_pooler_type": "mean_pooler",
}
_RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64, "patch_size": None}

CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {"vision_cfg": _VIT, "text_cfg": _TEXT},
    "quick-gelu": {"quick_gelu": True, "vision_cfg": _VIT, "text_cfg": _TEXT},
    "siglip": {
        "custom_text": True,
        "init_logit_bias": -10.0,
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": _SIGLIP_TEXT,
        "embed_dim": 64,
    },
    "resnet": {"vision_cfg": _RESNET, "text_cfg": _TEXT},
    "convnext": {
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear"},
        "text_cfg": _TEXT,
    },
    "hf-text": {"vision_cfg": _VIT, "text_cfg": _HF_TEXT},
}

_BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}

FULL_MODELS = [
    ("ViT-B-32-quickgelu", "towers"),
    ("ViT-B-16", "towers"),
    ("ViT-L-14", "towers"),
    ("RN50", "towers"),
    ("convnext_base", "towers"),
    ("ViT-B-16-SigLIP", "towers"),
    ("ViT-B-32", "joint"),
]


@pytest.fixture(scope="module")
def export_tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int, str], ExportedBundle]:
    """``export_tiny(kind, opset, layout)``: a tiny model of ``CONFIGS`` with random weights, exported once."""
    for name in ("torch", "open_clip", "onnxscript"):
        pytest.importorskip(name, reason=f"needs the export extra ({name})", exc_type=ImportError)
    done: dict[tuple[str, int, str], ExportedBundle] = {}

    def export(kind: str, opset: int, layout: Any) -> ExportedBundle:
        if (kind, opset, layout) not in done:
            folder = tmp_path_factory.mktemp(kind)
            options = ExportOptions(random_weights=True, opset=opset, layout=layout)
            done[kind, opset, layout] = export_model(
                f"local-dir:{_write_config(folder, kind)}", folder / "bundle", options
            )
        return done[kind, opset, layout]

    return export


def _write_config(folder: Path, kind: str) -> Path:
    model = folder / "model"
    model.mkdir()
    content = {
        "model_cfg": {"embed_dim": 24, **CONFIGS[kind]},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3},
    }
    (model / "open_clip_config.json").write_text(json.dumps(content))
    write_stand_in_tokenizer(model / "tokenizer.json", VOCAB)
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "sep_token": "<eot>"}
    (model / "tokenizer_config.json").write_text(json.dumps(special))
    if kind == "hf-text":
        (model / "text-tower").mkdir()
        (model / "text-tower" / "config.json").write_text(json.dumps(_BERT))
    return model


def _session(path: Path, *, optimize: bool = True) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _draw(session: onnxruntime.InferenceSession, sizes: dict[str, int], vocab: int) -> dict[str, npt.NDArray[Any]]:
    """Normal pixels; tokens above 0, the padding of a text tower."""
    generator = np.random.default_rng(sum(sizes.values()))
    feeds: dict[str, npt.NDArray[Any]] = {}
    for value in session.get_inputs():
        shape = [sizes[size] if isinstance(size, str) else size for size in value.shape]
        if "float" in value.type:
            feeds[value.name] = generator.standard_normal(shape).astype(np.float32)
        else:
            feeds[value.name] = generator.integers(1, vocab, shape)
            feeds[value.name][::2, shape[1] // 2 :] = 0
    return feeds


def _check_parity(source: Path, lowered: Path, bundle: ExportedBundle, sizes: dict[str, int], vocab: int) -> None:
    reference = _session(source)
    feeds = _draw(reference, sizes, vocab)
    expected = reference.run(None, feeds)
    joint = len(expected) == 2
    allowed = allowed_logit_difference(FLOAT32_TOLERANCE, bundle.manifest.logit_scale) if joint else FLOAT32_TOLERANCE
    del reference
    for want, found in zip(expected, _session(lowered, optimize=False).run(None, feeds), strict=True):
        difference = measure_difference(want, found)
        assert difference.within(allowed, None if joint else FLOAT32_MIN_COSINE), difference


def _batches(tower: str) -> Iterator[tuple[dict[str, int] | None, dict[str, int]]]:
    """(what is made static, sizes to run with)."""
    if tower == "joint":
        for images, texts in ((1, 1), (2, 3), (5, 2)):
            yield None, {"image_batch": images, "text_batch": texts}
        yield {"text_batch": 4}, {"image_batch": 2, "text_batch": 4}
        yield {"image_batch": 3, "text_batch": 4}, {"image_batch": 3, "text_batch": 4}
    else:
        for size in (1, 2, 5):
            yield None, {"batch": size}
        yield {"batch": 3}, {"batch": 3}


def _check_lowered(model: ir.Model, source: Path, *, static: bool) -> None:
    operators = {node.op_type for node in model.graph}
    assert remaining_shape_nodes(model) == ()
    assert not operators & {"Shape", "Expand", "Range", "ConstantOfShape", "GatherND", "Tile", "IsNaN"}
    check_int32_range(model)
    names = [node.name for node in model.graph]
    assert len(set(names)) == len(names)
    origins = {node.name: node.metadata_props[MODULE_KEY] for node in ir.load(source).graph}
    for node in model.graph:
        if "/zeros/" in node.name:
            continue
        origin = node.name if node.name in origins else node.name.rsplit("/", 1)[0]
        assert origins[origin] == node.metadata_props[MODULE_KEY]
    work = {name for name in origins if name.rsplit("/", 1)[-1].split("_")[0] in ("MatMul", "Gemm", "Conv", "Softmax")}
    assert work <= set(names), "an operator that a precision can be set for lost its name"
    pixels = [value for value in model.graph.inputs if value.name == "pixel_values"]
    assert all([node.op_type for node in value.consumers()] == ["Conv"] for value in pixels)
    assert static == all(value.shape.is_static() for node in model.graph for value in node.outputs)


@pytest.mark.parametrize(
    ("kind", "opset", "layout"),
    [(kind, 20, layout) for kind in CONFIGS for layout in ("towers", "joint")]
    + [(kind, 18, "towers") for kind in ("vit", "siglip", "hf-text")],
)
def test_tiny_architectures(
    export_tiny: Callable[[str, int, str], ExportedBundle], tmp_path: Path, kind: str, opset: int, layout: str
) -> None:
    bundle = export_tiny(kind, opset, layout)
    for name, tower in bundle.manifest.towers.items():
        source, lowered = bundle.path / tower.file, tmp_path / tower.file
        for batch, sizes in _batches(name):
            model = lower_tower(source, lowered, batch=batch)
            proto = onnx.load(lowered)
            onnx.checker.check_model(proto, full_check=True)
            onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
            _check_lowered(model, source, static=batch == sizes)
            _check_parity(source, lowered, bundle, sizes, VOCAB)


def test_a_tower_is_written_the_same_twice(
    export_tiny: Callable[[str, int, str], ExportedBundle], tmp_path: Path
) -> None:
    source = export_tiny("vit", 20, "towers").path / "text.onnx"
    for name in ("a.onnx", "b.onnx"):
        lower_tower(source, tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.full_size
@pytest.mark.parametrize(("name", "layout"), FULL_MODELS)
def test_export_list(tmp_path: Path, name: str, layout: Any) -> None:
    """Random weights, full size; minutes and gigabytes each."""
    bundle = export_model(name, tmp_path / "bundle", ExportOptions(random_weights=True, layout=layout))
    for kind, tower in bundle.manifest.towers.items():
        source, lowered = bundle.path / tower.file, tmp_path / tower.file
        for batch, sizes in list(_batches(kind))[1:]:
            if max(sizes.values()) > 4:
                continue
            model = lower_tower(source, lowered, batch=batch)
            _check_lowered(model, source, static=batch == sizes)
            del model
            _check_parity(source, lowered, bundle, sizes, 30_000)
