"""What a served bundle takes: the limits of its queues, and of the images, texts and tensors of one request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from clipmlu.embed.rows import check_finite
from clipmlu.errors import ShapeError
from clipmlu.model import Model
from clipmlu.serve.options import ServeOptions
from clipmlu.serve.queue_limit import QueueLimit
from clipmlu.serve.refusal import Refusal
from clipmlu.serve.requests import ImageInput
from clipmlu.serve.text_limits import check_lengths


class Admission:
    """Admits requests of one bundle, or refuses them; threads may share it.

    Args:
        encoder: the loaded bundle.
        options: options of the server.

    Attributes:
        images: the images that wait or are computed.
        texts: the texts that wait or are computed.
    """

    def __init__(self, encoder: Model, options: ServeOptions) -> None:
        self._encoder = encoder
        self._options = options
        self.images = QueueLimit(options.max_queue, "images")
        self.texts = QueueLimit(max(options.max_queue, options.max_texts), "texts")

    def take(self, images: int, texts: int) -> None:
        """Count the images and texts of a request.

        Raises:
            Refusal: a queue is full.
        """
        if images:
            self.images.take(images)
        if texts:
            try:
                self.texts.take(texts)
            except Refusal:
                self.give_up(images)
                raise

    def give_up(self, images: int) -> None:
        """Forget the images of a request that failed before they were prepared."""
        for _ in range(images):
            self.images.end_one()

    def tokens(self, texts: Sequence[str]) -> npt.NDArray[np.int64] | None:
        """Return the tokens of texts, int64, shape (N, context length); None for no texts.

        Raises:
            Refusal: there are too many, or they are too long.
            BundleError: the bundle has no text tower.
        """
        if not texts:
            return None
        self._encoder.runnable.tower("text")
        if len(texts) > self._options.max_texts:
            raise Refusal(
                "too_large", f"The request has {len(texts)} texts; this server takes {self._options.max_texts}."
            )
        check_lengths(map(len, texts))
        return self._encoder.tokenizer(list(texts))

    def check_images(self, images: Sequence[ImageInput], least: int = 1) -> None:
        """Check the number of images, and that none is a URL unless that is allowed.

        Raises:
            Refusal: a limit is passed.
        """
        if len(images) < least:
            raise Refusal("bad_request", "The request has no images; expected one or more.")
        if len(images) > self._options.max_images:
            raise Refusal(
                "too_large", f"The request has {len(images)} images; this server takes {self._options.max_images}."
            )
        if self._options.urls is None and any(image.content is None for image in images):
            raise Refusal(
                "urls_not_allowed", "This server fetches no URLs; send the file, or start it with --allow-urls."
            )

    def check_tensors(self, pixel_values: object, input_ids: npt.NDArray[np.int64] | None) -> None:
        """Check given tensors: a wrong one must not reach a batch, which has rows of other requests.

        Raises:
            ShapeError, InputError: as for ``Encoder.encode_images`` and ``Encoder.encode_tokens``.
        """
        if pixel_values is not None:
            pixels = _checked("pixel_values", pixel_values, self._encoder.preprocessor.shape, self._encoder.pixel_dtype)
            check_finite(pixels)
        if input_ids is not None:
            (spec,) = self._encoder.runnable.tower("text").inputs
            _checked("input_ids", input_ids, spec.shape[1:], np.dtype(np.int64))
            self._encoder.check_tokens(input_ids)


def _checked(what: str, given: Any, shape: Sequence[int | str], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    array = np.asarray(given)
    if array.shape[1:] != tuple(shape) or array.dtype != dtype:
        raise ShapeError(
            f"{what} is {array.dtype} of shape {array.shape}; expected {dtype} of shape (N, {str(tuple(shape))[1:]}."
        )
    return array
