"""Making classifiers: class embeddings are computed from prompts, or read from the cache or a classifier file."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, chain
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np
from msgspec import UNSET

from clipmlu.backends import runtime_versions
from clipmlu.backends.base import OPTIONS_WITHOUT_EFFECT
from clipmlu.bundle.manifest import TOKENIZER_NAME, current_tool_versions
from clipmlu.classify.classifier import DetachedClassifier, ZeroShotClassifier, note_classes, tower_classifier
from clipmlu.classify.classifier_file import ClassifierHeader, read_classifier
from clipmlu.classify.open_set import OpenSet, resolve_open_set
from clipmlu.classify.scoring import PREFER_TOWERS
from clipmlu.data.class_prompts import ClassLabels, prompts_of, resolve_labels, resolve_prompts
from clipmlu.data.prompts import Templates
from clipmlu.data.textfile import Note
from clipmlu.errors import BundleError, InputError, OutputError
from clipmlu.host import cache_dir
from clipmlu.keys import options_digest, value_digest
from clipmlu.steps import StartStep, no_steps

if TYPE_CHECKING:
    from clipmlu.embed.encoder import Encoder
    from clipmlu.embed.rows import FloatArray

EmbedClasses = Callable[[Sequence[str], Sequence[str], Mapping[str, Sequence[str]]], "FloatArray"]
"""Returns an embedding for each class, given its name, the templates, and own prompts; see ``embed_classes``."""
_PROMPTS_AT_ONCE = 1024
_SMALLEST_MEAN = 1e-6  # norm of a mean of unit vectors; smaller ones are rounding errors
_log = logging.getLogger(__name__)


def build_classifier(
    encoder: Encoder,
    class_names: ClassLabels,
    templates: Templates | None,
    *,
    cache: bool,
    none_label: str | None = None,
    background: str | Sequence[str] | None = None,
    reject_below: float | None = None,
    on_step: StartStep = no_steps,
    embed: EmbedClasses | None = None,
    on_note: Note = _log.warning,
) -> ZeroShotClassifier:
    """Compute class embeddings from prompts, or read them from the cache; see ``Model.classifier``.

    ``embed`` computes them instead of ``embed_classes``; ``on_note`` is called with advice about the labels.
    """
    labels = resolve_labels(class_names, on_note=on_note)
    names = tuple(labels)
    open_set = resolve_open_set(
        names,
        none_label=none_label,
        background=background,
        reject_below=reject_below,
        logit_bias=encoder.runnable.facts.logit_bias,
    )
    resolved = resolve_prompts(
        labels, templates, background=open_set is not None and bool(open_set.background), on_note=on_note
    )
    header = _header(encoder, names, resolved, open_set)
    if isinstance(labels, dict):
        header = header.with_prompts(labels)
    note_classes(header, on_note)
    return _build(encoder, header, cache=cache, on_step=on_step, embed=embed)


def _build(
    encoder: Encoder, header: ClassifierHeader, *, cache: bool, on_step: StartStep, embed: EmbedClasses | None
) -> ZeroShotClassifier:
    if encoder.runnable.facts.layout == "joint":
        return DetachedClassifier(header=header, class_embeddings=None).attach(encoder)
    path = _cache_path(encoder, header) if cache else None
    if path is not None and os.path.isfile(path):
        try:
            return load_classifier(encoder, path)
        except InputError as error:
            _log.warning("Cached class embeddings are made again: %s", error)
    if embed is None:
        embed = functools.partial(embed_classes, encoder, on_step=on_step)
    embeddings = embed(header.all_names, header.templates, header.own_prompts)
    digest = hashlib.sha256(embeddings.tobytes()).hexdigest()
    classifier = tower_classifier(encoder, msgspec.structs.replace(header, embeddings_sha256=digest), embeddings)
    if path is not None:
        try:
            classifier.save(path, overwrite=True)
        except OutputError as error:
            _log.warning("Class embeddings are not cached: %s", error)
    return classifier


class EmbedsTexts(Protocol):
    """Embeds texts, as an encoder does."""

    def embed_texts(self, texts: list[str], *, on_rows: Callable[[int], object]) -> FloatArray:
        """Return float32 embeddings, shape (N, D); see ``Encoder.embed_texts``."""


def embed_classes(
    encoder: EmbedsTexts,
    class_names: Sequence[str],
    templates: Sequence[str],
    own: Mapping[str, Sequence[str]] = MappingProxyType({}),
    *,
    on_step: StartStep = no_steps,
) -> FloatArray:
    """Return one embedding per class: the normalised mean of the unit-norm embeddings of its prompts.

    A repeated name is encoded once. Source: A. Radford et al., "Learning Transferable Visual Models From Natural
    Language Supervision", 2021, section 3.1.4 (ensembling over the embedding space).

    Args:
        encoder: encoder with the text tower, or what embeds texts in its place.
        class_names: one per class.
        templates: templates of the prompts.
        own: prompts of classes that need no templates.
        on_step: called for the step that embeds the prompts.

    Returns:
        float32, shape (C, D), unit L2 norm per row.
    """
    classes_at_once = max(1, _PROMPTS_AT_ONCE // max(len(templates), *map(len, own.values()), 1))
    row_of = {name: row for row, name in enumerate(dict.fromkeys(class_names))}
    different = list(row_of)
    rows = []
    total = sum(len(own.get(name, templates)) for name in different)
    with on_step("embedding prompts", total=total, unit="prompts") as step:
        for start in range(0, len(different), classes_at_once):
            names = different[start : start + classes_at_once]
            prompts = [prompts_of(name, templates, own) for name in names]
            embeddings = encoder.embed_texts(list(chain.from_iterable(prompts)), on_rows=step.advance)
            ends = list(accumulate(map(len, prompts)))
            rows += [part.mean(axis=0) for part in np.split(embeddings, ends[:-1])]
    means = np.stack(rows)
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    if norms.min() < _SMALLEST_MEAN:
        name = different[int(norms.argmin())]
        raise InputError(
            f"The prompts of class '{name}' have embeddings that cancel out. Give it fewer or other templates."
        )
    unit: FloatArray = means / norms
    return unit if len(different) == len(class_names) else unit[[row_of[name] for name in class_names]]


def load_classifier(encoder: Encoder, path: Path) -> ZeroShotClassifier:
    """Read a classifier file; see ``Encoder.load_classifier``."""
    if encoder.runnable.facts.layout == "joint":
        raise BundleError(
            f"Bundle '{encoder.runnable.path}' has the layout 'joint', whose graph takes texts, not the class embeddings of a "
            f"classifier file. Give class names, or {PREFER_TOWERS}."
        )
    header, embeddings = read_classifier(path)
    if header.text_id != encoder.runnable.facts.text_id:
        raise InputError(
            f"Classifier file '{path}' was made with the text tower of '{header.model}'; bundle '{encoder.runnable.path}' holds "
            f"'{encoder.runnable.facts.model}' with a different text tower. Make the classifier again from this bundle."
        )
    if embeddings.shape[1] != encoder.embedding_dim:
        raise InputError(
            f"Classifier file '{path}' is damaged: its embeddings have {embeddings.shape[1]} elements; bundle "
            f"'{encoder.runnable.path}' has {encoder.embedding_dim}. Make the classifier again from this bundle."
        )
    note_classes(header, _log.warning)
    return tower_classifier(encoder, header, embeddings)


def _header(
    encoder: Encoder, names: tuple[str, ...], templates: tuple[str, ...], open_set: OpenSet | None
) -> ClassifierHeader:
    """Return the header of a classifier, without the digest of its embeddings."""
    facts = encoder.runnable.facts
    header = ClassifierHeader(
        text_id=facts.text_id,
        model=facts.model,
        class_names=names,
        templates=templates,
        logit_scale=facts.logit_scale,
        logit_bias=facts.logit_bias,
        emulated=encoder.runnable.compilation.emulated,
        embeddings_sha256="",
        tool_versions=current_tool_versions(),
    )
    return header if open_set is None else header.with_open_set(open_set)


def _cache_path(encoder: Encoder, header: ClassifierHeader) -> Path | None:
    """Return the cache file of class embeddings, or None for graphs whose digests are not known.

    The file name has a digest of all inputs of the embeddings: the graph, its runtime here, names and prompts.
    """
    runnable = encoder.runnable
    if not runnable.files:
        return None
    facts, compilation = runnable.facts, runnable.compilation
    placement = compilation.placement("text")
    tower = runnable.towers.get("text")
    graph = "" if tower is None else tower.file
    decides = [
        facts.text_id,
        # Weights may be in files beside the graph.
        {
            name: file.sha256
            for name, file in runnable.files.items()
            if name in (graph, TOKENIZER_NAME) or name.startswith(f"{graph}.")
        },
        placement,
        compilation.batch_size,
        compilation.max_batch,
        facts.tool_versions,
        runtime_versions((placement.backend,), encoder.options),
        options_digest(encoder.options, without=OPTIONS_WITHOUT_EFFECT),
        # These are stored in the file.
        facts.model,
        facts.logit_scale,
        facts.logit_bias,
        header.class_names,
        header.templates,
        *([] if header.open_set is UNSET else [header.open_set]),
        *([{"prompts": header.own_prompts}] if header.own_prompts else []),
    ]
    return cache_dir() / "classifiers" / f"{value_digest(decides)}.npz"
