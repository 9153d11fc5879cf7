"""Calibration: ranges of the inputs of quantised operators, from the caller's data objects (api 2.10)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from clipmlu.errors import CalibrationError
from clipmlu.magicmind.emulator.config import BuilderConfig, BuildFacts
from clipmlu.magicmind.emulator.faults import hit
from clipmlu.magicmind.emulator.network import Network
from clipmlu.magicmind.emulator.ports import CollectedRanges
from clipmlu.magicmind.emulator.settings import current, switches
from clipmlu.magicmind.emulator.status import Code, Status, StatusError, returns_status
from clipmlu.magicmind.emulator.types import Array, DataType, Dims, QuantizationAlgorithm, get_numpy_dtype_by_datatype


class CalibDataInterface:
    """Base class of the caller's data objects; there is one for each network input.

    ``get_shape``, ``get_data_type`` and ``get_sample`` are called only after ``next`` returned OK, because several
    public subclasses set their values there (MC resnet50_onnx, nnUNet; CV). ``reset`` may be called at any time.
    """

    def next(self) -> Status:
        """Prepare the next batch; return OUT_OF_RANGE if there is none."""
        raise NotImplementedError("CalibDataInterface.next")

    def reset(self) -> Status:
        """Start again with the first batch."""
        raise NotImplementedError("CalibDataInterface.reset")

    def get_sample(self) -> Any:
        """Return the current batch."""
        raise NotImplementedError("CalibDataInterface.get_sample")

    def get_shape(self) -> Dims:
        """Return the shape of the current batch."""
        raise NotImplementedError("CalibDataInterface.get_shape")

    def get_data_type(self) -> DataType:
        """Return the element type of the current batch."""
        raise NotImplementedError("CalibDataInterface.get_data_type")


class RemoteConfig:
    """The address of a card that calibrates for a host without one.

    Attributes:
        address: ``"ip:port"`` (ME gen_model.py).
        device_id: its index (C++ S#49026245355).
    """

    def __init__(self) -> None:
        self.address = ""
        self.device_id = 0


class Calibrator:
    """Runs the data of the data objects through the network.

    Args:
        data: one object for each network input, in their order (MC clip gen_model.py), or the object itself for a
            network with one input (MC deeplabv3_tensorflow gen_model.py and calibrator.py).
    """

    def __init__(self, data: list[CalibDataInterface] | CalibDataInterface) -> None:
        given = [data] if isinstance(data, CalibDataInterface) else data
        if not isinstance(given, list) or not all(isinstance(item, CalibDataInterface) for item in given):
            raise TypeError("Calibrator(): expected a CalibDataInterface or a list of them")
        self._data = given
        self._algorithm = QuantizationAlgorithm.LINEAR_ALGORITHM
        self._remote: RemoteConfig | None = None

    @returns_status
    def set_quantization_algorithm(self, algorithm: QuantizationAlgorithm, /) -> None:
        """Choose the calibration algorithm."""
        if not isinstance(algorithm, QuantizationAlgorithm):
            raise TypeError(f"set_quantization_algorithm(): got {type(algorithm).__name__}")
        self._algorithm = algorithm

    @returns_status
    def set_remote(self, config: RemoteConfig, /) -> None:
        """Set another host's card for the calibration (ME gen_model.py); the emulator still computes here."""
        if not config.address.rpartition(":")[2].isdigit():
            raise StatusError(Code.INVALID_ARGUMENT, f"set_remote: address is '{config.address}'; expected ip:port")
        self._remote = config

    @returns_status
    def calibrate(self, network: Network, config: BuilderConfig, /) -> None:
        """Run all data through the network and store the ranges in it.

        A mode that does not quantise needs no calibration; the call then succeeds without effect (MC psenet).
        """
        hit("calibrate")
        facts = config.facts()
        least_noise = self._algorithm is QuantizationAlgorithm.EQNM_ALGORITHM
        self._check(network, facts, least_noise)
        if facts.bits is None:
            return
        try:
            network.calibration = _Collector(network, facts, self._data, least_noise).collect()
        except CalibrationError as error:
            raise StatusError(Code.INTERNAL, f"calibrate: {error}") from error

    def _check(self, network: Network, facts: BuildFacts, least_noise: bool) -> None:
        strict = switches()
        if len(self._data) != len(network.graph.input):
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"calibrate: the network has {len(network.graph.input)} inputs, the calibrator {len(self._data)} data",
            )
        if least_noise and facts.asymmetric:  # MC hoitransformer comment
            raise StatusError(Code.INVALID_ARGUMENT, "calibrate: EQNM works with symmetric activations only")
        if strict.calibration_needs_device and self._remote is None and current().device_count == 0:
            raise StatusError(Code.UNAVAILABLE, "calibrate: there is no device; use set_remote")
        if strict.calibrate_once and network.calibration is not None:
            raise StatusError(Code.FAILED_PRECONDITION, "calibrate: the network is calibrated already (unknown 7.10)")


