"""How graphs are built for a card, and where the SDK is to be found."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from clipmlu.errors import OptionError

PYTHON_VARIABLE = "CLIPMLU_MLU_PYTHON"
WORKER_VARIABLE = "CLIPMLU_MLU_WORKER"
SECRET_FILE_VARIABLE = "CLIPMLU_WORKER_SECRET_FILE"  # noqa: S105 - the name of a variable
ARCHS = ("mtp_372", "mtp_592", "tp_322")
"""MLU370, MLU590, and the edge part: what the vendor's samples accept (api 5)."""

_DRIVER = Path(__file__).with_name("driver.py")
Batch = npt.NDArray[Any] | Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationData:
    """Calibration batches of one graph input.

    Attributes:
        batches: arrays, or ``.npy`` files, one batch each.
        repeat: give the only batch again at each step, as a fixed set of texts.
    """

    batches: Sequence[Batch]
    repeat: bool = False

    def __post_init__(self) -> None:
        if not self.batches or (self.repeat and len(self.batches) != 1):
            raise OptionError(f"{len(self.batches)} calibration batches; expected 1 or more, and exactly 1 to repeat")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MluOptions:
    """How to build for a card; validated on construction.

    Attributes:
        archs: architecture -> cluster counts to optimise for; an empty tuple names none. The default is the vendor's
            CLIP sample's.
        granularity: of quantised weights.
        activation: quantisation of activations.
        algorithm: how calibration finds ranges.
        computation_preference: how operators compute.
        conv_scale_fold: fold what follows a convolution into its weights.
        pixel_normalisation: mean and standard deviation per channel, in units of 0..255: the graph then takes uint8
            pixels and normalises them on the card (``insert_bn_before_firstnode``).
        channels_last: take images as (N, H, W, 3).
        node_types: exact node name -> ``"float32"`` or ``"float16"``, whatever the precision mode says.
        calibration: input name -> data, for the qint modes.
        calibration_server: ``ip:port`` of a card that calibrates for a host without one.
        device: the card that calibrates; None to activate none, as the vendor's sample.
        axis_ranges: dynamic axis -> (smallest, preferred, largest) where it is not 1, batch size, largest batch.
        build_config: more configuration of the SDK, merged last, so that it wins.
        toolchain: cross-compiler for the edge part.
    """

    archs: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=lambda: {"mtp_372": (2, 6, 8)})
    granularity: Literal["per_tensor", "per_axis"] = "per_tensor"
    activation: Literal["symmetric", "asymmetric"] = "symmetric"
    algorithm: Literal["linear", "eqnm"] = "linear"
    computation_preference: Literal["auto", "fast", "high_precision"] = "auto"
    conv_scale_fold: bool = True
    pixel_normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    channels_last: bool = False
    node_types: Mapping[str, str] = dataclasses.field(default_factory=dict)
    calibration: Mapping[str, CalibrationData] = dataclasses.field(default_factory=dict)
    calibration_server: str | None = None
    device: int | None = None
    axis_ranges: Mapping[str, tuple[int, int, int]] = dataclasses.field(default_factory=dict)
    build_config: Mapping[str, Any] | None = None
    toolchain: str | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.archs) - set(ARCHS))
        if unknown or not self.archs:
            raise OptionError(f"MLU architecture is '{', '.join(unknown)}'; expected one or more of {', '.join(ARCHS)}")
        if any(count < 1 for counts in self.archs.values() for count in counts):
            raise OptionError("cluster numbers are 1 or more")
        if self.algorithm == "eqnm" and self.activation == "asymmetric":
            raise OptionError("the calibration algorithm eqnm works with symmetric activations only")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Which process holds the SDK, and how patient we are with it.

    Attributes:
        python: an interpreter that has ``magicmind`` and NumPy, started here; or
        address: ``unix:PATH`` or ``tcp:HOST:PORT`` of a worker that runs already.
        secret_file: file with the shared secret; else the variable CLIPMLU_WORKER_SECRET.
        environment: variables of a worker started here; None for this process's own.
        driver: the file to start; the package's own unless a test says otherwise.
        run_seconds: longest wait for one batch, the first of a session included.
        open_seconds: longest wait for a session.
        build_seconds: longest wait for a build.
        start_seconds: longest wait for a worker to answer at all.
        max_failures: crashes, hangs and garbage in a row after which the batches in flight are given up.
        idle_seconds: a worker started here ends when nothing is asked for so long, and is started again when needed.
        shared_memory: pass arrays through memory where the connection allows it.
    """

    python: str | None = None
    address: str | None = None
    secret_file: str | None = None
    environment: Mapping[str, str] | None = None
    driver: Path = _DRIVER
    run_seconds: float = 120.0
    open_seconds: float = 600.0
    build_seconds: float = 7200.0
    start_seconds: float = 30.0
    max_failures: int = 3
    idle_seconds: float = 900.0
    shared_memory: bool = True

    def __post_init__(self) -> None:
        if (self.python is None) == (self.address is None):
            raise OptionError("a worker is either an interpreter to start or an address to connect to")
        if self.max_failures < 1:
            raise OptionError(f"max failures is {self.max_failures}; expected 1 or more")

    def __str__(self) -> str:
        return f"'{self.python}'" if self.address is None else f"'{self.address}'"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What is chosen when a graph is run.

    Attributes:
        device: index of the card.
        in_flight: batches on the card at a time.
        worker: where the SDK is; None for this process.
    """

    device: int = 0
    in_flight: int = 2
    worker: WorkerOptions | None = None

    def __post_init__(self) -> None:
        if self.device < 0:
            raise OptionError(f"device is {self.device}; expected 0 or more")
        if self.in_flight < 1:
            raise OptionError(f"batches in flight are {self.in_flight}; expected 1 or more")


def worker_from_environment() -> WorkerOptions | None:
    """The worker that CLIPMLU_MLU_WORKER (an address) or CLIPMLU_MLU_PYTHON (an interpreter) names, or None."""
    address, python = os.environ.get(WORKER_VARIABLE), os.environ.get(PYTHON_VARIABLE)
    if address:
        return WorkerOptions(address=address, secret_file=os.environ.get(SECRET_FILE_VARIABLE))
    return WorkerOptions(python=python) if python else None
