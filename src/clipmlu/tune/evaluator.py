"""Evaluation of compiled bundles against float32 by the accuracy on held-out images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from clipmlu.backends import SessionOptions
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.classify.building import build_classifier
from clipmlu.classify.classifier import ZeroShotClassifier
from clipmlu.compile.plan import CompileOptions
from clipmlu.data.calibration import CalibrationOptions, open_train_split, readable_images
from clipmlu.data.calibration_set import CalibrationSet
from clipmlu.data.datasets import Dataset, spread_over_classes
from clipmlu.data.images import DEFAULT_MAX_PIXELS, content_digest
from clipmlu.data.prompts import resolve_templates
from clipmlu.embed.encoder import Encoder
from clipmlu.embed.rows import FloatArray
from clipmlu.errors import InputError
from clipmlu.file_names import text_from_name
from clipmlu.keys import make_key
from clipmlu.measure.ranking import IntArray, embed_dataset, rank_images
from clipmlu.measure.statistics import count_changes, drop_interval
from clipmlu.steps import StartStep, Step, no_steps
from clipmlu.tune.figures import EARLY_SHARE, Figures, ReferenceFigures, compile_reference
from clipmlu.tune.trial import SearchOptions

_Z_STOP = 3.0


class AccuracyEvaluator:
    """Held-out evaluation set with the float32 predictions; see ``Evaluator``.

    Attributes:
        dataset: dataset of the images.
        indices: positions of the images in the dataset.
        digests: content digests of the images.
        labels: int64, shape (N,).
    """

    def __init__(
        self,
        exported: ExportedBundle,
        calibration: CalibrationSet,
        options: CompileOptions,
        search: SearchOptions,
        on_step: StartStep = no_steps,
    ) -> None:
        self._search = search
        self._step = on_step
        self.dataset = _open_held_out(calibration, options, search)
        if not self.dataset.class_names:
            raise InputError(
                f"'{calibration.record.dataset}' has images without classes, on which accuracy cannot be measured. "
                "Give --calib a dataset, or a folder with one sub-folder per class."
            )
        with on_step(
            "selecting held-out images", total=min(search.wanted_samples, len(self.dataset)), unit="images"
        ) as step:
            self.indices, self.digests = _held_out(self.dataset, calibration, search.wanted_samples, step)
        if not self.indices:
            raise InputError(
                f"'{calibration.record.dataset}' has no images left beside the {len(calibration.images)} of the calibration. "
                "Use fewer --calib-samples."
            )
        self.labels = np.array([self.dataset.label(index) for index in self.indices], np.int64)
        self._exported = exported
        self._embeddings: FloatArray = np.empty((0, 0), np.float32)
        self._predicted: IntArray = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return self.dataset.name

    @property
    def split(self) -> str:
        """Split of the dataset."""
        return self.dataset.split

    @property
    def independent(self) -> int:
        """Number of images."""
        return len(self)

    def key(self) -> Mapping[str, str]:
        """Return the digests of the images, the labels, the class names and the templates."""
        return make_key(
            images=self.digests,
            labels=self.labels.tolist(),
            class_names=tuple(self.dataset.class_names),
            templates=resolve_templates(self._search.templates),
        )

    def evaluate_reference(self, folder: Path) -> ReferenceFigures:
        """Run the float32 model on the images."""
        with Encoder(compile_reference(self._exported, folder, self._step)) as encoder:
            self._embeddings, self._predicted = self._predict(self._classifier(encoder), 0, len(self))
        return ReferenceFigures(top1=float(np.mean(self._predicted == self.labels)))

    def evaluate(self, bundle: CompiledBundle, options: SessionOptions, images: int, max_drop: float | None) -> Figures:
        """Evaluate a bundle; see ``Evaluator``."""
        part = max(1, images // EARLY_SHARE) if max_drop is not None else images
        with Encoder(bundle, options) as encoder:
            classifier = self._classifier(encoder)
            embeddings, predicted = self._predict(classifier, 0, part)
            figures = self._figures(embeddings, predicted)
            lower, _ = drop_interval(*self._changes(predicted), part, z=_Z_STOP)
            if part < images and (max_drop is None or lower <= max_drop):
                rest = self._predict(classifier, part, images)
                figures = self._figures(np.concatenate([embeddings, rest[0]]), np.concatenate([predicted, rest[1]]))
        return figures

    def _classifier(self, encoder: Encoder) -> ZeroShotClassifier:
        return build_classifier(
            encoder, self.dataset.class_names, self._search.templates, cache=False, on_step=self._step
        )

    def _predict(self, classifier: ZeroShotClassifier, start: int, stop: int) -> tuple[FloatArray, IntArray]:
        """Embeddings, shape (N, D), and best classes, shape (N,), of the images from ``start`` to ``stop``."""
        indices = self.indices[start:stop]
        with self._step("evaluating", total=len(indices), unit="images") as step:
            rows = embed_dataset(
                classifier.scorer, self.dataset, indices, skip_unreadable=False, on_images=step.advance
            ).rows
        predicted = rank_images(classifier, rows, 1).predicted
        if self._exported.manifest.layout == "joint":  # the directions of the mean-centred logits
            rows = rows - rows.mean(axis=1, keepdims=True)
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return rows, predicted

    def _changes(self, predicted: IntArray) -> tuple[int, int]:
        """Numbers of images that only float32, and that only this bundle, classifies correctly."""
        count = len(predicted)
        labels = self.labels[:count]
        return count_changes(self._predicted[:count] == labels, predicted == labels)

    def _figures(self, embeddings: FloatArray, predicted: IntArray) -> Figures:
        count = len(predicted)
        lost, won = self._changes(predicted)
        cosines = (embeddings.astype(np.float64) * self._embeddings[:count]).sum(axis=1)
        return Figures(
            images=count,
            top1=float(np.mean(predicted == self.labels[:count])),
            drop=(lost - won) / count,
            drop_bound=drop_interval(lost, won, count)[1],
            agreement=float(np.mean(predicted == self._predicted[:count])),
            embedding_error=float(1.0 - cosines.mean()),
        )


def _open_held_out(calibration: CalibrationSet, options: CompileOptions, search: SearchOptions) -> Dataset:
    given = options.calibration if isinstance(options.calibration, CalibrationOptions) else None
    # A generated dataset must be large enough for calibration and evaluation.
    wanted = 2 * (calibration.record.samples + search.wanted_samples)
    return open_train_split(
        CalibrationOptions(
            dataset=text_from_name(calibration.record.dataset),
            samples=wanted,
            seed=calibration.record.seed,
            data_dir=None if given is None else given.data_dir,
            download=given is None or given.download,
            class_names=None if given is None else given.class_names,
            folder_names=given is not None and given.folder_names,
            max_pixels=DEFAULT_MAX_PIXELS if given is None else given.max_pixels,
        )
    )


def _held_out(
    dataset: Dataset, calibration: CalibrationSet, samples: int, step: Step
) -> tuple[list[int], tuple[str, ...]]:
    """Positions and digests of images, spread over the classes, without duplicates and calibration images."""
    taken = set(calibration.images)
    indices, digests = [], []
    # Calibration used the first images in the order of its own seed.
    order = spread_over_classes(dataset, calibration.record.seed + 1)
    for index, image in readable_images(dataset, order):
        digest = content_digest(image)
        if digest not in taken:
            taken.add(digest)
            indices.append(index)
            digests.append(digest)
            step.advance()
        if len(indices) == samples:
            break
    return indices, tuple(digests)
