"""Zero-shot classification: class embeddings, computed once from prompts, are compared with images."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, chain
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, overload

import msgspec
import numpy as np
from msgspec import UNSET

from clipmlu.arguments import check_argument
from clipmlu.backends import runtime_versions
from clipmlu.backends.base import OPTIONS_WITHOUT_EFFECT
from clipmlu.bundle.manifest import TOKENIZER_NAME, current_tool_versions
from clipmlu.classify.classifier_file import ClassifierHeader, encode_classifier, read_classifier
from clipmlu.classify.open_set import OpenSet, outcome_ranks, outcome_scores, resolve_open_set
from clipmlu.classify.results import Prediction, Predictions
from clipmlu.classify.scoring import PREFER_TOWERS, JointScorer, Scorer, TowerScorer, check_rows
from clipmlu.data.class_names import repeated_names
from clipmlu.data.class_prompts import ClassLabels, prompts_of, resolve_labels, resolve_prompts
from clipmlu.data.prompts import Templates
from clipmlu.data.thumbnails import ImageReference
from clipmlu.data.url.options import UrlOptions
from clipmlu.display import Displayed, Summary, as_plain
from clipmlu.embed.images import run_batches
from clipmlu.embed.items import OnError, items_from_images
from clipmlu.errors import BundleError, InputError, OptionError, OutputError
from clipmlu.files.publish import write_file
from clipmlu.host import cache_dir
from clipmlu.keys import options_digest, value_digest
from clipmlu.specs import PositiveInt
from clipmlu.steps import StartStep, no_steps

if TYPE_CHECKING:
    import numpy.typing as npt

    from clipmlu.data.image_objects import SupportsArray
    from clipmlu.data.images import ImageSource, OneImage
    from clipmlu.embed.encoder import Encoder, FloatArray

DEFAULT_TOP_K = 5
_PROMPTS_AT_ONCE = 1024
_SMALLEST_MEAN = 1e-6  # norm of a mean of unit vectors; smaller ones are rounding errors
_CLASSES_SORTED_WHOLE = 512
_log = logging.getLogger(__name__)


class ZeroShotClassifier(Displayed):
    """Class names and a scorer for images: the image tower with class embeddings, or the fused graph.

    It can be used while its encoder is open; see ``Encoder``.

    Attributes:
        class_names: one per class.
        templates: templates of the prompts; none if all classes have prompts of their own.
        prompts: own prompts of each class; empty if templates make them.
        scorer: computes rows for images, the input of ``logits``.
        open_set: rules for images of none of the classes, or None; see ``Model.classifier``.
    """

    def __init__(self, header: ClassifierHeader, scorer: Scorer) -> None:
        self._header = header
        self.class_names = header.class_names
        self.templates = header.templates
        self.prompts = header.own_prompts
        self.scorer = scorer
        self.open_set = None if header.open_set is UNSET else header.open_set
        _warn_about(self.class_names, shares=header.logit_bias is None and self.open_set is None)

    def __repr__(self) -> str:
        shown = ", ".join(f"'{name}'" for name in self.class_names[:4])
        more = f", ... {len(self.class_names)} classes" if len(self.class_names) > 4 else ""
        texts = "own prompts" if self.prompts else f"{len(self.templates)} template(s)"
        return f"ZeroShotClassifier([{shown}{more}], {texts}, model='{self._header.model}')"

    def __reduce__(self) -> tuple[Any, ...]:
        self.encoder.require_open()
        return ZeroShotClassifier, (self._header, self.scorer)

    def summary(self) -> Summary:
        """Return the facts that people see."""
        names = ", ".join(self.class_names[:4]) + (", ..." if len(self.class_names) > 4 else "")
        rules = self.open_set
        open_set = {}
        if rules is not None:
            limit = "" if rules.reject_below is None else f", below {rules.reject_below:g}"
            open_set = {"open set": f"'{rules.none_label}', {len(rules.background)} background classes{limit}"}
        facts = {"model": str(self._header.model), "classes": f"{len(self.class_names):,} ({names})", **open_set}
        return Summary(facts, self._header.emulated or self.encoder.runnable.compilation.emulated)

    def to_dict(self) -> dict[str, Any]:
        """Return the model, the classes, the templates and the rules of an open set as a dict for JSON."""
        header: dict[str, Any] = as_plain(self._header)
        return {name: header.get(name) for name in ("model", "class_names", "templates", "open_set", "emulated")}

    def records(self) -> list[dict[str, Any]]:
        """Return one row for each class."""
        return [{"class_name": name} for name in self.class_names]

    def detach(self) -> DetachedClassifier:
        """Return the classifier without its encoder, for instance for other processes, which attach one of their own."""
        self.encoder.require_open()
        joint = isinstance(self.scorer, JointScorer)
        return DetachedClassifier(header=self._header, class_embeddings=None if joint else self.scorer.class_embeddings)

    @property
    def encoder(self) -> Encoder:
        """The encoder that runs the images."""
        return self.scorer.encoder

    @property
    def class_embeddings(self) -> FloatArray:
        """Class embeddings, float32, shape (C, D), unit L2 norm per row.

        Raises:
            BundleError: the bundle has the joint layout, whose graph returns no embeddings.
        """
        embeddings = self.scorer.class_embeddings
        return embeddings if self.open_set is None else embeddings[: len(self.class_names)]

    @property
    def outcomes(self) -> tuple[str, ...]:
        """What an image can be: the class names and, with an open set, the none label as the last one.

        The index of a result is a position in it, so that of the none label is the number of classes.
        """
        return self.class_names if self.open_set is None else (*self.class_names, self.open_set.none_label)

    def most_ranked(self, top_k: int) -> int:
        """Return the number of ranked outcomes per image, at most ``top_k``.

        With background classes the none label is one of them for every image; without, for rejected images only, which then
        lose the last class.
        """
        return min(top_k, len(self.outcomes) if self._header.background else len(self.class_names))

    def rejecting(self, *, none_label: str | None = None, reject_below: float | None = None) -> ZeroShotClassifier:
        """Return the classifier with another threshold or none label, and the background classes that it has.

        Args:
            none_label: see ``Model.classifier``; None keeps it.
            reject_below: see ``Model.classifier``; None keeps it.

        Raises:
            OptionError: as for ``Model.classifier``.
        """
        self.encoder.require_open()
        if none_label is None and reject_below is None:
            return self
        old = self.open_set
        rules = resolve_open_set(
            self.class_names,
            none_label=old.none_label if none_label is None and old is not None else none_label,
            background=self._header.background,
            reject_below=old.reject_below if reject_below is None and old is not None else reject_below,
            logit_bias=self._header.logit_bias,
        )
        assert rules is not None
        return ZeroShotClassifier(self._header.with_open_set(rules), self.scorer)

    @overload
    def predict(  # type: ignore[overload-overlap] # texts and bytes are iterable, but one image
        self,
        images: OneImage,
        *,
        top_k: int = DEFAULT_TOP_K,
        batch_size: int | None = None,
        workers: int | None = None,
        on_error: OnError = "raise",
        allow_urls: bool | UrlOptions = False,
    ) -> Prediction: ...

    @overload
    def predict(  # type: ignore[overload-overlap] # one image or several
        self,
        images: npt.NDArray[Any] | SupportsArray,
        *,
        top_k: int = DEFAULT_TOP_K,
        batch_size: int | None = None,
        workers: int | None = None,
        on_error: OnError = "raise",
        allow_urls: bool | UrlOptions = False,
    ) -> Prediction | Predictions: ...

    @overload
    def predict(
        self,
        images: Iterable[ImageSource],
        *,
        top_k: int = DEFAULT_TOP_K,
        batch_size: int | None = None,
        workers: int | None = None,
        on_error: OnError = "raise",
        allow_urls: bool | UrlOptions = False,
    ) -> Predictions: ...

    def predict(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        top_k: int = DEFAULT_TOP_K,
        batch_size: int | None = None,
        workers: int | None = None,
        on_error: OnError = "raise",
        allow_urls: bool | UrlOptions = False,
    ) -> Prediction | Predictions:
        """Classify one image or many.

        Args:
            images: one image: path, URL, Pillow image, bytes of an image file, open binary file, or uint8 pixels as a
                NumPy array of shape (H, W, 3) or a torch tensor of shape (3, H, W) or (H, W, 3). Or many: a list, a
                generator, which is consumed lazily, a column of pandas or polars, an array or tensor with an axis more.
            top_k: classes per image; at most all classes are returned.
            batch_size: images per batch; None for the bundle's own.
            workers: threads that read and prepare images; None for one per CPU that this process may use.
            on_error: what an image that cannot be read does: ``"raise"`` ends the call, ``"skip"`` gives a Prediction
                with ``error`` and without classes at its place.
            allow_urls: fetch texts that are http or https URLs: True for the default limits, or other limits.

        Returns:
            A Prediction for one image, Predictions in the same order for many.

        Raises:
            InputError: an image cannot be read, and ``on_error`` is ``"raise"``.
            OptionError: ``top_k``, ``batch_size`` or ``workers`` is not an integer of 1 or more.
        """
        self.encoder.require_open()
        check_argument(top_k, PositiveInt, "top k")
        check_argument(on_error, OnError, "on_error")
        items, single = items_from_images(images, allow_urls=allow_urls)
        predictions = Predictions()
        for batch in run_batches(self.scorer, items, batch_size=batch_size, workers=workers):
            if batch.errors and on_error == "raise":
                raise next(iter(batch.errors.values()))
            sources = [item.id for item in batch.computed()]
            read = iter(self.predictions_from_rows(batch.rows, sources, top_k=top_k))
            for position, item in enumerate(batch.items):
                error = batch.errors.get(position)
                found = next(read) if error is None else Prediction.failed(item.id, str(error))
                predictions.append(
                    dataclasses.replace(found, image=ImageReference.of_result(item.shown, len(predictions)))
                )
        return predictions[0] if single else predictions

    __call__ = predict

    def predictions_from_rows(
        self, rows: FloatArray, sources: Sequence[str], *, top_k: int = DEFAULT_TOP_K
    ) -> Predictions:
        """Rank the classes for images.

        Args:
            rows: as for ``logits``.
            sources: names of the N images.
            top_k: classes per image; at most all classes are returned.

        Raises:
            ShapeError, InputError: as for ``logits``.
            OptionError: ``top_k`` is not an integer of 1 or more, or ``sources`` is not a list of N names.
        """
        self.encoder.require_open()
        check_argument(top_k, PositiveInt, "top k")
        check_argument(sources, Sequence[str], "sources")
        logits = self.logits(rows)
        if len(sources) != len(logits):
            raise OptionError(f"sources are {len(sources)} for {len(logits)} rows; expected one name for each row")
        ranked, best_scores = self._rank(logits, top_k)
        outcomes = self.outcomes
        return Predictions(
            Prediction(
                source,
                tuple(outcomes[index] for index in best),
                tuple(best),
                tuple(scores),
                emulated=self.encoder.runnable.compilation.emulated,
                rejected=best[0] == len(self.class_names),
            )
            for source, best, scores in zip(sources, ranked.tolist(), best_scores.tolist(), strict=True)
        )

    def rank_rows(self, rows: FloatArray, top_k: int) -> tuple[npt.NDArray[np.intp], FloatArray]:
        """Rank the classes for images, as ``predictions_from_rows`` does, in arrays.

        Args:
            rows: as for ``logits``.
            top_k: classes per image, K; at most all classes are returned.

        Returns:
            Indices of the best ``outcomes``, best first, and their probabilities; both of shape (N, ``most_ranked(top_k)``).

        Raises:
            ShapeError, InputError: as for ``logits``.
        """
        return self._rank(self.logits(rows), top_k)

    def _rank(self, logits: FloatArray, top_k: int) -> tuple[npt.NDArray[np.intp], FloatArray]:
        scores = self.scores(logits)
        ranks = logits if self.open_set is None else outcome_ranks(logits, scores, self.open_set)
        ranked = rank_classes(ranks, self.most_ranked(top_k))
        return ranked, np.take_along_axis(scores, ranked, axis=1)

    def logits(self, rows: FloatArray) -> FloatArray:
        """Return scaled similarities plus bias: float32, shape (N, C); those of background classes follow.

        Args:
            rows: rows of ``scorer`` for N images: embeddings, float32, shape (N, D), unit L2 norm per row; or logits
                for the joint layout.

        Raises:
            ShapeError: the rows have another shape or dtype.
            InputError: a row holds NaN or infinity.
        """
        self.encoder.require_open()
        logits = self.scorer.logits(rows)
        _check_finite(rows)
        return logits

    def scores(self, logits: FloatArray) -> FloatArray:
        """Return probabilities, shape (N, C): softmax over the classes, or sigmoids for models with a logit bias.

        With an open set the shape is (N, C + 1): background classes take part in the softmax, and the last column is the
        probability of the none label; see ``open_set.outcome_scores``.

        Raises:
            ShapeError: ``logits`` is not a float array of the shape that the method ``logits`` returns.
            InputError: ``logits`` holds NaN or infinity.
        """
        self.encoder.require_open()
        check_rows(logits, len(self._header.all_names), "logits")
        _check_finite(logits)
        scores = _sigmoid(logits) if self._header.logit_bias is not None else _softmax(logits)
        return scores if self.open_set is None else outcome_scores(scores, len(self.class_names))

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write a classifier file, which ``Encoder.load_classifier`` reads without the text tower.

        Args:
            path: the file; no suffix is added.
            overwrite: replace an existing file.

        Raises:
            BundleError: the bundle has the joint layout, whose graph takes texts.
            OutputExistsError: the file exists, and ``overwrite`` is False.
            OutputError: the file cannot be written.
        """
        check_argument(overwrite, bool, "overwrite")
        write_file(path, self.encode(), overwrite=overwrite)

    def encode(self) -> bytes:
        """Return the content of a classifier file; see ``save``.

        Raises:
            BundleError: as for ``save``.
        """
        self.encoder.require_open()
        return encode_classifier(self._header, self.scorer.class_embeddings)


