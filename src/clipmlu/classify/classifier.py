"""Zero-shot classification: class embeddings, computed once from prompts, are compared with images."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from msgspec import UNSET

from clipmlu.arguments import check_argument
from clipmlu.classify.classifier_file import ClassifierHeader, encode_classifier
from clipmlu.classify.open_set import outcome_ranks, outcome_scores, resolve_open_set
from clipmlu.classify.probabilities import rank_classes, sigmoid, softmax
from clipmlu.classify.results import Prediction, Predictions
from clipmlu.classify.scoring import JointScorer, Scorer, TowerScorer, check_rows
from clipmlu.data.class_names import repeated_names
from clipmlu.data.textfile import Note
from clipmlu.data.thumbnails import ImageReference
from clipmlu.data.url.options import UrlOptions
from clipmlu.display import LONGEST_NAME, Displayed, Summary, as_plain, counted, shorten
from clipmlu.embed.images import run_batches
from clipmlu.embed.items import OnError, items_from_images
from clipmlu.errors import InputError, OptionError
from clipmlu.files.publish import write_file
from clipmlu.specs import PositiveInt

if TYPE_CHECKING:
    import numpy.typing as npt

    from clipmlu.data.datasets.elements import LabelledImage
    from clipmlu.data.image_objects import SupportsArray
    from clipmlu.data.images import ImageSource, OneImage
    from clipmlu.embed.encoder import Encoder
    from clipmlu.embed.rows import FloatArray

DEFAULT_TOP_K = 5


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

    def __repr__(self) -> str:
        shown = ", ".join(f"'{shorten(name, LONGEST_NAME)}'" for name in self.class_names[:4])
        more = f", ... {len(self.class_names)} classes" if len(self.class_names) > 4 else ""
        texts = "own prompts" if self.prompts else counted(len(self.templates), "template")
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
        images: OneImage | LabelledImage,
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
        images: Iterable[ImageSource | LabelledImage],
        *,
        top_k: int = DEFAULT_TOP_K,
        batch_size: int | None = None,
        workers: int | None = None,
        on_error: OnError = "raise",
        allow_urls: bool | UrlOptions = False,
    ) -> Predictions: ...

    def predict(
        self,
        images: ImageSource | LabelledImage | Iterable[ImageSource | LabelledImage],
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
                generator, which is consumed lazily, a column of pandas or polars, an array or tensor with an axis more, or
                a dataset.
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
        scores = sigmoid(logits) if self._header.logit_bias is not None else softmax(logits)
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
            return tower_classifier(encoder, self.header, self.class_embeddings)
        return ZeroShotClassifier(
            self.header, JointScorer(encoder, self.header.all_names, self.header.templates, self.header.own_prompts)
        )


def _check_finite(rows: FloatArray) -> None:
    if not np.isfinite(rows).all():
        row = int(np.argmin(np.isfinite(rows).all(axis=1)))
        raise InputError(f"Row {row} holds NaN or infinity; expected finite numbers.")


def note_classes(header: ClassifierHeader, on_note: Note) -> None:
    """Tell of a single class and of repeated class names, once for each list of names."""
    _note_names(header.class_names, header.logit_bias is None and header.open_set is UNSET, on_note)


@lru_cache(maxsize=64)
def _note_names(class_names: tuple[str, ...], shares: bool, on_note: Note) -> None:
    if len(class_names) == 1 and shares:
        on_note(f"There is one class only: every image will be 100 % '{class_names[0]}'.")
    repeated = repeated_names(class_names)
    if repeated:
        name, positions = next(iter(repeated.items()))
        on_note(
            f"{len(repeated)} class name(s) occur more than once, such as '{name}' at the positions "
            f"{' and '.join(map(str, positions))}: positions are kept, the embedding is shared, and of equal classes the first one is "
            "predicted."
        )


def tower_classifier(encoder: Encoder, header: ClassifierHeader, embeddings: FloatArray) -> ZeroShotClassifier:
    """Return a classifier with the image tower and these class embeddings, float32, shape (C, D), unit L2 norm per row."""
    return ZeroShotClassifier(header, TowerScorer(encoder, embeddings, header.logit_scale, header.logit_bias))
