"""A check whether a precision of a runtime is faster than float32 on this CPU.

A CPU may have the instructions of a precision and compute it slower: with AVX512-BF16 and without AMX, products in bfloat16
reached 0.6 of the speed of float32 on one Xeon and twice the speed on a Zen 5. So a matrix product is timed in both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from clipmlu.graph.messages import make_node, small_model

CLEARLY_FASTER = 1.1
"""Ratio of speeds from which a precision is advised; other load on the machine shifts the median by a few per cent."""

_ROWS, _DEPTH, _WIDTH = 250, 768, 3072  # the first product of an MLP of ViT-B, for five images: 1.2 GFLOP
_ROUNDS = 9

Product = Callable[[npt.NDArray[np.float32]], object]
"""Multiplies rows of shape (N, K) by the weights of ``float_product_graph``."""


def relative_speed(product: Product, base: Product, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how many times as fast as ``base`` a product is: the median over rounds that run both, in changing order.

    Args:
        product: the product in the precision in question.
        base: the same product in float32.
        clock: seconds since a fixed time.
    """
    rows = np.random.default_rng(0).standard_normal((_ROWS, _DEPTH), np.float32)
    product(rows)
    base(rows)

    def seconds(run: Product) -> float:
        start = clock()
        run(rows)
        return clock() - start

    ratios = []
    for number in range(_ROUNDS):
        if number % 2:
            own, other = seconds(product), seconds(base)
        else:
            other, own = seconds(base), seconds(product)
        ratios.append(other / own)
    return statistics.median(ratios)


def float_product_graph() -> bytes:
    """An ONNX graph that multiplies rows ``x`` by stored weights: float32, (N, 768) by (768, 3072) to ``y``; serialised."""
    weights = np.random.default_rng(1).standard_normal((_DEPTH, _WIDTH), np.float32)
    product = make_node("MatMul", ["x", "weights"], ["y"])
    return small_model([product], {"x": ("rows", _DEPTH)}, {"y": ("rows", _WIDTH)}, {"weights": weights})
