"""Input arrays of graphs, and calibration data of one tower."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipmlu.bundle.manifest import Tower
from clipmlu.errors import CalibrationError, OptionError

Array = npt.NDArray[np.generic]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationData:
    """Calibration batches of one graph input.

    Attributes:
        batches: arrays or ``.npy`` files, one batch each.
        repeat: use the only batch at each step, such as a fixed set of texts.
    """

    batches: Sequence[npt.NDArray[Any] | Path]
    repeat: bool = False

    def __post_init__(self) -> None:
        if not self.batches or (self.repeat and len(self.batches) != 1):
            raise OptionError(f"{len(self.batches)} calibration batches; expected 1 or more, and exactly 1 to repeat")


def calibration_batches(tower: Tower, calibration: Mapping[str, CalibrationData]) -> Iterator[list[Array]]:
    """Yield all calibration batches of a graph once, each as one array per input.

    Raises:
        CalibrationError: an input has no data.
    """
    sources = _sources(tower, calibration)
    for step in range(max(len(source.batches) for source in sources)):
        picked = [source.batches[0 if source.repeat else step] for source in sources]
        yield [np.load(batch, allow_pickle=False) if isinstance(batch, Path) else batch for batch in picked]


def count_calibration_batches(tower: Tower, calibration: Mapping[str, CalibrationData]) -> int:
    """Return the number of batches that ``calibration_batches`` yields.

    Raises:
        CalibrationError: an input has no data.
    """
    return max(len(source.batches) for source in _sources(tower, calibration))


def _sources(tower: Tower, calibration: Mapping[str, CalibrationData]) -> list[CalibrationData]:
    """Return the data of each input, in the order of the inputs."""
    missing = [tensor.name for tensor in tower.inputs if tensor.name not in calibration]
    if missing:
        raise CalibrationError(f"There are no calibration data for '{missing[0]}'; give them with --calib.")
    return [calibration[tensor.name] for tensor in tower.inputs]
