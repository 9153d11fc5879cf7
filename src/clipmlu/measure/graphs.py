"""The graphs of a bundle as the scenarios take them: opened on one card each, with samples to run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from clipmlu.backends import PendingBatch, Session, SessionOptions, get_backend
from clipmlu.backends.base import Array
from clipmlu.bundle import CompiledBundle
from clipmlu.classify.encoder import Encoder, PendingRows, pad_rows
from clipmlu.specs import MluBuild, TensorSpec, TowerName

_TEXTS = ("a photo of a cat.", "a red circle", "a drawing of two large dogs in front of an old house", "x")


class TowerGraph:
    """The image or the text tower through an ``Encoder``, as every other command runs it; see ``scenarios.Graph``."""

    def __init__(self, encoder: Encoder, tower: TowerName, samples: Array) -> None:
        self._encoder = encoder
        self._is_text = tower == "text"
        self._samples: Any = samples

    def submit(self, first: int, rows: int) -> PendingRows:
        """Start one batch; a static shape is padded by the encoder."""
        batch = self._samples[_window(first, rows, len(self._samples))]
        return self._encoder.submit_tokens(batch) if self._is_text else self._encoder.submit_images(batch)


class JointGraph:
    """The fused graph: images, and always the same texts; see ``scenarios.Graph``."""

    def __init__(self, session: Session, samples: Array, texts: Array, static_rows: int | None) -> None:
        self._session = session
        self._samples = samples
        self._texts = texts
        self._static_rows = static_rows

    def submit(self, first: int, rows: int) -> PendingBatch:
        """Start one batch; a static shape is padded as the encoder does it."""
        batch = self._samples[_window(first, rows, len(self._samples))]
        padded = batch if self._static_rows is None else pad_rows(batch, self._static_rows)
        images, texts = self._session.inputs
        return self._session.submit({images: padded, texts: self._texts})


@contextlib.contextmanager
def open_graph(
    encoder: Encoder, tower: TowerName, options: SessionOptions, samples: Array
) -> Iterator[TowerGraph | JointGraph]:
    """Open one graph; the encoder's own towers stay open until the encoder is closed.

    Args:
        encoder: of the card that is wanted.
        tower: which graph.
        options: of the encoder, for the fused graph, which encoders do not run.
        samples: see ``make_samples``.

    Raises:
        BundleError: the bundle has no such graph.
        BackendUnavailableError: its runtime cannot be used here.
    """
    bundle = encoder.bundle
    if tower != "joint":
        encoder.device_clock(tower)  # opens it
        yield TowerGraph(encoder, tower, samples)
        return
    texts = _tokens(encoder, _text_rows(bundle))
    facts = bundle.compilation
    with get_backend(facts.backend).open(bundle, tower, options) as session:
        yield JointGraph(session, samples, texts, None if facts.dynamic_shape else facts.batch_size)


def make_samples(encoder: Encoder, tower: TowerName, rows: int, seed: int = 0) -> Array:
    """Inputs to run: drawn pixels, or a few real texts again and again.

    Args:
        encoder: of the bundle.
        tower: which graph.
        rows: how many.
        seed: of the pixels.

    Returns:
        As the graph takes them: shape (rows, 3, H, W), or (rows, context length).
    """
    if tower == "text":
        return _tokens(encoder, rows)
    spec = encoder.bundle.tower(tower).inputs[0]
    shape = (rows, *_fixed(spec)[1:])
    generator = np.random.default_rng(seed)
    if np.dtype(spec.dtype) == np.uint8:
        return generator.integers(0, 256, shape, np.uint8)
    return generator.standard_normal(shape, np.float32).astype(spec.dtype, copy=False)


def _tokens(encoder: Encoder, rows: int) -> Array:
    tokens = encoder.tokenizer(list(_TEXTS))
    return np.ascontiguousarray(tokens[np.arange(rows) % len(tokens)])


def _text_rows(bundle: CompiledBundle) -> int:
    """Texts of the fused graph: as built, or as many as a build for cards would take where any number fits."""
    size = bundle.tower("joint").inputs[1].shape[0]
    return size if isinstance(size, int) else (bundle.compilation.mlu or MluBuild()).text_rows


def _fixed(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else 1 for size in spec.shape)


def _window(first: int, rows: int, available: int) -> slice:
    """``rows`` neighbours, so that a batch is one piece of memory and not put together while the clock runs."""
    start = first % (available - rows + 1)
    return slice(start, start + rows)
