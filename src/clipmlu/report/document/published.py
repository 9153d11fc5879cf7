"""Accuracies that others published, with their sources; shown beside a result of the same weights and the same images only."""

from __future__ import annotations

import csv
import dataclasses
from importlib import resources

from clipmlu.measure.accuracy.report import AccuracyReport

_ALL_IMAGES = {("cifar10", "test"): 10_000, ("cifar100", "test"): 10_000}
"""Data sets of the published figures, with the number of their images: a part of them is another question."""
_OPEN_CLIP_FILE = "published_open_clip.csv"
_OPEN_CLIP = (
    "github.com/mlfoundations/open_clip, docs/openclip_classification_results.csv at commit 05e7db4, read on 2026-11-28; float32, "
    "with the prompts of LAION's CLIP_benchmark for this data set"
)
_VENDOR = (
    "github.com/Cambricon/magicmind_cloud, clip_pytorch/README at commit dc085c1 of 2023-11-28, read on 2026-11-27; batch 32, on a "
    "card, with the one template 'a photo of a {}' and the data set's raw class names"
)
_VENDOR_MODELS = ("ViT-B-32", "ViT-B-32-quickgelu")
_VENDOR_ROWS = (
    ("force_float32", 0.6171, 0.8678),
    ("force_float16", 0.6167, 0.8671),
    ("qint8_mixed_float16", 0.5378, 0.8058),
)
"""Mode, top-1 and top-5 of the vendor's CLIP sample; docs/magicmind-api.md, section 6.4."""


@dataclasses.dataclass(frozen=True)
class Published:
    """A published accuracy.

    Attributes:
        who: who published it.
        arithmetic: in which arithmetic it was measured.
        top1: top-1, 0..1.
        top5: top-5, or None.
        source: where it stands, and how it was measured.
    """

    who: str
    arithmetic: str
    top1: float
    top5: float | None
    source: str


def published_figures(report: AccuracyReport) -> list[Published]:
    """Return what others published about the weights and the images of a report; empty unless both are the same."""
    data = (report.dataset, report.split)
    if _ALL_IMAGES.get(data) != report.images + len(report.skipped):
        return []
    model = report.provenance.model
    if model.random_seed is not None:
        return []
    content = (resources.files("clipmlu") / "assets" / _OPEN_CLIP_FILE).read_text(encoding="ascii")
    found = [
        Published("open_clip", "float32", float(row[report.dataset]), None, _OPEN_CLIP)
        for row in csv.DictReader(content.splitlines())
        if (row["name"], row["pretrained"]) == (model.name, model.pretrained)
    ]
    if report.dataset == "cifar100" and model.pretrained == "openai" and model.name in _VENDOR_MODELS:
        found += [Published("the vendor's CLIP sample", *row, _VENDOR) for row in _VENDOR_ROWS]
    return found
