"""From calibration batches to the ranges of the tensors that are quantised."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx

from clipmlu.errors import CalibrationError
from clipmlu.quantisation.parameters import BINS, Array, least_noise_bound
from clipmlu.quantisation.survey import Survey

Ranges = dict[str, tuple[float, float]]


def collect_ranges(
    model: onnx.ModelProto,
    names: list[str],
    batches: Callable[[], Iterable[list[Array]]],
    *,
    bits: int,
    least_noise: bool,
    threads: int = 0,
) -> tuple[Ranges, int]:
    """Run all batches through a graph in float32, once for the range of the values, twice for that of least noise.

    Args:
        model: the graph.
        names: the tensors to find ranges for.
        batches: gives the batches, each time from the first one: one array for each input of the graph.
        bits: of the integers.
        least_noise: clip where that minimises quantisation noise, instead of taking the smallest and largest value.
        threads: CPU threads; 0 leaves it to the runtime.

    Returns:
        Tensor -> (smallest, largest), and the number of batches.

    Raises:
        CalibrationError: there are no batches, one does not fit the graph, or a tensor is not finite.
    """
    survey = Survey(model, names, threads=threads)
    count = 0
    for feeds in batches():
        survey.measure(feeds)
        count += 1
    if not count:
        raise CalibrationError("the data hold no batch at all")
    ranges = survey.ranges()
    bad = [name for name, ends in ranges.items() if not np.isfinite(ends).all()]
    if bad:
        raise CalibrationError(f"tensor '{bad[0]}' holds NaN or infinity")
    if least_noise:
        survey.prepare_histograms(BINS)
        for feeds in batches():
            survey.count(feeds)
        bounds = {name: least_noise_bound(counts, bound, bits) for name, (counts, bound) in survey.histograms().items()}
        ranges = {name: (-bound, bound) for name, bound in bounds.items()}
    return ranges, count