def _sigmoid(logits: FloatArray) -> FloatArray:
    small = np.exp(-np.abs(logits))  # this form never computes the exponential of a large positive number
    return np.where(logits >= 0, 1 / (1 + small), small / (1 + small))


def _softmax(logits: FloatArray) -> FloatArray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores: FloatArray = exponentials / exponentials.sum(axis=1, keepdims=True)
    return scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetachedClassifier:
    """A classifier without its encoder: a value for other processes.

    Attributes:
        header: class names, templates and scale.
        class_embeddings: float32, shape (C, D), unit L2 norm per row, then those of background classes; None for the joint
            layout.
    """

    header: ClassifierHeader
    class_embeddings: FloatArray | None

    def attach(self, encoder: Encoder) -> ZeroShotClassifier:
        """Return the classifier with an encoder of the bundle that made it."""
        if self.class_embeddings is not None:
            return _tower_classifier(encoder, self.header, self.class_embeddings)
        return ZeroShotClassifier(
            self.header, JointScorer(encoder, self.header.all_names, self.header.templates, self.header.own_prompts)
        )


def _check_finite(rows: FloatArray) -> None:
    if not np.isfinite(rows).all():
        row = int(np.argmin(np.isfinite(rows).all(axis=1)))
        raise InputError(f"Row {row} holds NaN or infinity; expected finite numbers.")


