"""Ranges of quantised tensors from calibration batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import onnx

from clipmlu.errors import CalibrationError
from clipmlu.graph.quantisation.parameters import (
    BINS,
    Array,
    entropy_bound,
    least_noise_bound,
    percentile_bound,
    percentile_range,
)
from clipmlu.graph.watch import Survey
from clipmlu.specs import CalibrationAlgorithm

Ranges = dict[str, tuple[float, float]]
Batches = Callable[[], Iterable[list[Array]]]
"""Returns the batches from the first one on, at each call: one array for each input of the graph."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RangeOptions:
    """Options for finding ranges.

    Attributes:
        bits: bits of the integers.
        algorithm: ``linear`` takes the smallest and the largest value, ``eqnm`` clips for the least quantisation noise,
            ``percentile`` keeps a share of the values, ``entropy`` minimises the loss of information.
        percentile: percentage of values that ``percentile`` keeps, 0..100.
        centred: make ranges symmetric around zero.
        threads: CPU threads; 0 for the runtime's default.
    """

    bits: int
    algorithm: CalibrationAlgorithm = "linear"
    percentile: float = 99.99
    centred: bool = True
    threads: int = 0

    @property
    def passes(self) -> int:
        """How often ``collect_ranges`` runs all batches."""
        return 1 if self.algorithm == "linear" else 2


def collect_ranges(
    model: onnx.ModelProto, names: list[str], batches: Batches, options: RangeOptions
) -> tuple[Ranges, int]:
    """Run all batches through a graph in float32, once for ``linear`` and twice for the other algorithms.

    Args:
        model: the graph.
        names: the tensors that need ranges.
        batches: the data.
        options: options for finding ranges.

    Returns:
        A map from tensor to (smallest, largest), and the number of batches.

    Raises:
        CalibrationError: there are no batches, one does not fit the graph, or a tensor is not finite.
    """
    survey = Survey(model, names, threads=options.threads)
    count = 0
    for feeds in batches():
        survey.measure(feeds)
        count += 1
    if not count:
        raise CalibrationError("the calibration data have no batch")
    ranges = survey.ranges()
    bad = [name for name, ends in ranges.items() if not np.isfinite(ends).all()]
    if bad:
        raise CalibrationError(f"tensor '{bad[0]}' holds NaN or infinity")
    if options.passes > 1:
        survey.prepare_histograms(BINS)
        for feeds in batches():
            survey.count(feeds)
        ranges = {name: _chosen_range(counts, bound, options) for name, (counts, bound) in survey.histograms().items()}
    return ranges, count


def _chosen_range(counts: npt.NDArray[np.int64], bound: float, options: RangeOptions) -> tuple[float, float]:
    if options.algorithm == "percentile" and not options.centred:
        return percentile_range(counts, bound, options.percentile)
    magnitudes = counts[BINS:] + counts[:BINS][::-1]
    if options.algorithm == "eqnm":
        chosen = least_noise_bound(magnitudes, bound, options.bits)
    elif options.algorithm == "entropy":
        chosen = entropy_bound(magnitudes, bound, options.bits)
    else:
        chosen = percentile_bound(magnitudes, bound, options.percentile)
    return -chosen, chosen
