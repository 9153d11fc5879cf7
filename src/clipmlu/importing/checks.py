"""The gate of an import: the bundle's graphs against the given files, in ONNX Runtime, before publication."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from clipmlu.bundle.manifest import ParityRecord, Tower
from clipmlu.data.tokenizer import Tokenizer
from clipmlu.errors import ExportError
from clipmlu.export.checks import draw_images, open_tower, refuse_differences, run_graph
from clipmlu.export.tokenizers import TokenSampler
from clipmlu.graph.parity import (
    MIN_COSINE,
    allowed_embedding_difference,
    allowed_logit_difference,
    compare_outputs,
)
from clipmlu.importing.options import ImportOptions
from clipmlu.importing.reference import Array, Feeds, Reference
from clipmlu.importing.split import Affine, Split
from clipmlu.specs import Precision, PreprocessSpec, TowerName

BATCH_SIZES = (1, 3, 5)
"""Batch sizes of the comparison, beside the graph's own: 1 and primes reveal a batch that is still fixed."""

_MOST_VALUES = 1 << 28  # of one batch: 1 GiB of pixels
_MOST_ROWS = 1 << 14
_HALF_SHARE = 0.005  # of the logit scale: what 16-bit floats may change in a logit


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """The allowed differences.

    Attributes:
        difference: of an element of an embedding.
        cosine: smallest cosine similarity of two embeddings of the same input.
        logit: of a logit.
    """

    difference: float
    cosine: float
    logit: float


def bounds_for(options: ImportOptions, logit_scale: float, *, halves: bool) -> Bounds:
    """Return the allowed differences; files with 16-bit floats compute inexactly themselves."""
    difference, cosine = options.max_abs_diff, options.min_cosine
    logit = allowed_logit_difference(difference, logit_scale)
    if halves:
        least = MIN_COSINE[Precision.FORCE_FLOAT16]
        cosine = min(cosine, least)
        difference = max(difference, allowed_embedding_difference(Precision.FORCE_FLOAT16, least))
        logit = max(logit, _HALF_SHARE * max(logit_scale, 1.0))
    return Bounds(difference=difference, cosine=cosine, logit=logit)


def draw_feeds(reference: Reference, preprocess: PreprocessSpec, tokenizer: Tokenizer, *, pad_ends: bool) -> Feeds:
    """Return images of noise and realistic texts, always the same ones: enough for all batch sizes of the comparison.

    Raises:
        ExportError: the graph's own batch is too large for the memory.
    """
    images, texts = (max(*BATCH_SIZES, own or 1) for own in (reference.images, reference.texts))
    height, width, length = preprocess.height, preprocess.width, tokenizer.spec.context_length
    for count, size, what in (
        (images, 3 * height * width, f"images of {height} x {width}"),
        (texts, length, f"texts of {length} token ids"),
    ):
        if count * size > _MOST_VALUES or count > _MOST_ROWS:
            raise ExportError(
                f"The given file has a fixed batch of {count:,} {what}, which is too large for a comparison. "
                "Export it again with a dynamic batch, or a smaller one."
            )
    generator = np.random.default_rng(0)
    tokens = TokenSampler(tokenizer).draw(texts, generator)
    mask = text_mask(tokens, tokenizer.spec.pad_id, pad_ends=pad_ends)
    return Feeds(draw_images(images, preprocess, generator), tokens, mask)


def text_mask(tokens: Array, pad_id: int, *, pad_ends: bool) -> Array:
    """Return which tokens are no padding.

    Args:
        tokens: int64 (M, L).
        pad_id: id of padding.
        pad_ends: the first padding of a row ends its text and belongs to it.
    """
    is_pad = tokens == pad_id
    return np.asarray(is_pad.cumsum(axis=1) - is_pad == 0 if pad_ends else ~is_pad)


def unit_rows(rows: Array) -> Array:
    """Return rows of unit norm, computed in float64; a row of zeros stays."""
    wide = rows.astype(np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), 1e-12))


def run_tower(tower: Tower, folder: Path, array: Array, label: str) -> Array:
    """Run a written tower on any number of rows.

    Raises:
        ExportError: it does not run.
    """
    with open_tower(tower, folder, label) as session:
        return run_graph(session, {tower.inputs[0].name: array}, label)[tower.outputs[0].name]


def check_tower(
    name: TowerName, tower: Tower, folder: Path, reference: Reference, result: str, feeds: Feeds, bounds: Bounds
) -> list[ParityRecord]:
    """Compare a tower of the bundle with the given file, at several batch sizes.

    Args:
        name: name of the tower.
        tower: the tower as written.
        folder: folder of its file.
        reference: the given file.
        result: its tensor of embeddings.
        feeds: rows for the largest batch.
        bounds: the allowed differences.

    Raises:
        ParityError: a difference is out of bounds.
        ExportError: a graph does not run.
    """
    records: list[ParityRecord] = []
    own = reference.images if name == "image" else reference.texts
    expected = unit_rows(reference.embed(result, name, feeds))
    for size in sorted({*BATCH_SIZES, own or 1}):
        array = (feeds.pixels if name == "image" else feeds.tokens)[:size]
        found = run_tower(tower, folder, array, f"The imported {name} graph")
        record = compare_outputs(
            name, tower.outputs[0].name, expected[:size], found, batch_size=size, allowed=bounds.difference
        )
        reason = _batch_reason(own, alone=bool(records))
        refuse_differences([record], bounds.cosine, made="imported", reference="the given file", reason=reason)
        records.append(record)
    return records


def _batch_reason(own: int | None, *, alone: bool) -> str:
    """Return what the batch has to do with a difference; ``alone``: a single row was within the bounds."""
    if own is not None:
        return f" The given file has a fixed batch of {own}; export it again with a dynamic one."
    if alone:
        return " The rows of a batch influence each other: each was compared with what the file gives for it alone."
    return ""


def check_logits(split: Split, reference: Reference, feeds: Feeds, embeddings: Sequence[Array], bounds: Bounds) -> None:
    """Check that the logits of a fused graph are the scaled cosine similarities of the towers' embeddings.

    Args:
        split: the parts of the graph.
        reference: the given file.
        feeds: images and texts, in the file's own numbers.
        embeddings: the bundle's unit-norm embeddings of these images, and of these texts.
        bounds: the allowed differences.

    Raises:
        ExportError: they are something else.
    """
    results = reference.run(feeds)
    cosines = embeddings[0].astype(np.float64) @ embeddings[1].astype(np.float64).T
    for name, values in split.logits.items():
        expected = _logits(cosines, values)
        found = results[name]
        worst = float(np.abs(found - expected).max()) if found.shape == expected.shape else np.inf
        if not worst <= bounds.logit:
            raise ExportError(
                f"The output '{name}' of the fused graph is not {values.scale:g} times the cosine similarity"
                f"{f' plus {values.bias:g}' if values.bias else ''}: they differ by {worst:.3g} (allowed {bounds.logit:.3g}), "
                "so the towers would not classify as it does."
            )


def _logits(cosines: Array, values: Affine) -> Array:
    logits = values.scale * cosines + values.bias
    return logits.T if values.turned else logits
