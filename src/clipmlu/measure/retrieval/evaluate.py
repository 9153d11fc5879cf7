"""Retrieval of texts by images and of images by texts with a compiled bundle."""

from __future__ import annotations

import dataclasses
import time

import msgspec
import numpy as np

from clipmlu.arguments import check_argument, check_fields
from clipmlu.backends.provenance import provenance_of
from clipmlu.data.pairs.pairs import PairSet
from clipmlu.embed.encoder import Encoder
from clipmlu.embed.rows import FloatArray
from clipmlu.measure.retrieval.agreement import TOP, compare_rankings
from clipmlu.measure.retrieval.intervals import recall_interval
from clipmlu.measure.retrieval.pairs import (
    EmbeddedImages,
    RetrievalPairs,
    check_any_readable,
    embed_captions,
    embed_images,
    merge_images,
    require_same,
)
from clipmlu.measure.retrieval.ranks import IntArray, Matches, Ranking, rank_matches
from clipmlu.measure.retrieval.report import DirectionReport, Recall, ReferenceAgreement, RetrievalReport
from clipmlu.measure.samples import Overlap, choose_images
from clipmlu.specs import NaturalInt, PositiveInt
from clipmlu.steps import StartStep, no_steps

CUTS = (1, 5, 10)
"""Numbers of results of the reported recalls."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrievalOptions:
    """Options of a retrieval evaluation; validated on construction.

    Attributes:
        samples: number of images, with all their texts; None for all.
        shuffle: select images randomly; otherwise the first ones.
        seed: random seed of the selection.
        batch_size: images per batch; None for the bundle's own.
        allow_overlap: also evaluate images that the bundle was calibrated with; the report counts them.
        workers: threads that decode and preprocess; None for all CPUs.
    """

    samples: PositiveInt | None = None
    shuffle: bool = False
    seed: NaturalInt = 0
    batch_size: PositiveInt | None = None
    allow_overlap: bool = False
    workers: PositiveInt | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class Rankings:
    """The rankings of both directions.

    Attributes:
        image_to_text: images as queries.
        text_to_image: texts as queries.
        truncated: number of texts that are longer than the context.
    """

    image_to_text: Ranking
    text_to_image: Ranking
    truncated: int = 0


def evaluate_retrieval(
    encoder: Encoder,
    pairs: PairSet,
    options: RetrievalOptions | None = None,
    *,
    reference: Encoder | None = None,
    on_step: StartStep = no_steps,
) -> RetrievalReport:
    """Measure how well images find their texts, and texts their images.

    Args:
        encoder: the model, with two towers.
        pairs: images with texts.
        options: options of the evaluation; defaults if None.
        reference: another model, to whose rankings these are compared.
        on_step: shows images, texts and queries; see ``clipmlu.steps``.

    Raises:
        OptionError: more samples than there are images.
        BundleError: a bundle has the joint layout.
        ShapeError: the bundle does not support the batch size.
        InputError: no image can be read, or fewer than two different ones or two different texts are left.
        OverlapError: a bundle was calibrated with an image, and ``allow_overlap`` is False.
    """
    options = check_argument(options, RetrievalOptions | None, "options") or RetrievalOptions()
    for each in (encoder, *([] if reference is None else [reference])):
        each.runnable.tower("image"), each.runnable.tower("text")
    batch_size = encoder.check_batch_size(options.batch_size)
    chosen = [
        pairs.images[index]
        for index in choose_images(pairs, options.samples, shuffle=options.shuffle, seed=options.seed)
    ]
    overlap = _overlap(encoder, reference, options)
    start = time.perf_counter()
    with on_step("embedding images", total=len(chosen), unit="images") as step:
        images = embed_images(
            encoder,
            chosen,
            max_pixels=pairs.max_pixels,
            batch_size=batch_size,
            workers=options.workers,
            overlap=overlap,
            on_images=step.advance,
        )
    check_any_readable(pairs, images)
    merged, kept = merge_images([chosen[position] for position in images.positions], images.digests)
    rankings = rank_pairs(encoder, merged, images.rows[kept], keep=0 if reference is None else TOP, on_step=on_step)
    report = _report(encoder, pairs, merged, rankings, images)
    if reference is not None:
        report = msgspec.structs.replace(
            report, reference=_agreement(reference, pairs, merged, rankings, options, on_step)
        )
    return msgspec.structs.replace(
        report,
        batch_size=batch_size,
        elapsed_s=time.perf_counter() - start,
        calibration_overlap=len(overlap.found) if options.allow_overlap else None,
    )


def _overlap(encoder: Encoder, reference: Encoder | None, options: RetrievalOptions) -> Overlap:
    bundles = [encoder.bundle, *([] if reference is None else [reference.bundle])]
    seen = {image for bundle in bundles for image in bundle.calibration_data().images}
    owner = f"bundle '{encoder.bundle.path}'" + ("" if reference is None else " or its reference")
    return Overlap(seen, owner, "Evaluate others", allowed=options.allow_overlap)


def rank_pairs(
    encoder: Encoder, pairs: RetrievalPairs, images: FloatArray, *, keep: int = 0, on_step: StartStep = no_steps
) -> Rankings:
    """Embed the texts and rank both directions.

    Args:
        encoder: the model.
        pairs: the images and texts.
        images: embeddings of the images, float32, shape (N, D).
        keep: number of best candidates of each query to keep, at most all.
        on_step: see ``evaluate_retrieval``.
    """
    with on_step("embedding texts", total=len(pairs.texts), unit="texts") as step:
        texts, truncated = embed_captions(encoder, pairs.texts, step)
    found = rank_embeddings(images, texts, pairs.matches, keep=keep, on_step=on_step)
    return dataclasses.replace(found, truncated=truncated)


def rank_embeddings(
    images: FloatArray, texts: FloatArray, matches: Matches, *, keep: int = 0, on_step: StartStep = no_steps
) -> Rankings:
    """Rank both directions.

    Args:
        images: embeddings of the images, float32, shape (N, D), unit L2 norm per row.
        texts: embeddings of the texts, float32, shape (T, D).
        matches: the pairs, with the images as queries.
        keep: number of best candidates of each query to keep, at most all.
        on_step: see ``evaluate_retrieval``.
    """
    with on_step("ranking", total=len(images) + len(texts), unit="queries") as step:
        found = [
            rank_matches(queries, candidates, pairs, keep=min(keep, len(candidates)), on_queries=step.advance)
            for queries, candidates, pairs in ((images, texts, matches), (texts, images, matches.swapped()))
        ]
    return Rankings(found[0], found[1])


def _report(
    encoder: Encoder, pairs: PairSet, merged: RetrievalPairs, rankings: Rankings, images: EmbeddedImages
) -> RetrievalReport:
    of_images, of_texts = merged.groups()
    return RetrievalReport(
        provenance=provenance_of(encoder.bundle, encoder.devices),
        pairs=pairs.name,
        data_digest=merged.digest,
        split=pairs.split,
        batch_size=0,
        images=len(merged.images),
        texts=len(merged.texts),
        image_to_text=describe_ranks(rankings.image_to_text.ranks, of_images, len(merged.texts)),
        text_to_image=describe_ranks(rankings.text_to_image.ranks, of_texts, len(merged.images)),
        groups=int(of_images.max()) + 1,
        skipped=images.skipped,
        duplicate_images=merged.duplicates,
        images_without_texts=len(pairs.images_without_texts),
        empty_texts=pairs.empty_texts,
        repeated_pairs=pairs.repeated_pairs,
        shared_texts=merged.shared_texts,
        truncated_texts=rankings.truncated,
        elapsed_s=0.0,
        calibration_prompts=len(set(merged.texts).intersection(encoder.bundle.calibration_data().prompts)),
        fast_preprocess=encoder.preprocessor.fast,
    )


def describe_ranks(ranks: IntArray, groups: IntArray, candidates: int) -> DirectionReport:
    """Return recalls, mean and median of the ranks of one direction.

    Args:
        ranks: rank of the best match of each query, from 1, shape (Q,).
        groups: see ``recall_interval``.
        candidates: number of candidates, at least 2.
    """
    recalls = []
    for k in CUTS:
        if k < candidates:
            hits = ranks <= k
            interval = recall_interval(hits, groups)
            recalls.append(Recall(k=k, hits=int(hits.sum()), value=float(hits.mean()), interval=interval))
    return DirectionReport(
        queries=len(ranks),
        candidates=candidates,
        recalls=tuple(recalls),
        mean_rank=float(ranks.mean()),
        median_rank=float(np.median(ranks)),
    )


def _agreement(
    reference: Encoder,
    pairs: PairSet,
    merged: RetrievalPairs,
    rankings: Rankings,
    options: RetrievalOptions,
    on_step: StartStep,
) -> ReferenceAgreement:
    with on_step("embedding images with the reference", total=len(merged.images), unit="images") as step:
        images = embed_images(
            reference, merged.images, max_pixels=pairs.max_pixels, workers=options.workers, on_images=step.advance
        )
    require_same(images, merged, fast=reference.preprocessor.fast)
    theirs = rank_pairs(reference, merged, images.rows, keep=TOP, on_step=on_step)
    of_images, of_texts = merged.groups()
    return ReferenceAgreement(
        provenance=provenance_of(reference.bundle, reference.devices),
        image_to_text=compare_rankings(rankings.image_to_text, theirs.image_to_text, of_images, len(merged.texts)),
        text_to_image=compare_rankings(rankings.text_to_image, theirs.text_to_image, of_texts, len(merged.images)),
    )
