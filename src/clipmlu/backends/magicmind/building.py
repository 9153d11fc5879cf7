"""From a lowered graph to a model file: the request to the driver, and the record that is kept beside the file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from clipmlu.backends.base import Array, GraphOptions
from clipmlu.backends.magicmind.driver import DriverError, own_digest
from clipmlu.backends.magicmind.options import Batch, CalibrationData, MluOptions
from clipmlu.backends.magicmind.peer import Exchange, Fields, Peer, fetch_file, send_file
from clipmlu.bundle import Tower
from clipmlu.errors import BackendUnavailableError, BundleCorruptError, CompileError, SessionError
from clipmlu.specs import Spec, TensorSpec, TowerName

MODEL_SUFFIX = ".mm"
_RECORD_SUFFIX = ".json"
_BUILD_SECONDS = 7200.0


class Port(Spec, frozen=True, kw_only=True):
    """One input or output as the built model reports it; -1 is a size that may vary."""

    shape: tuple[int, ...]
    dtype: str


class BuildRecord(Spec, frozen=True, kw_only=True):
    """What is kept beside a model file, because the SDK does not tell it again.

    Attributes:
        emulated: the emulated SDK built it.
        archs: architecture -> cluster counts.
        minimum: for each input, the smallest shape.
        maximum: for each input, the largest shape.
        inputs: as reported after the build.
        outputs: as reported after the build.
        calibration_batches: batches that the calibrator took.
        warnings: what the driver noticed.
        driver: digest of the driver.
        host: interpreter, NumPy and SDK that built it.
    """

    emulated: bool
    archs: dict[str, tuple[int, ...]]
    minimum: tuple[tuple[int, ...], ...]
    maximum: tuple[tuple[int, ...], ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    calibration_batches: int
    warnings: tuple[str, ...]
    driver: str
    host: dict[str, str]

    def ranges(self) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
        """For each input, the smallest and the largest shape."""
        return tuple(zip(self.minimum, self.maximum, strict=True))


@dataclasses.dataclass(frozen=True)
class Axes:
    """Sizes of the dynamic axes.

    Attributes:
        batch_size: the preferred size.
        max_batch: the largest.
        dynamic: whether sizes vary at all.
        named: axis -> (smallest, preferred, largest) where they differ from these.
    """

    batch_size: int
    max_batch: int
    dynamic: bool
    named: Mapping[str, tuple[int, int, int]]

    def sizes(self, size: int | str) -> tuple[int, int, int]:
        """Smallest, preferred and largest size of one axis."""
        if isinstance(size, int):
            return size, size, size
        if size in self.named:
            return self.named[size]
        return (1, self.batch_size, self.max_batch) if self.dynamic else (self.batch_size,) * 3

    def shapes(self, tensor: TensorSpec) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Smallest, preferred and largest shape of an input."""
        low, preferred, high = zip(*(self.sizes(size) for size in tensor.shape), strict=True)
        return tuple(low), tuple(preferred), tuple(high)


def read_record(model: Path) -> BuildRecord:
    """The record beside a model file.

    Raises:
        BundleCorruptError: it is missing or not valid.
    """
    path = model.with_name(model.name + _RECORD_SUFFIX)
    try:
        return msgspec.json.decode(path.read_bytes(), type=BuildRecord)
    except (OSError, msgspec.DecodeError) as error:
        raise BundleCorruptError(f"Build record '{path}' cannot be read: {error}. Compile the bundle again.") from error


def build_graph(
    peer: Peer,
    graph: Path,
    tower: Tower,
    name: TowerName,
    options: GraphOptions,
    directory: Path,
    axes: Axes,
    mlu: MluOptions,
    *,
    emulated: bool,
) -> Tower:
    """Have the driver build one graph; see ``MagicMindBackend.compile_tower``."""
    output = directory / f"{name}{MODEL_SUFFIX}"
    spec = build_request(tower, options, axes, mlu)

    def action(exchange: Exchange) -> tuple[Fields, Fields]:
        host, _ = exchange({"op": "info"}, ())
        facts = _build_here if peer.shares_files else _build_there
        return facts(exchange, graph, tower, output, spec, mlu), host

    try:
        facts, host = peer.execute(action, _BUILD_SECONDS)
    except DriverError as error:
        if error.kind == "import":
            raise BackendUnavailableError(f"MagicMind cannot be used: {error.status}.") from error
        raise CompileError(f"MagicMind cannot build the {name} tower: {error}") from error
    except SessionError as error:
        raise CompileError(f"MagicMind cannot build the {name} tower: {error}") from error
    record = _record(facts, host, tower, axes, mlu, emulated=emulated)
    encoded = msgspec.json.format(msgspec.json.encode(record), indent=2)
    output.with_name(output.name + _RECORD_SUFFIX).write_bytes(encoded + b"\n")
    return Tower(
        file=output.name, inputs=_with_sizes(tower.inputs, axes, mlu), outputs=_with_sizes(tower.outputs, axes)
    )


def build_request(tower: Tower, options: GraphOptions, axes: Axes, mlu: MluOptions) -> Fields:
    """The driver's build spec, but for paths and data."""
    return {
        "label": "clipmlu",
        "precision": options.precision.value,
        "granularity": mlu.granularity,
        "activation": mlu.activation,
        "archs": {arch: list(counts) for arch, counts in mlu.archs.items()},
        "mutable": axes.dynamic,
        "inputs": [_input_request(tensor, axes, mlu) for tensor in tower.inputs],
        "type64to32": True,
        "conv_scale_fold": mlu.conv_scale_fold,
        "computation_preference": mlu.computation_preference,
        "toolchain": mlu.toolchain,
        "nodes": dict(mlu.node_types),
        "extra": dict(mlu.build_config) if mlu.build_config else None,
    }


