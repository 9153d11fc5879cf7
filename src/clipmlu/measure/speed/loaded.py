"""Opened graphs of a bundle with samples, for the scenarios."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from clipmlu.classify.scoring import text_rows
from clipmlu.data.feeds import Array
from clipmlu.embed.encoder import Encoder
from clipmlu.embed.rows import PendingRows
from clipmlu.host import check_memory
from clipmlu.specs import TensorSpec, TowerName

_TEXTS = ("a photo of a cat.", "a red circle", "a drawing of two large dogs in front of an old house", "x")


class TowerGraph:
    """A graph run by an ``Encoder``, as in all other commands; see ``scenarios.Graph``.

    Args:
        encoder: encoder of the card.
        tower: name of the graph.
        samples: see ``make_samples``.
        texts: token ids, which every batch of the fused graph uses.
    """

    def __init__(self, encoder: Encoder, tower: TowerName, samples: Array, texts: Array | None = None) -> None:
        self._encoder = encoder
        self._tower = tower
        self._samples: Any = samples
        self._texts: Any = texts

    def submit(self, first: int, rows: int) -> PendingRows:
        """Start one batch; the encoder pads it for a static shape."""
        batch = self._samples[_window(first, rows, len(self._samples))]
        if self._tower == "joint":
            return self._encoder.submit_pairs(batch, self._texts)
        return self._encoder.submit_tokens(batch) if self._tower == "text" else self._encoder.submit_images(batch)


def open_graph(encoder: Encoder, tower: TowerName, samples: Array) -> TowerGraph:
    """Open one graph, which stays open until the encoder is closed.

    Args:
        encoder: encoder of the card.
        tower: name of the graph.
        samples: see ``make_samples``.

    Raises:
        BundleError: the bundle has no such graph.
        BackendUnavailableError: its runtime cannot be used on this machine.
    """
    encoder.device_clock(tower)  # opens it
    return TowerGraph(encoder, tower, samples, _tokens(encoder, text_rows(encoder)) if tower == "joint" else None)


def make_samples(encoder: Encoder, tower: TowerName, rows: int, seed: int = 0) -> Array:
    """Return input samples: random pixels, or a few texts repeatedly.

    Args:
        encoder: encoder of the bundle.
        tower: name of the graph.
        rows: number of samples.
        seed: random seed of the pixels.

    Returns:
        Inputs of the graph: shape (rows, 3, H, W), or (rows, context length).
    """
    if tower == "text":
        return _tokens(encoder, rows)
    spec = encoder.bundle.tower(tower).inputs[0]
    shape = (rows, *_fixed(spec)[1:])
    check_memory(math.prod(shape) * np.dtype(spec.dtype).itemsize, f"{rows} images")
    generator = np.random.default_rng(seed)
    if np.dtype(spec.dtype) == np.uint8:
        return generator.integers(0, 256, shape, np.uint8)
    return generator.standard_normal(shape, np.float32).astype(spec.dtype, copy=False)


def _tokens(encoder: Encoder, rows: int) -> Array:
    tokens = encoder.tokenizer(list(_TEXTS))
    return np.ascontiguousarray(tokens[np.arange(rows) % len(tokens)])


def _fixed(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else 1 for size in spec.shape)


def _window(first: int, rows: int, available: int) -> slice:
    """Return a slice of ``rows`` consecutive samples, so that a batch needs no copy in the measured time."""
    start = first % (available - rows + 1)
    return slice(start, start + rows)