class _Collector:
    """Runs the calibration graph in float32, once for LINEAR and twice for EQNM."""

    def __init__(self, network: Network, facts: BuildFacts, data: list[CalibDataInterface], least_noise: bool) -> None:
        from clipmlu.graph.quantisation.rewrite import quantised_tensors
        from clipmlu.magicmind.emulator.assembly import assemble_for_calibration

        self._assembly = assemble_for_calibration(network, facts)
        self._names = quantised_tensors(self._assembly.model)
        self._facts = facts
        self._data = data
        self._least_noise = least_noise

    def collect(self) -> CollectedRanges:
        """Return the ranges of all quantised tensors.

        Raises:
            StatusError: a data object failed, or its data do not fit the network or the other objects.
        """
        from clipmlu.graph.quantisation.calibrate import RangeOptions, collect_ranges

        assert self._facts.bits is not None, "calibrate checked it"
        how = RangeOptions(
            bits=self._facts.bits,
            algorithm="eqnm" if self._least_noise else "linear",
            threads=current().threads,
        )
        ranges, batches = collect_ranges(self._assembly.model, self._names, self._batches, how)
        return CollectedRanges(ranges=ranges, least_noise=self._least_noise, batches=batches)

    def _batches(self) -> Iterator[list[Array]]:
        """Yield all data once; all objects advance together. The SDK's order and number of calls are unknown (7.10)."""
        for item in self._data:
            _demand(item.reset(), "reset")
        while True:
            ended = [_ended(item.next) for item in self._data]
            if any(ended):
                if not all(ended) and switches().equal_calibration_lengths:
                    raise StatusError(Code.INVALID_ARGUMENT, "calibrate: the data objects have unequal lengths")
                return
            yield [self._sample(index, item) for index, item in enumerate(self._data)]

    def _sample(self, index: int, item: CalibDataInterface) -> Array:
        shape, dtype, sample = item.get_shape(), item.get_data_type(), item.get_sample()
        port = self._assembly.inputs[index]
        if not isinstance(sample, np.ndarray):
            raise StatusError(Code.INVALID_ARGUMENT, f"calibrate: get_sample returned {type(sample).__name__}")
        if sample.size != shape.GetElementCount():
            raise StatusError(
                Code.INVALID_ARGUMENT, f"calibrate: get_shape says {shape}, the sample has {list(sample.shape)}"
            )
        # The declaration wins. xDeepFM declares INT32 and passes int64. swintransformer (whose qint8 accuracy is
        # published) declares [B,3,224,224] and passes [B,1,3,224,224]; paddledetection declares [1,2] and passes [2].
        values: npt.NDArray[Any] = sample.astype(get_numpy_dtype_by_datatype(dtype)).reshape(shape.GetDims())
        layout = self._facts.input_layouts.get(index)
        if layout is not None and not _fits(values.shape, port.dims):
            values = values.transpose([layout[1].index(axis) for axis in layout[0]])
        if values.ndim != len(port.dims):
            raise StatusError(
                Code.INVALID_ARGUMENT, f"calibrate: '{port.name}' has {len(port.dims)} axes, the sample {values.ndim}"
            )
        return np.ascontiguousarray(values, get_numpy_dtype_by_datatype(port.dtype))


def _fits(shape: tuple[int, ...], dims: tuple[int, ...]) -> bool:
    """Return whether a sample is in the network's own layout: all axes but the batch agree."""
    return len(shape) == len(dims) and all(want in (-1, have) for have, want in zip(shape[1:], dims[1:], strict=True))


def _demand(status: object, call: str) -> None:
    if not isinstance(status, Status) or not status.ok():
        raise StatusError(Code.INTERNAL, f"calibrate: {call}() of a data object answered {status}")


def _ended(step: Callable[[], Status]) -> bool:
    status = step()
    if isinstance(status, Status) and status.carries(Code.OUT_OF_RANGE):
        return True
    _demand(status, "next")
    return False
