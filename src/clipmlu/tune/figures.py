"""What an evaluation of a candidate measures, and what a search needs of an evaluator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from clipmlu.backends import SessionOptions
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.specs import Spec
from clipmlu.steps import StartStep
from clipmlu.tune.trial import RecallFigures

EARLY_SHARE = 4  # a trial with too large a drop stops after 1/4 of the images
REFERENCE_NAME = "reference"  # the float32 bundle in the folder of a search


class Figures(Spec, frozen=True, kw_only=True):
    """Measurements of a bundle on the first ``images`` images; see ``Trial``."""

    images: int
    top1: float | None = None
    recall: RecallFigures | None = None
    drop: float
    drop_bound: float
    agreement: float
    embedding_error: float


class ReferenceFigures(Spec, frozen=True, kw_only=True):
    """Measurements of float32; see ``SearchReport``."""

    top1: float | None = None
    recall: RecallFigures | None = None


def compile_reference(exported: ExportedBundle, folder: Path, on_step: StartStep) -> CompiledBundle:
    """Compile the float32 bundle of a search, with which candidates are compared, into its folder."""
    options = CompileOptions(target="cpu", check=False, overwrite=True)
    return compile_bundle(exported, folder / REFERENCE_NAME, options, on_step=on_step)


class Evaluator(Protocol):
    """Evaluates compiled bundles against float32 on held-out images."""

    @property
    def name(self) -> str:
        """Name of the data."""

    @property
    def split(self) -> str:
        """Split of the data."""

    @property
    def digests(self) -> tuple[str, ...]:
        """Content digests of the images, in order."""

    @property
    def independent(self) -> int:
        """Number of independent observations, of which a difference can be concluded; at most the number of images."""

    def __len__(self) -> int:
        """Return the number of images."""

    def key(self) -> Mapping[str, str]:
        """Return the digests of all that decides the figures, besides the bundle; see ``resume``."""

    def evaluate_reference(self, folder: Path) -> ReferenceFigures:
        """Run the float32 model, which is compiled into a folder."""

    def evaluate(self, bundle: CompiledBundle, options: SessionOptions, images: int, max_drop: float | None) -> Figures:
        """Evaluate a bundle.

        Args:
            bundle: the compiled bundle.
            options: options of its session.
            images: number of images to evaluate, from the first one.
            max_drop: it may stop after 1/``EARLY_SHARE`` of them if the drop is significantly larger than this; None: it
                never stops.
        """