def rank_classes(logits: FloatArray, k: int) -> npt.NDArray[np.intp]:
    """Return the indices of the ``k`` largest logits per row, best first; among equal ones the lower index is first."""
    classes = logits.shape[1]
    if k >= classes or classes <= _CLASSES_SORTED_WHOLE:
        return np.argsort(-logits, axis=1, kind="stable")[:, :k]
    # Sort only the logits that are at least as large as the k-th best.
    ranked = np.empty((len(logits), k), np.intp)
    floors = np.partition(logits, classes - k, axis=1)[:, classes - k]
    for row, (values, floor) in enumerate(zip(logits, floors, strict=True)):
        candidates = np.flatnonzero(values >= floor)
        ranked[row] = candidates[np.argsort(-values[candidates], kind="stable")[:k]]
    return ranked


@lru_cache(maxsize=64)
def _warn_about(class_names: tuple[str, ...], *, shares: bool) -> None:
    """Warn about a single class and about repeated class names, once per list of names."""
    if len(class_names) == 1 and shares:
        _log.warning("There is one class only: every image will be 100 %% '%s'.", class_names[0])
    repeated = repeated_names(class_names)
    if repeated:
        name, positions = next(iter(repeated.items()))
        _log.warning(
            "%d class name(s) occur more than once, such as '%s' at the positions %s: positions are kept, the embedding is shared, "
            "and of equal classes the first one is predicted.",
            len(repeated),
            name,
            " and ".join(map(str, positions)),
        )


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
) -> ZeroShotClassifier:
    """Compute class embeddings from prompts, or read them from the cache; see ``Model.classifier``."""
    labels = resolve_labels(class_names)
    names = tuple(labels)
    open_set = resolve_open_set(
        names,
        none_label=none_label,
        background=background,
        reject_below=reject_below,
        logit_bias=encoder.runnable.facts.logit_bias,
    )
    resolved = resolve_prompts(labels, templates, background=open_set is not None and bool(open_set.background))
    header = _header(encoder, names, resolved, open_set)
    if isinstance(labels, dict):
        header = header.with_prompts(labels)
    return _build(encoder, header, cache=cache, on_step=on_step)


