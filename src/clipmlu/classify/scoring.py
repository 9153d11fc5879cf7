"""Scorers: from preprocessed images to logits, by the image tower and class embeddings, or by the fused graph.

A graph returns one *row* for each image: its embedding, or its logits. Code that reads, prepares and submits images
works with either (``images.run_batches``); a scorer converts rows to logits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

import numpy as np

from clipmlu.data.class_prompts import prompts_of
from clipmlu.embed.image_graph import ImageGraph, ImageTower
from clipmlu.errors import BundleError, OptionError, ShapeError
from clipmlu.specs import MluBuild

if TYPE_CHECKING:
    import numpy.typing as npt

    from clipmlu.embed.encoder import Encoder
    from clipmlu.embed.rows import FloatArray, PendingRows, PixelArray

PREFER_TOWERS = "export the model again without '--layout joint'"


class Scorer(ImageGraph, Protocol):
    """An image graph with a conversion of its rows to logits."""

    @property
    def class_embeddings(self) -> FloatArray:
        """Class embeddings, float32, shape (C, D), unit L2 norm per row.

        Raises:
            BundleError: the graph returns no embeddings.
        """

    def logits(self, rows: FloatArray) -> FloatArray:
        """Return logits, float32, shape (N, C), for rows of shape (N, width)."""

    def describe_cost(self, batch_size: int) -> str | None:
        """Describe the texts that every batch of images computes again, and the remedy; None if there are none."""


class TowerScorer(ImageTower):
    """Compares image embeddings with class embeddings.

    Args:
        encoder: encoder with the image tower.
        class_embeddings: float32, shape (C, D), unit L2 norm per row.
        logit_scale: multiplier of the similarities.
        logit_bias: added to the scaled similarities, or None.
    """

    def __init__(
        self, encoder: Encoder, class_embeddings: FloatArray, logit_scale: float, logit_bias: float | None
    ) -> None:
        super().__init__(encoder)
        self.class_embeddings = class_embeddings
        self._scale = np.float32(logit_scale)
        self._bias = None if logit_bias is None else np.float32(logit_bias)

    def logits(self, rows: FloatArray) -> FloatArray:
        """Return scaled similarities plus bias."""
        check_rows(rows, self.class_embeddings.shape[1], "embeddings")
        logits: FloatArray = rows @ self.class_embeddings.T * self._scale
        return logits if self._bias is None else logits + self._bias

    def describe_cost(self, batch_size: int) -> str | None:
        """Return None: texts are embedded once."""
        return None


class JointScorer:
    """Runs the fused graph, which takes images and texts; its rows are the logits of all classes.

    The texts are cut into pieces of the compiled number, the last one padded; for a dynamic number, into pieces of at
    most ``MluBuild.text_rows``. Every piece runs with every batch of images. Equal prompts run once.

    Args:
        encoder: encoder with the fused graph.
        class_names: one per class.
        templates: exactly one, for classes without a prompt of their own.
        own: own prompts of classes, exactly one for each.

    Raises:
        OptionError: there are several templates, or a class has several prompts.
    """

    def __init__(
        self,
        encoder: Encoder,
        class_names: Sequence[str],
        templates: Sequence[str],
        own: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        check_joint_prompts(class_names, templates, own, f"bundle '{encoder.runnable.path}'")
        prompts = [prompts_of(name, templates, own)[0] for name in class_names]
        self.encoder = encoder
        self.width = len(prompts)
        different = list(dict.fromkeys(prompts))
        positions = {prompt: position for position, prompt in enumerate(different)}
        self._columns = np.array([positions[prompt] for prompt in prompts])
        tokens = encoder.tokenizer(different)
        size = text_rows(encoder)
        self._pieces = [tokens[start : start + size] for start in range(0, len(tokens), size)]

    @property
    def class_embeddings(self) -> FloatArray:
        """The fused graph does not return class embeddings.

        Raises:
            BundleError: always.
        """
        raise BundleError(
            f"Bundle '{self.encoder.runnable.path}' has the layout 'joint', whose graph gives logits and no class embeddings. "
            f"To have them, {PREFER_TOWERS}."
        )

    def submit(self, pixel_values: PixelArray) -> PendingRows:
        """Start one batch; see ``ImageGraph``."""
        return _Pieces(self.encoder, pixel_values, self._pieces, self._columns)

    def logits(self, rows: FloatArray) -> FloatArray:
        """Return the rows unchanged; they are logits already."""
        check_rows(rows, self.width, "logits")
        return rows

    def describe_cost(self, batch_size: int) -> str | None:
        """Describe the share of the arithmetic that is text, and the cost with two towers."""
        facts = self.encoder.runnable.compilation
        images = batch_size if facts.dynamic_shape else facts.batch_size
        fixed = self.encoder.joint_text_rows
        texts = sum(len(piece) if fixed is None else fixed for piece in self._pieces)
        runs = len(self._pieces)
        padding = texts - sum(map(len, self._pieces))
        again = f"all {texts} texts" + (f" ({padding} of them padding)" if padding else "")
        again += f", in {runs} runs of the graph," if runs > 1 else ""
        text = f"joint layout: {again} are computed again with every batch of {images} images"
        macs = facts.row_macs
        if len(macs) == 2:
            per_image, per_text = (macs[tensor.name] for tensor in self.encoder.runnable.tower("joint").inputs)
            once = images * per_image
            total = runs * once + texts * per_text
            text += (
                f", {texts * per_text / total:.1%} of the arithmetic; two towers would take {once / total:.1%} of it"
            )
        return f"{text} ({PREFER_TOWERS})"


def check_rows(rows: FloatArray, width: int, what: str) -> None:
    """Check that rows are a float array of shape (N, ``width``).

    Raises:
        ShapeError: they are not.
    """
    shape, dtype = np.shape(rows), getattr(rows, "dtype", None)
    if len(shape) != 2 or shape[1] != width or dtype is None or dtype.kind != "f":
        kind = type(rows).__name__ if dtype is None else dtype
        raise ShapeError(f"Rows of {what} are {kind} of shape {shape}; expected float32 of shape (N, {width}).")


def check_joint_templates(templates: Sequence[str], what: str) -> None:
    """Check that there is one template; the mean of several needs embeddings, which a fused graph does not return.

    Args:
        templates: resolved templates.
        what: name of the bundle with the joint layout, for the message.

    Raises:
        OptionError: there are several templates.
    """
    if len(templates) != 1:
        raise OptionError(
            f"{len(templates)} templates need the mean of their text embeddings, but {what} has the layout 'joint', "
            f"whose graph gives logits only; give one template, or {PREFER_TOWERS}"
        )


def check_joint_prompts(
    class_names: Sequence[str], templates: Sequence[str], own: Mapping[str, Sequence[str]], what: str
) -> None:
    """Check that each class has one prompt; see ``check_joint_templates``.

    Raises:
        OptionError: a class has several prompts, or there are several templates for those without their own.
    """
    several = next((name for name, prompts in own.items() if len(prompts) > 1), None)
    if several is not None:
        raise OptionError(
            f"The {len(own[several])} prompts of class '{several}' need the mean of their text embeddings, but {what} has the layout "
            f"'joint', whose graph gives logits only; give one prompt for each class, or {PREFER_TOWERS}"
        )
    if not own or any(name not in own for name in class_names):
        check_joint_templates(templates, what)


def text_rows(encoder: Encoder) -> int:
    """Return the number of texts per run of the fused graph: as built, or that of a build for cards if it is dynamic."""
    fixed = encoder.joint_text_rows
    return fixed if fixed is not None else (encoder.runnable.compilation.mlu or MluBuild()).text_rows


class _Pieces:
    """A batch of images in flight through the fused graph, one piece of the texts after the other.

    The caller must not change the pixels until the result is returned.
    """

    def __init__(
        self,
        encoder: Encoder,
        pixel_values: PixelArray,
        pieces: Sequence[npt.NDArray[np.int64]],
        columns: npt.NDArray[np.intp],
    ) -> None:
        self._encoder = encoder
        self._pixels = pixel_values
        self._columns = columns
        self._waiting = deque(pieces)
        self._running: deque[PendingRows] = deque()
        self._start_one()  # not all at once: each piece has a copy of the pixels in the runtime

    def result(self) -> FloatArray:
        """Wait for all pieces and return logits, float32, shape (N, C)."""
        found: list[FloatArray] = []
        while self._running:
            while self._waiting and len(self._running) < self._encoder.batches_in_flight:
                self._start_one()
            found.append(self._running.popleft().result())
        logits: FloatArray = np.concatenate(found, axis=1)[:, self._columns]
        return logits

    def _start_one(self) -> None:
        self._running.append(self._encoder.submit_pairs(self._pixels, self._waiting.popleft()))
