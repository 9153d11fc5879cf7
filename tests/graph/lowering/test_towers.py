"""Whole towers: lowered, they give the canonical graph's embeddings, for every architecture of the export list."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from clipmlu.bundle.directory import ExportedBundle
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.export.exporter import ExportOptions, export_model
from clipmlu.graph.lowering import check_int32_range, lower_tower, remaining_shape_nodes
from clipmlu.graph.parity import (
    FLOAT32_MIN_COSINE,
    FLOAT32_TOLERANCE,
    allowed_logit_difference,
    measure_difference,
)
from clipmlu.specs import MODULE_KEY, MluBuild
from tiny_models import CONFIGS, VOCAB

pytestmark = pytest.mark.torch

SHARED = {
    *((kind, 20, "towers") for kind in CONFIGS),
    ("siglip", 20, "joint"),
}
"""(kind, opset, layout) that other tests need exported too; each of the rest costs one more export."""
STATIC = {("vit", "towers"), ("resnet", "towers"), ("siglip", "joint")}
"""Built with static batches too; the other towers differ from these in nothing that a batch touches."""
FULL_MODELS = [
    ("ViT-B-32-quickgelu", "towers"),
    ("ViT-B-16", "towers"),
    ("ViT-L-14", "towers"),
    ("RN50", "towers"),
    ("convnext_base", "towers"),
    ("ViT-B-16-SigLIP", "towers"),
    ("ViT-B-32", "joint"),
]


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


def _check_parity(
    reference: onnxruntime.InferenceSession,
    lowered: onnxruntime.InferenceSession,
    bundle: ExportedBundle,
    sizes: dict[str, int],
    vocab: int,
) -> None:
    feeds = _draw(reference, sizes, vocab)
    expected = reference.run(None, feeds)
    joint = len(expected) == 2
    allowed = allowed_logit_difference(FLOAT32_TOLERANCE, bundle.manifest.logit_scale) if joint else FLOAT32_TOLERANCE
    for want, found in zip(expected, lowered.run(None, feeds), strict=True):
        difference = measure_difference(want, found)
        assert difference.max_abs_diff <= allowed, difference
        assert joint or difference.min_cosine >= FLOAT32_MIN_COSINE, difference


def _batches(tower: str) -> Iterator[tuple[dict[str, int] | None, list[dict[str, int]]]]:
    """(what is made static, all sizes to run with)."""
    if tower == "joint":
        yield None, [{"image_batch": images, "text_batch": texts} for images, texts in ((1, 1), (2, 3), (5, 2))]
        yield {"text_batch": 4}, [{"image_batch": 2, "text_batch": 4}]
        yield {"image_batch": 3, "text_batch": 4}, [{"image_batch": 3, "text_batch": 4}]
    else:
        yield None, [{"batch": size} for size in (1, 2, 5)]
        yield {"batch": 3}, [{"batch": 3}]


def _is_quick(kind: str, layout: str, shape: str) -> bool:
    return (kind, 20, layout) in SHARED and (shape == "dynamic" or (kind, layout) in STATIC)


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
    [
        pytest.param(*case, marks=() if case in SHARED else pytest.mark.slow)
        for case in (
            *((kind, 20, layout) for kind in CONFIGS for layout in ("towers", "joint")),
            *((kind, 18, "towers") for kind in ("vit", "siglip", "hf-text")),
        )
    ],
)
def test_tiny_architectures(
    tiny_bundle: Callable[..., ExportedBundle], tmp_path: Path, kind: str, opset: int, layout: str
) -> None:
    bundle = tiny_bundle(kind, opset, layout)
    for name, tower in bundle.manifest.towers.items():
        source, lowered = bundle.path / tower.file, tmp_path / tower.file
        reference = _session(source)
        for batch, runs in _batches(name):
            model = lower_tower(source, lowered, batch=batch)
            proto = onnx.load(lowered)
            onnx.checker.check_model(proto, full_check=True)
            onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
            _check_lowered(model, source, static=batch == runs[0])
            session = _session(lowered, optimize=False)
            for sizes in runs:
                _check_parity(reference, session, bundle, sizes, VOCAB)


@pytest.mark.parametrize(
    ("kind", "layout", "shape"),
    [
        pytest.param(kind, layout, shape, marks=() if _is_quick(kind, layout, shape) else pytest.mark.slow)
        for kind in CONFIGS
        for layout in ("towers", "joint")
        for shape in ("dynamic", "static")
    ],
)
def test_tiny_architectures_build_and_run_on_the_emulated_card(
    tiny_bundle: Callable[..., ExportedBundle], tmp_path: Path, kind: str, layout: str, shape: str
) -> None:
    """The strict emulator takes what public samples use; compiling compares with the canonical graph, 1e-5 and 0.99999."""
    options = CompileOptions(
        target="emulated-mlu", batch_size=3, dynamic_shape=shape == "dynamic", mlu=MluBuild(text_rows=4)
    )
    compiled = compile_bundle(tiny_bundle(kind, 20, layout), tmp_path / "card", options)
    records = compiled.compilation.parity
    assert len(records) == 2, "two towers, or two outputs of the joint graph"
    assert all(record.max_abs_diff <= record.allowed_abs_diff for record in records)
    if layout == "towers":
        assert max(record.max_abs_diff for record in records) < 2e-6


def test_a_tower_is_written_the_same_twice(tiny_bundle: Callable[..., ExportedBundle], tmp_path: Path) -> None:
    source = tiny_bundle("vit").path / "text.onnx"
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
        for batch, runs in _batches(kind):
            model = lower_tower(source, lowered, batch=batch)
            _check_lowered(model, source, static=batch == runs[0])
            del model
            sessions = _session(source), _session(lowered, optimize=False)
            _check_parity(*sessions, bundle, runs[len(runs) // 2], 30_000)
