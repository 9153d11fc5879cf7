"""Evaluation of compiled bundles against float32 by the recall of pairs of images and texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from clipmlu.backends import SessionOptions
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.data.calibration_set import CalibrationSet
from clipmlu.data.images import DEFAULT_MAX_PIXELS, content_digest, load_image
from clipmlu.data.pairs.pairs import PairedImage
from clipmlu.data.pairs.reading import PairChoice
from clipmlu.data.skipping import log_skipped
from clipmlu.embed.encoder import Encoder
from clipmlu.embed.rows import FloatArray
from clipmlu.errors import InputError
from clipmlu.keys import make_key
from clipmlu.measure.retrieval.agreement import compare_rankings
from clipmlu.measure.retrieval.evaluate import Rankings, rank_embeddings
from clipmlu.measure.retrieval.pairs import RetrievalPairs, embed_captions, embed_images, merge_images, require_same
from clipmlu.measure.retrieval.ranks import IntArray
from clipmlu.steps import StartStep, Step, no_steps
from clipmlu.tune.figures import Figures, ReferenceFigures, compile_reference
from clipmlu.tune.trial import RecallFigures, SearchOptions


@dataclasses.dataclass(frozen=True)
class _Embedded:
    """Embeddings of the images and of the texts, float32, shapes (N, D) and (T, D)."""

    images: FloatArray
    texts: FloatArray


class RetrievalEvaluator:
    """Held-out pairs with the float32 embeddings; see ``Evaluator``.

    The drop is that of recall@1 in the direction that loses more, and so is its bound. The images are those of the pairs that the
    calibration does not use, in random order.
    """

    def __init__(
        self,
        exported: ExportedBundle,
        calibration: CalibrationSet,
        choice: PairChoice,
        search: SearchOptions,
        on_step: StartStep = no_steps,
    ) -> None:
        self._exported = exported
        self._step = on_step
        found = choice.open()
        self.name, self.split = found.name, found.split
        self._max_pixels = found.max_pixels
        order = np.random.default_rng(calibration.record.seed + 1).permutation(len(found.images))
        with on_step("selecting held-out images", total=min(search.wanted_samples, len(order)), unit="images") as step:
            images, digests = self._select(
                [found.images[index] for index in order], frozenset(calibration.images), search.wanted_samples, step
            )
        if len(set(digests)) < 2:
            raise InputError(
                f"'{self.name}' has no two images with texts beside the {len(calibration.images)} of the calibration. Give more pairs, or "
                "others."
            )
        self._pairs, _kept = merge_images(images, digests)
        self._reference = _Embedded(np.empty((0, 0), np.float32), np.empty((0, 0), np.float32))

    def __len__(self) -> int:
        return len(self._pairs.images)

    @property
    def digests(self) -> tuple[str, ...]:
        """Content digests of the images, in order."""
        return self._pairs.digests

    @property
    def independent(self) -> int:
        """Number of groups of images and texts that no pair connects."""
        return int(self._pairs.groups()[0].max()) + 1

    def key(self) -> Mapping[str, str]:
        """Return the digests of the images, the texts and the pairs, in order."""
        matches = self._pairs.matches
        return make_key(
            images=self._pairs.digests,
            texts=self._pairs.texts,
            pairs=(matches.queries.tolist(), matches.candidates.tolist()),
        )

    def evaluate_reference(self, folder: Path) -> ReferenceFigures:
        """Run the float32 model on the images and texts."""
        with Encoder(compile_reference(self._exported, folder, self._step)) as encoder:
            self._reference = self._embed(encoder, self._pairs)
        return ReferenceFigures(recall=_recall(self._rank(self._reference, self._pairs)))

    def evaluate(self, bundle: CompiledBundle, options: SessionOptions, images: int, max_drop: float | None) -> Figures:
        """Evaluate a bundle; see ``Evaluator``. It never stops early: a part of the pairs is another, easier search."""
        pairs, of_texts = first_images(self._pairs, images)
        with Encoder(bundle, options) as encoder:
            found = self._embed(encoder, pairs)
        expected = _Embedded(self._reference.images[: len(pairs.images)], self._reference.texts[of_texts])
        measured, reference = self._rank(found, pairs), self._rank(expected, pairs)
        groups = pairs.groups()
        directions = [
            compare_rankings(measured.image_to_text, reference.image_to_text, groups[0], len(pairs.texts)),
            compare_rankings(measured.text_to_image, reference.text_to_image, groups[1], len(pairs.images)),
        ]
        cosines = [_cosines(found.images, expected.images), _cosines(found.texts, expected.texts)]
        return Figures(
            images=len(pairs.images),
            recall=_recall(measured),
            drop=max(each.recall_drop for each in directions),
            drop_bound=max(each.recall_drop_bound for each in directions),
            agreement=min(each.top1_agreement for each in directions),
            embedding_error=float(1.0 - np.mean([each.mean() for each in cosines])),
        )

    def _select(
        self, images: list[PairedImage], taken: frozenset[str], wanted: int, step: Step
    ) -> tuple[list[PairedImage], list[str]]:
        """Readable images that are not taken, and their digests."""
        chosen: list[PairedImage] = []
        digests: list[str] = []
        for image in images:
            if len(chosen) == wanted:
                break
            try:
                decoded = load_image(image.load(), max_pixels=self._max_pixels or DEFAULT_MAX_PIXELS, name=image.name)
            except InputError as error:
                log_skipped(str(error))
                continue
            digest = content_digest(decoded)
            if digest not in taken:
                chosen.append(image)
                digests.append(digest)
                step.advance()
        return chosen, digests

    def _embed(self, encoder: Encoder, pairs: RetrievalPairs) -> _Embedded:
        with self._step("embedding images", total=len(pairs.images), unit="images") as step:
            images = embed_images(encoder, pairs.images, max_pixels=self._max_pixels, on_images=step.advance)
        require_same(images, pairs)
        with self._step("embedding texts", total=len(pairs.texts), unit="texts") as step:
            texts, _truncated = embed_captions(encoder, pairs.texts, step)
        return _Embedded(images.rows, texts)

    def _rank(self, embedded: _Embedded, pairs: RetrievalPairs) -> Rankings:
        return rank_embeddings(embedded.images, embedded.texts, pairs.matches, keep=1, on_step=self._step)


def first_images(pairs: RetrievalPairs, count: int) -> tuple[RetrievalPairs, IntArray]:
    """Return the pairs of the first images, and the positions of their texts among those of all."""
    kept = pairs.matches.queries < count
    of_texts, candidates = np.unique(pairs.matches.candidates[kept], return_inverse=True)
    matches = type(pairs.matches).of_pairs(pairs.matches.queries[kept], candidates.astype(np.int64))
    part = dataclasses.replace(
        pairs,
        images=pairs.images[:count],
        digests=pairs.digests[:count],
        texts=tuple(pairs.texts[text] for text in of_texts.tolist()),
        matches=matches,
    )
    return part, of_texts


def _recall(rankings: Rankings) -> RecallFigures:
    return RecallFigures(
        image_to_text=float(np.mean(rankings.image_to_text.ranks == 1)),
        text_to_image=float(np.mean(rankings.text_to_image.ranks == 1)),
    )


def _cosines(first: FloatArray, second: FloatArray) -> FloatArray:
    products: FloatArray = (first.astype(np.float64) * second).sum(axis=1)
    return products
