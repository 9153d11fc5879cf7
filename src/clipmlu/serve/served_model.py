"""One bundle that is served: its encoder, and the answers that it computes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from clipmlu.classify.classifier import ZeroShotClassifier
from clipmlu.classify.results import Prediction, Predictions
from clipmlu.embed.encoder import FloatArray, PixelArray
from clipmlu.embed.items import ImageEmbeddings
from clipmlu.model import Model
from clipmlu.serve.options import ServeOptions
from clipmlu.serve.refusal import Refusal
from clipmlu.serve.requests import ClassesInput, ImageInput


class ServedModel:
    """A bundle that is served; threads may share it.

    Attributes:
        name: its name in requests.
        encoder: the loaded bundle.
    """

    def __init__(self, name: str, encoder: Model, options: ServeOptions) -> None:
        self.name = name
        self.encoder = encoder
        self._options = options
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="clipmlu-serve")

    @property
    def emulated(self) -> bool:
        """The emulated vendor SDK computes the answers."""
        return self.encoder.runnable.compilation.emulated

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
            "labels": None,
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
            Refusal: the queue is full.
        """
        return self._pool.submit(self._classify, images, classes, top_k)

    def embed(self, images: Sequence[ImageInput], texts: Sequence[str], deadline: float) -> Future[ImageEmbeddings]:
        """Start to embed images and texts; the rows of the images come first, and errors are positions in ``images``."""
        return self._pool.submit(self._embed, images, texts)

    def embed_tensors(
        self, pixel_values: PixelArray | None, input_ids: npt.NDArray[np.int64] | None, deadline: float
    ) -> Future[tuple[FloatArray | None, FloatArray | None]]:
        """Start to embed prepared images and tokenised texts; the embeddings of what is None are None.

        Args:
            pixel_values: see ``Encoder.encode_images``.
            input_ids: see ``Encoder.encode_tokens``.
            deadline: as for ``classify``.

        Raises:
            Refusal: the queue is full.
        """
        return self._pool.submit(self._embed_tensors, pixel_values, input_ids)

    @functools.cached_property
    def classifier(self) -> ZeroShotClassifier | None:
        """Classifies images into the classes of the server; None if it has none."""
        options = self._options
        if options.labels is None:
            return None if options.classifier is None else self.encoder.load_classifier(options.classifier)
        return self.encoder.classifier(options.labels, options.templates)

    def close(self) -> None:
        """Release the runtime."""
        self._pool.shutdown()
        self.encoder.close()

    def _classify(self, images: Sequence[ImageInput], classes: ClassesInput, top_k: int | None) -> Predictions:
        labels = self._options.labels if classes.labels is None else classes.labels
        if labels is None:
            raise Refusal("bad_request", 'There are no labels; give them, such as ["cat", "dog"].')
        classifier = self.encoder.classifier(labels, classes.templates, cache=False)
        contents = [image.content or b"" for image in images]
        found = classifier.predict(contents, top_k=top_k or self._options.top_k, on_error="skip")
        return Predictions(
            Prediction(image.id, each.class_names, each.indices, each.scores, each.error, each.emulated, each.rejected)
            for image, each in zip(images, found, strict=True)
        )

    def _embed(self, images: Sequence[ImageInput], texts: Sequence[str]) -> ImageEmbeddings:
        found = self.encoder.embed_images([image.content or b"" for image in images], on_error="skip")
        of_texts = self.encoder.embed_texts(list(texts))
        return ImageEmbeddings(np.concatenate([found.rows.reshape(-1, of_texts.shape[1]), of_texts]), found.errors)

    def _embed_tensors(
        self, pixel_values: PixelArray | None, input_ids: npt.NDArray[np.int64] | None
    ) -> tuple[FloatArray | None, FloatArray | None]:
        return (
            None if pixel_values is None else self.encoder.encode_images(pixel_values),
            None if input_ids is None else self.encoder.encode_tokens(input_ids),
        )
