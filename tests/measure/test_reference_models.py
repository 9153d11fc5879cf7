"""The packaged models, measured by clipmlu and, independently, with open_clip's own model, transform and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.data.datasets import Dataset, open_dataset
from clipmlu.measure.accuracy.evaluate import EvalOptions, evaluate
from clipmlu.measure.accuracy.tally import ImageResult
from clipmlu.model import load
from conftest import REPOSITORY

pytestmark = pytest.mark.torch

DEMO = REPOSITORY / "src" / "clipmlu" / "assets" / "demo"
CIFAR = REPOSITORY / "tests" / "models" / "cifar100"


def _compiled(exported: ExportedBundle, folder: Path) -> CompiledBundle:
    return compile_bundle(exported, folder / "cpu", CompileOptions(target="cpu"))


def _reference_top5(directory: Path, dataset: Dataset, count: int, templates: tuple[str, ...]) -> np.ndarray[Any, Any]:
    """Best five classes of the first images, with open_clip alone; shape (count, 5)."""
    import open_clip
    import torch

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{directory}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{directory}")
    model.eval()
    with torch.no_grad():
        rows = []
        for name in dataset.class_names:
            embeddings = model.encode_text(tokenizer([template.format(name) for template in templates]), normalize=True)
            mean = embeddings.mean(dim=0)
            rows.append(mean / mean.norm())
        classes = torch.stack(rows)
        best = []
        for start in range(0, count, 100):
            images = torch.stack([transform(dataset.image(index)) for index in range(start, min(start + 100, count))])
            logits = model.logit_scale.exp() * model.encode_image(images, normalize=True) @ classes.T
            best.append(logits.topk(5, dim=1).indices)
    return torch.cat(best).numpy()


def _check(
    directory: Path, compiled: CompiledBundle, dataset: Dataset, count: int, templates: tuple[str, ...]
) -> float:
    results: list[ImageResult] = []
    with load(compiled.path) as encoder:
        report = evaluate(encoder, dataset, EvalOptions(samples=count, templates=templates), on_result=results.append)
    reference = _reference_top5(directory, dataset, count, templates)
    labels = np.array([dataset.label(index) for index in range(count)])
    assert report.images == count
    assert [result.ranked[0] for result in results] == reference[:, 0].tolist()
    assert report.top1 == (reference[:, 0] == labels).mean()
    assert report.top5 == (reference == labels[:, None]).any(axis=1).mean()
    return report.top1


@pytest.mark.parametrize("count", [96, pytest.param(960, marks=pytest.mark.slow)])
def test_demo_model_reaches_its_promise_on_pairs_never_seen(
    demo_bundle: ExportedBundle, tmp_path: Path, count: int
) -> None:
    dataset = open_dataset("demo", size=960)
    assert _check(DEMO, _compiled(demo_bundle, tmp_path), dataset, count, ("a photo of a {}.",)) >= 0.90


@pytest.mark.slow
@pytest.mark.data
def test_cifar_model_equals_open_clip_image_for_image(libraries: None, tmp_path: Path, data_dir: Path) -> None:
    from clipmlu.export.exporter import export_model

    exported = export_model(f"local-dir:{CIFAR}", tmp_path / "exported")
    dataset = open_dataset("cifar100", data_dir=data_dir)
    templates = ("a photo of a {}.", "a blurry photo of a {}.")
    top1 = _check(CIFAR, _compiled(exported, tmp_path), dataset, 1001, templates)
    assert top1 >= 0.40