def _input_request(tensor: TensorSpec, axes: Axes, mlu: MluOptions) -> Fields:
    low, preferred, high = axes.shapes(tensor)
    request: Fields = {"shape": list(preferred)}
    if axes.dynamic:
        request.update(min=list(low), max=list(high))
    if tensor.dtype.startswith("float") and len(tensor.shape) == 4:
        if mlu.pixel_normalisation is not None:
            mean, deviation = mlu.pixel_normalisation
            # The SDK computes (x - mean) / sqrt(var) (api 3).
            request.update(mean=[float(each) for each in mean], var=[float(each) ** 2 for each in deviation])
        if mlu.channels_last:
            request["layout"] = ["NCHW", "NHWC"]
    return request


def _build_here(exchange: Exchange, graph: Path, tower: Tower, output: Path, spec: Fields, mlu: MluOptions) -> Fields:
    arrays: list[Array] = []
    calibration = _calibration_request(tower, mlu, lambda batch: _batch_here(batch, arrays))
    full = {**spec, "onnx": str(graph.resolve()), "output": str(output.resolve()), "calibration": calibration}
    facts, _ = exchange({"op": "build", "spec": full}, arrays)
    return facts


def _batch_here(batch: Batch, arrays: list[Array]) -> int | str:
    if isinstance(batch, Path):
        return str(batch.resolve())
    arrays.append(batch)
    return len(arrays) - 1


def _build_there(exchange: Exchange, graph: Path, tower: Tower, output: Path, spec: Fields, mlu: MluOptions) -> Fields:
    if graph.with_name(f"{graph.name}.data").exists():
        raise CompileError(f"'{graph}' keeps weights in a second file, which cannot be sent to a worker elsewhere.")
    arrays: list[Array] = []

    def place(batch: Batch) -> int | str:
        if isinstance(batch, Path):
            return send_file(exchange, batch)
        arrays.append(batch)
        return len(arrays) - 1

    calibration = _calibration_request(tower, mlu, place)
    remote = f"upload:built-{output.name}"
    full = {**spec, "onnx": send_file(exchange, graph), "output": remote, "calibration": calibration}
    facts, _ = exchange({"op": "build", "spec": full}, arrays)
    fetch_file(exchange, remote, output, int(facts["bytes"]))
    return facts


def _calibration_request(tower: Tower, mlu: MluOptions, place: Any) -> Fields | None:
    if not mlu.calibration:
        return None
    missing = [tensor.name for tensor in tower.inputs if tensor.name not in mlu.calibration]
    if missing:
        raise CompileError(f"There are no calibration data for the input '{missing[0]}'.")
    data = [_source_request(mlu.calibration[tensor.name], place) for tensor in tower.inputs]
    return {"algorithm": mlu.algorithm, "data": data, "remote": mlu.calibration_server, "device": mlu.device}


def _source_request(data: CalibrationData, place: Any) -> Fields:
    paths = [isinstance(batch, Path) for batch in data.batches]
    if any(paths) != all(paths):
        raise CompileError("The calibration batches of one input are either arrays or files, not both.")
    return {("files" if paths[0] else "arrays"): [place(batch) for batch in data.batches], "repeat": data.repeat}


def _record(facts: Fields, host: Fields, tower: Tower, axes: Axes, mlu: MluOptions, *, emulated: bool) -> BuildRecord:
    shapes = [axes.shapes(tensor) for tensor in tower.inputs]
    if mlu.channels_last:
        shapes = [tuple(_channels_last(shape) for shape in each) for each in shapes]  # type: ignore[misc]
    sdk = host.get("sdk") or {}
    return BuildRecord(
        emulated=emulated,
        archs={arch: tuple(counts) for arch, counts in mlu.archs.items()},
        minimum=tuple(low for low, _, _ in shapes),
        maximum=tuple(high for _, _, high in shapes),
        inputs=tuple(Port(shape=tuple(port["shape"]), dtype=port["dtype"]) for port in facts["inputs"]),
        outputs=tuple(Port(shape=tuple(port["shape"]), dtype=port["dtype"]) for port in facts["outputs"]),
        calibration_batches=int(facts["calibration_batches"]),
        warnings=tuple(facts["warnings"]),
        driver=own_digest(),
        host={
            "python": str(host.get("python")),
            "numpy": str(host.get("numpy")),
            "magicmind": str(sdk.get("version") or "unknown"),
        },
    )


def _channels_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape


def _with_sizes(tensors: tuple[TensorSpec, ...], axes: Axes, mlu: MluOptions | None = None) -> tuple[TensorSpec, ...]:
    """The specs of the compiled graph: static sizes filled in, and what the options change of image inputs."""
    return tuple(_with_size(tensor, axes, mlu) for tensor in tensors)


def _with_size(tensor: TensorSpec, axes: Axes, mlu: MluOptions | None) -> TensorSpec:
    shape: tuple[int | str, ...] = tensor.shape
    if not axes.dynamic:
        shape = tuple(axes.sizes(size)[1] for size in shape)
    dtype = tensor.dtype
    if mlu is not None and tensor.dtype.startswith("float") and len(shape) == 4:
        dtype = "uint8" if mlu.pixel_normalisation is not None else dtype
        shape = (shape[0], *shape[2:], shape[1]) if mlu.channels_last else shape
    return TensorSpec(name=tensor.name, dtype=dtype, shape=shape)
