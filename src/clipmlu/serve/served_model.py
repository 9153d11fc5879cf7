"""One bundle that is served: images and texts of all requests go through its queues, and their rows become answers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipmlu.backends import get_backend
from clipmlu.classify.classifier import ZeroShotClassifier
from clipmlu.classify.results import Predictions
from clipmlu.classify.scoring import PREFER_TOWERS, JointScorer
from clipmlu.clock import StageTotal, now
from clipmlu.embed.image_graph import ImageTower
from clipmlu.embed.items import ImageEmbeddings
from clipmlu.embed.rows import FloatArray, PendingRows
from clipmlu.host import available_cpus, check_memory
from clipmlu.model import Model
from clipmlu.serve.admission import Admission
from clipmlu.serve.batching import Batcher, Graph, Row
from clipmlu.serve.class_embeddings import Classifiers
from clipmlu.serve.options import ServeOptions
from clipmlu.serve.preparing import ImagePreparer
from clipmlu.serve.refusal import Refusal
from clipmlu.serve.requests import ClassesInput, ImageInput
from clipmlu.serve.row_results import finish_classify, finish_embed, stack_rows
from clipmlu.serve.tickets import BothResults, RowGroup, RowResult, Ticket, when_done
from clipmlu.specs import TowerName

_PREPARED_BATCHES = 2  # ahead of the device


class ServedModel:
    """A bundle that is served; threads may share it.

    Args:
        name: its name in requests.
        encoder: the loaded bundle; closed with this object.
        options: options of the server.

    Attributes:
        images: the line of prepared images.
        texts: the line of tokenised texts.
        preparer: prepares images.
        admission: limits of the queues and of requests.
        classifier: the classifier of requests without labels, or None.
    """

    def __init__(self, name: str, encoder: Model, options: ServeOptions) -> None:
        self.name = name
        self.encoder = encoder
        self._options = options
        self.admission = Admission(encoder, options)
        size = encoder.check_batch_size(options.batch_size)
        places = encoder.batches_in_flight
        threads = options.workers or available_cpus()
        ahead = _PREPARED_BATCHES * size + threads
        check_memory(
            (ahead + places * size) * int(np.prod(encoder.preprocessor.shape)) * encoder.pixel_dtype.itemsize,
            f"{ahead + places * size} prepared images",
        )
        self.images = Batcher(places, size, "images")
        self.texts = Batcher(places, encoder.batch_size, "texts")
        self.preparer = ImagePreparer(encoder, self.images, threads=threads, ahead=ahead, urls=options.urls)
        if not _has_cards(encoder):
            self.images.fill_while(lambda: self.preparer.waiting)
        self._towers = encoder.runnable.facts.layout == "towers"
        self._image_graph = ImageTower(encoder) if self._towers else None
        self._text_graph = _TextTower(encoder)
        self._classifiers = Classifiers(encoder, _QueuedTexts(self), options.max_texts)
        self.classifier: ZeroShotClassifier | None = None
        self._probe_graph: Graph | None = None
        self._probe: Future[Any] | None = None

    @property
    def emulated(self) -> bool:
        """The emulated vendor SDK computes the answers."""
        return self.encoder.runnable.compilation.emulated

    def warm_up(self) -> None:
        """Make the default classifier, and compute one image and one text.

        Raises:
            ClipmluError: the bundle does not work on this machine.
        """
        options = self._options
        if options.classifier is not None:
            found = self.encoder.load_classifier(Path(options.classifier))
            self.classifier = found.rejecting(none_label=options.none_label, reject_below=options.reject_below)
        elif options.labels is not None:
            self.classifier = self.encoder.classifier(
                options.labels,
                options.templates,
                none_label=options.none_label,
                background=options.background,
                reject_below=options.reject_below,
            )
        if self._image_graph is not None:
            self._probe_graph = self._image_graph
        elif self.classifier is not None:
            self._probe_graph = self.classifier.scorer
        self._start_probe(texts="text" in self.encoder.runnable.towers).result()

    def why_not_ready(self) -> str | None:
        """Return why the device does not answer, or None; if it does not, it is tried again, for a later call."""
        failure = self.images.failure or self.texts.failure
        if failure is None:
            return None
        if self._probe is None or self._probe.done():
            with contextlib.suppress(Refusal):  # the queue is full: its own rows try the device
                self._probe = self._start_probe(texts=self.texts.failure is not None)
        return f"Bundle '{self.name}' does not answer: {failure}"

    def _start_probe(self, *, texts: bool) -> Future[Any]:
        """Start to compute an image, and a text if wanted, in the queues of the requests."""
        if self._probe_graph is None:  # the joint layout without classes of the server
            self._probe_graph = JointScorer(self.encoder, ["probe"], ["{}"])
        tokens = self.encoder.tokenizer(["probe"]) if texts else None
        return self._compute(self._probe_graph, self._probe_pixels(), tokens, now() + self._options.timeout_s)

    def _probe_pixels(self) -> npt.NDArray[Any]:
        """Return an image of noise, for which any sound model gives an embedding."""
        _, height, width = self.encoder.preprocessor.shape
        picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        pixels = np.empty((1, *self.encoder.preprocessor.shape), self.encoder.pixel_dtype)
        self.encoder.preprocessor.write(picture, pixels[0])
        return pixels

    def describe(self) -> dict[str, Any]:
        """Return its facts as a dict for JSON."""
        facts, compilation = self.encoder.runnable.facts, self.encoder.runnable.compilation
        return {
            "name": self.name,
            "model": str(facts.model),
            "target": str(compilation.target),
            "precision": compilation.precision.value,
            "layout": facts.layout,
            "embedding_dim": facts.embedding_dim,
            "emulated": self.emulated,
            "labels": None if self.classifier is None else list(self.classifier.outcomes),
            "digest": self.encoder.bundle.digest,
        }

    def classify(
        self, images: Sequence[ImageInput], classes: ClassesInput, top_k: int | None, deadline: float
    ) -> Future[Predictions]:
        """Start to classify images.

        Args:
            images: the images.
            classes: the classes of the request.
            top_k: classes per image; None for the default.
            deadline: time of ``clock.now`` at which the answer is useless.

        Raises:
            Refusal: the queue is full, the request is too large, or it has no classes.
        """
        self.admission.check_images(images)
        ticket: Ticket[Predictions] = Ticket(deadline)
        finish = functools.partial(finish_classify, ticket, images, top_k or self._options.top_k)
        self.admission.images.take(len(images))
        try:
            classifier = self._classifier_of(classes)
        except BaseException:
            self.admission.give_up(len(images))
            raise
        if self._image_graph is not None:  # the tower needs no classes: images and texts run at the same time
            both = BothResults(ticket, finish)
            self.preparer.add(images, self._image_group(ticket, len(images), both.first), self._image_graph)
            when_done(classifier, both.second, ticket)
        else:
            start = functools.partial(self._start_joint, ticket, images, finish)
            when_done(classifier, start, ticket, lambda: self.admission.give_up(len(images)))
        return ticket.future

    def embed(self, images: Sequence[ImageInput], texts: Sequence[str], deadline: float) -> Future[ImageEmbeddings]:
        """Start to embed images and texts; the rows of the images come first, and errors are positions in ``images``.

        Raises:
            Refusal: the queue is full, the request is too large, or the bundle has the joint layout.
        """
        self.admission.check_images(images, least=0)
        graph = self._require_towers()
        tokens = self.admission.tokens(texts)
        ticket: Ticket[ImageEmbeddings] = Ticket(deadline)
        both = BothResults(ticket, functools.partial(finish_embed, ticket, self.encoder.embedding_dim))
        self.admission.take(len(images), len(texts))
        if images:
            self.preparer.add(images, self._image_group(ticket, len(images), both.first), graph)
        else:
            both.first([])
        self._add_tokens(tokens, ticket, both.second)
        return ticket.future

    def embed_tensors(
        self, pixel_values: npt.NDArray[Any] | None, input_ids: npt.NDArray[np.int64] | None, deadline: float
    ) -> Future[tuple[FloatArray | None, FloatArray | None]]:
        """Start to embed preprocessed images and tokenised texts.

        Args:
            pixel_values: see ``Encoder.encode_images``, or None.
            input_ids: see ``Encoder.encode_tokens``, or None.
            deadline: time of ``clock.now`` at which the answer is useless.

        Returns:
            The future embeddings of the images and of the texts, each float32, shape (N, D), or None.

        Raises:
            Refusal: the queue is full, or the bundle has the joint layout.
            ShapeError, InputError: as for ``Encoder.encode_images`` and ``Encoder.encode_tokens``.
        """
        graph = self._require_towers()
        self.admission.check_tensors(pixel_values, input_ids)
        return self._compute(graph, pixel_values, input_ids, deadline)

    def _compute(
        self,
        graph: Graph,
        pixel_values: npt.NDArray[Any] | None,
        input_ids: npt.NDArray[np.int64] | None,
        deadline: float,
    ) -> Future[tuple[FloatArray | None, FloatArray | None]]:
        """Start to compute the rows of checked tensors: of images by a graph, of texts by the text tower."""
        ticket: Ticket[tuple[FloatArray | None, FloatArray | None]] = Ticket(deadline)

        def finish(image_rows: Sequence[RowResult], text_rows: Sequence[RowResult]) -> None:
            ticket.finish((stack_rows(image_rows, pixel_values), stack_rows(text_rows, input_ids)))

        both = BothResults(ticket, finish)
        pixels = () if pixel_values is None else pixel_values
        self.admission.take(len(pixels), 0 if input_ids is None else len(input_ids))
        if len(pixels):
            group = self._image_group(ticket, len(pixels), both.first)
            for position, values in enumerate(pixels):
                self.images.add(Row(group, position, graph, values))
        else:
            both.first([])
        self._add_tokens(input_ids, ticket, both.second)
        return ticket.future

    def embed_prompts(self, texts: Sequence[str]) -> FloatArray:
        """Embed texts in the queue, and wait for them: float32, shape (N, D).

        Raises:
            Refusal: the queue is full.
        """
        deadline = now() + self._options.timeout_s
        found = self.embed_tensors(None, self.encoder.tokenizer(list(texts)), deadline).result()[1]
        assert found is not None, "there are texts"
        return found

    def stage_totals(self) -> Iterable[tuple[str, str, StageTotal]]:
        """Yield the graph, the stage and the total time of each stage."""
        for stage, total in self.preparer.clock.totals().items():
            yield "image", stage, total
        graphs: tuple[TowerName, ...] = ("image", "text") if self._towers else ("joint",)
        for graph in graphs:
            if graph in self.encoder.runnable.towers:
                for stage, total in self.encoder.device_clock(graph).totals().items():
                    yield graph, stage, total

    def close(self) -> None:
        """End the threads and release the runtime; what waits fails."""
        self.preparer.close()
        self.images.close()
        self._classifiers.close()
        self.texts.close()
        self.encoder.close()

    def _classifier_of(self, classes: ClassesInput) -> Future[ZeroShotClassifier]:
        if classes.labels is not None:
            return self._classifiers.get(classes)
        if self.classifier is None:
            raise Refusal(
                "bad_request", 'There are no labels. Give them, such as ["cat", "dog"], or start with --labels.'
            )
        if classes != ClassesInput():
            raise Refusal(
                "bad_request", "Templates, background and rules go with labels of the request; give labels too."
            )
        found: Future[ZeroShotClassifier] = Future()
        found.set_result(self.classifier)
        return found

    def _start_joint(
        self,
        ticket: Ticket[Predictions],
        images: Sequence[ImageInput],
        finish: Callable[[Sequence[RowResult], ZeroShotClassifier], object],
        classifier: ZeroShotClassifier,
    ) -> None:
        group = self._image_group(ticket, len(images), lambda rows: finish(rows, classifier))
        self.preparer.add(images, group, classifier.scorer)

    def _image_group(
        self, ticket: Ticket[Any], count: int, on_done: Callable[[Sequence[RowResult]], object]
    ) -> RowGroup:
        return RowGroup(ticket, count, on_done, self.admission.images.end_one)

    def _add_tokens(
        self,
        tokens: npt.NDArray[np.int64] | None,
        ticket: Ticket[Any],
        on_done: Callable[[Sequence[RowResult]], object],
    ) -> None:
        if tokens is None or not len(tokens):
            on_done([])
            return
        group = RowGroup(ticket, len(tokens), on_done, self.admission.texts.end_one)
        for position, values in enumerate(tokens):
            self.texts.add(Row(group, position, self._text_graph, values))

    def _require_towers(self) -> ImageTower:
        if self._image_graph is None:
            raise Refusal(
                "bad_request",
                f"Bundle '{self.name}' has the layout 'joint', whose graph gives no embeddings; ask /v1/classify, or "
                f"{PREFER_TOWERS} and serve that.",
            )
        return self._image_graph


def _has_cards(encoder: Model) -> bool:
    """Return whether images are computed by cards, or on the cores that prepare them."""
    placement = encoder.runnable.compilation.placement(encoder.runnable.image_graph)
    return not placement.emulated and get_backend(placement.backend).has_cards


class _TextTower:
    """The text tower as a graph of a batcher."""

    def __init__(self, encoder: Model) -> None:
        self._encoder = encoder

    def submit(self, rows: npt.NDArray[np.int64], /) -> PendingRows:
        return self._encoder.submit_tokens(rows)


class _QueuedTexts:
    """Embeds the prompts of classes in the queue of a served bundle."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model

    def embed_texts(self, texts: list[str], *, on_rows: Callable[[int], object]) -> FloatArray:
        found = self._model.embed_prompts(texts)
        on_rows(len(texts))
        return found