def _build(encoder: Encoder, header: ClassifierHeader, *, cache: bool, on_step: StartStep) -> ZeroShotClassifier:
    if encoder.runnable.facts.layout == "joint":
        return DetachedClassifier(header=header, class_embeddings=None).attach(encoder)
    path = _cache_path(encoder, header) if cache else None
    if path is not None and os.path.isfile(path):
        try:
            return load_classifier(encoder, path)
        except InputError as error:
            _log.warning("Cached class embeddings are made again: %s", error)
    embeddings = embed_classes(encoder, header.all_names, header.templates, header.own_prompts, on_step=on_step)
    digest = hashlib.sha256(embeddings.tobytes()).hexdigest()
    classifier = _tower_classifier(encoder, msgspec.structs.replace(header, embeddings_sha256=digest), embeddings)
    if path is not None:
        try:
            classifier.save(path, overwrite=True)
        except OutputError as error:
            _log.warning("Class embeddings are not cached: %s", error)
    return classifier


def embed_classes(
    encoder: Encoder,
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
        encoder: encoder with the text tower.
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
    return _tower_classifier(encoder, header, embeddings)


def _tower_classifier(encoder: Encoder, header: ClassifierHeader, embeddings: FloatArray) -> ZeroShotClassifier:
    return ZeroShotClassifier(header, TowerScorer(encoder, embeddings, header.logit_scale, header.logit_bias))


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
