"""Building a model file from a lowered graph: the request to the driver, and the build record beside the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy.typing as npt

from clipmlu.backends.base import CompiledGraph, GraphOptions, SourceGraph
from clipmlu.bundle.manifest import Tower
from clipmlu.data.feeds import Array, CalibrationData
from clipmlu.errors import (
    BackendUnavailableError,
    BundleCorruptError,
    CalibrationError,
    CompileError,
    SessionError,
    reason_of,
)
from clipmlu.files.publish import encode_json
from clipmlu.files.read import read_json
from clipmlu.graph.pixels import PIXELS, mean_and_variance, takes_uint8, with_uint8_pixels
from clipmlu.magicmind.client.answers import BuiltFacts, HostFacts, Port, ports_from
from clipmlu.magicmind.client.peer import Exchange, Fields, Peer, fetch_file, send_file
from clipmlu.magicmind.client.program import worker_digest
from clipmlu.magicmind.driver.errors import DriverError, ProtocolError
from clipmlu.specs import TEXT_AXIS, QuantisationOptions, Spec, TensorQuantisation, TensorSpec

Batch = npt.NDArray[Any] | Path
MODEL_SUFFIX = ".mm"
_RECORD_SUFFIX = ".json"
_BUILD_SECONDS = 7200.0
_INFO_SECONDS = 300.0  # the first request imports the SDK
_QUANTISING_CALLS = ("parse_from_string", "set_quantization_algorithm", "calibrate", "build_model")


class BuildRecord(Spec, frozen=True, kw_only=True):
    """The build record beside a model file; it holds facts that the SDK does not report again.

    Attributes:
        emulated: True if the emulated SDK built it.
        minimum: the smallest shape of each input.
        maximum: the largest shape of each input.
        inputs: as reported after the build.
        outputs: as reported after the build.
        calibration_batches: number of batches that the calibrator used.
        warnings: the driver's warnings.
        driver: digest of the driver.
        host: interpreter, NumPy and SDK that built it.
    """

    emulated: bool
    minimum: tuple[tuple[int, ...], ...]
    maximum: tuple[tuple[int, ...], ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    calibration_batches: int
    warnings: tuple[str, ...]
    driver: str
    host: dict[str, str]

    def ranges(self) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
        """Return the smallest and the largest shape of each input."""
        return tuple(zip(self.minimum, self.maximum, strict=True))


class Shapes(NamedTuple):
    """Shapes of one input."""

    smallest: tuple[int, ...]
    preferred: tuple[int, ...]
    largest: tuple[int, ...]


def read_record(model: Path) -> BuildRecord:
    """Read the record beside a model file.

    Raises:
        BundleCorruptError: it is missing or not valid.
    """
    path = model.with_name(model.name + _RECORD_SUFFIX)
    try:
        return read_json(path, BuildRecord)
    except (OSError, msgspec.DecodeError) as error:
        raise BundleCorruptError(
            f"Build record '{path}' cannot be read: {reason_of(error)}. Compile the bundle again."
        ) from error


def read_sdk_versions(peer: Peer) -> dict[str, str]:
    """Return the versions of the SDK and of the driver of a peer; see ``Backend.sdk_versions``."""
    return _versions(_host_facts(peer, "The version of MagicMind"))


def count_cards(peer: Peer) -> int:
    """Return the number of cards that a peer's driver sees; see ``Backend.count_devices``."""
    host = _host_facts(peer, "The number of cards")
    if host.cards is None:
        raise BackendUnavailableError(f"The number of cards cannot be read: {host.problem}. See: clipmlu doctor")
    return host.cards


def _host_facts(peer: Peer, what: str) -> HostFacts:
    try:
        return peer.execute(lambda exchange: exchange({"op": "info"}, ()).read(HostFacts), _INFO_SECONDS)
    except DriverError as error:
        raise BackendUnavailableError(f"{what} cannot be read: {error}. See: clipmlu doctor") from error


def _versions(host: HostFacts) -> dict[str, str]:
    return {"magicmind": _sdk_version(host), "magicmind driver": worker_digest()[:12]}


def _sdk_version(host: HostFacts) -> str:
    version = None if host.sdk is None else host.sdk.version
    return str(version or "unknown")


def build_graph(
    peer: Peer, graph: SourceGraph, options: GraphOptions, directory: Path, *, emulated: bool
) -> CompiledGraph:
    """Build one graph with the driver; see ``MagicMindBackend.compile_tower``."""
    output = directory / f"{graph.name}{MODEL_SUFFIX}"
    shapes = [shapes_of(tensor, options) for tensor in graph.tower.inputs]
    spec = build_request(graph.tower, shapes, options)

    def action(exchange: Exchange) -> tuple[BuiltFacts, HostFacts, dict[str, TensorQuantisation]]:
        host = exchange({"op": "info"}, ()).read(HostFacts)
        check_sdk(host.emulated, emulated)
        build = _build_here if peer.shares_files else _build_there
        built = build(exchange, graph, output, spec, options)
        return built, host, _emulated_quantisation(output) if emulated else {}

    try:
        with options.on_step("building" if options.precision.bits is None else "calibrating and building"):
            facts, host, quantised = peer.execute(action, _BUILD_SECONDS)
    except DriverError as error:
        if error.kind in ("import", "device"):
            raise BackendUnavailableError(f"MagicMind cannot be used: {error.status}. See: clipmlu doctor") from error
        if error.kind == "calibration":
            raise CalibrationError(f"MagicMind cannot calibrate the {graph.name} tower: {error.status}.") from error
        hint = _quantisation_hint(error, options)
        raise CompileError(f"MagicMind cannot build the {graph.name} tower: {error}{hint}") from error
    except SessionError as error:
        raise CompileError(f"MagicMind cannot build the {graph.name} tower: {error}") from error
    tower = Tower(
        file=output.name,
        inputs=tuple(with_sizes(tensor, options) for tensor in graph.tower.inputs),
        outputs=tuple(with_sizes(tensor, options) for tensor in graph.tower.outputs),
    )
    if options.pixels is not None:
        tower = with_uint8_pixels(tower)
        _check_pixels(tower, facts)
    record = _record(facts, host, shapes, emulated=emulated)
    output.with_name(output.name + _RECORD_SUFFIX).write_bytes(encode_json(record))
    return CompiledGraph(tower=tower, quantised=quantised, versions=_versions(host))


def _quantisation_hint(error: DriverError, options: GraphOptions) -> str:
    """Return what to do if the SDK refused the quantisation options; empty if they cannot be the reason."""
    how = options.quantisation
    is_refusal = error.call in _QUANTISING_CALLS and error.kind in ("status", "none", "exception")
    if options.precision.bits is None or how == QuantisationOptions() or not is_refusal:
        return ""
    return (
        f". If this SDK or card refuses {how.granularity} weights, {how.activation} activations or {how.algorithm} "
        "calibration, use the options of the vendor's sample: --quantisation vendor"
    )


def _check_pixels(tower: Tower, facts: BuiltFacts) -> None:
    """Check that the normalisation made the input UINT8 (api 3); otherwise the session would pass the wrong dtype."""
    assert takes_uint8(tower), "only graphs with pixels are told how to normalise them"
    index = [tensor.name for tensor in tower.inputs].index(PIXELS)
    found = facts.inputs[index].dtype
    if found != "uint8":
        raise CompileError(
            f"MagicMind was asked to normalise uint8 pixels, but the model takes {found} for '{PIXELS}'. "
            "Compile without --uint8-input."
        )


def _emulated_quantisation(model: Path) -> dict[str, TensorQuantisation]:
    """Read the quantisation from a model file of the emulated SDK; for the real SDK no public interface is known."""
    from clipmlu.magicmind.emulator.container import read_container
    from clipmlu.magicmind.emulator.status import StatusError

    try:
        header, _graph = read_container(model)
        return msgspec.convert(header.get("quantisation"), dict[str, TensorQuantisation])
    except (StatusError, msgspec.ValidationError) as error:
        raise ProtocolError(f"the model file that it built is wrong: {error}") from error


def shapes_of(tensor: TensorSpec, options: GraphOptions) -> Shapes:
    """Return the smallest, preferred and largest shape of an input.

    The number of texts of the joint layout is fixed: the vendor's sample fixes its text input with a range with min =
    max (api 6.2), and only one dimension of a model should vary (api 5, python_common README).
    """
    batch = options.batch_size
    ends = {
        "smallest": 1 if options.dynamic_shape else batch,
        "preferred": batch,
        "largest": options.max_batch if options.dynamic_shape else batch,
    }
    return Shapes(**{end: tuple(_size(axis, size, options) for axis in tensor.shape) for end, size in ends.items()})


def _size(axis: int | str, batch: int, options: GraphOptions) -> int:
    if isinstance(axis, int):
        return axis
    return options.mlu.text_rows if axis == TEXT_AXIS else batch


def with_sizes(tensor: TensorSpec, options: GraphOptions) -> TensorSpec:
    """Return the spec of the compiled graph's tensor, with fixed sizes filled in."""
    shape = tuple(
        axis if options.dynamic_shape and axis != TEXT_AXIS else _size(axis, options.batch_size, options)
        for axis in tensor.shape
    )
    return TensorSpec(name=tensor.name, dtype=tensor.dtype, shape=shape)


def build_request(tower: Tower, shapes: Sequence[Shapes], options: GraphOptions) -> Fields:
    """Return the driver's build spec without paths and data."""
    mlu = options.mlu
    return {
        "label": "clipmlu",
        "precision": options.precision.value,
        "granularity": options.quantisation.granularity,
        "activation": options.quantisation.activation,
        "archs": {arch: list(counts) for arch, counts in mlu.archs.items()},
        "mutable": options.dynamic_shape,
        "inputs": [
            _input_request(tensor.name, each, options) for tensor, each in zip(tower.inputs, shapes, strict=True)
        ],
        "type64to32": True,
        "conv_scale_fold": mlu.conv_scale_fold,
        "computation_preference": mlu.computation_preference,
        "toolchain": mlu.toolchain,
        "nodes": {**options.node_types, **mlu.node_types},
        "extra": dict(mlu.build_config) or None,
    }


def _input_request(name: str, shapes: Shapes, options: GraphOptions) -> Fields:
    request: Fields = {"shape": list(shapes.preferred)}
    if options.dynamic_shape:
        request.update(min=list(shapes.smallest), max=list(shapes.largest))
    if options.pixels is not None and name == PIXELS:
        request["mean"], request["var"] = mean_and_variance(options.pixels)
    return request


def check_sdk(found_emulated: bool, expects_emulated: bool) -> None:
    """Check that the SDK is the emulated one if and only if that is wanted.

    Raises:
        BackendUnavailableError: it is the other one.
    """
    if found_emulated and not expects_emulated:
        raise BackendUnavailableError(
            "The 'magicmind' found is the emulated one, which is no card. Use --target emulated-mlu, or remove it from the path."
        )
    if expects_emulated and not found_emulated:
        raise BackendUnavailableError("The worker has another 'magicmind' than the emulated one; use --target mlu.")


def _build_here(
    exchange: Exchange, graph: SourceGraph, output: Path, spec: Fields, options: GraphOptions
) -> BuiltFacts:
    arrays: list[Array] = []
    calibration = _calibration_request(graph.tower, options, lambda batch: _batch_here(batch, arrays))
    full = {**spec, "onnx": str(graph.path.resolve()), "output": str(output.resolve()), "calibration": calibration}
    return _built(exchange, full, arrays, graph)


def _batch_here(batch: Batch, arrays: list[Array]) -> int | str:
    if isinstance(batch, Path):
        return str(batch.resolve())
    arrays.append(batch)
    return len(arrays) - 1


def _build_there(
    exchange: Exchange, graph: SourceGraph, output: Path, spec: Fields, options: GraphOptions
) -> BuiltFacts:
    if graph.data_files:
        raise CompileError(f"'{graph.path}' keeps weights in a second file, which cannot be sent to a remote worker.")
    arrays: list[Array] = []

    def place(batch: Batch) -> int | str:
        if isinstance(batch, Path):
            return send_file(exchange, batch)
        arrays.append(batch)
        return len(arrays) - 1

    calibration = _calibration_request(graph.tower, options, place)
    remote = f"upload:built-{output.name}"
    full = {**spec, "onnx": send_file(exchange, graph.path), "output": remote, "calibration": calibration}
    facts = _built(exchange, full, arrays, graph)
    fetch_file(exchange, remote, output, facts.bytes)
    return facts


def _built(exchange: Exchange, spec: Fields, arrays: list[Array], graph: SourceGraph) -> BuiltFacts:
    facts = exchange({"op": "build", "spec": spec}, arrays).read(BuiltFacts)
    found, wanted = (len(facts.inputs), len(facts.outputs)), (len(graph.tower.inputs), len(graph.tower.outputs))
    if found != wanted:
        raise ProtocolError(
            f"the model has {found[0]} inputs and {found[1]} outputs; the graph has {wanted[0]} and {wanted[1]}"
        )
    return facts


def _calibration_request(tower: Tower, options: GraphOptions, place: Callable[[Batch], int | str]) -> Fields | None:
    if options.precision.bits is None:
        return None
    missing = [tensor.name for tensor in tower.inputs if tensor.name not in options.calibration]
    if missing:
        raise CalibrationError(
            f"The precision {options.precision.value} needs calibration data for '{missing[0]}'; give them with --calib."
        )
    data = [_source_request(options.calibration[tensor.name], place) for tensor in tower.inputs]
    return {
        "algorithm": options.quantisation.algorithm,
        "data": data,
        "remote": options.calibration_server,
        "device": options.session.device,
    }


def _source_request(data: CalibrationData, place: Callable[[Batch], int | str]) -> Fields:
    paths = [isinstance(batch, Path) for batch in data.batches]
    if any(paths) != all(paths):
        raise CalibrationError("The calibration batches of one input are either arrays or files, not both.")
    return {("files" if paths[0] else "arrays"): [place(batch) for batch in data.batches], "repeat": data.repeat}


def _record(facts: BuiltFacts, host: HostFacts, shapes: Sequence[Shapes], *, emulated: bool) -> BuildRecord:
    return BuildRecord(
        emulated=emulated,
        minimum=tuple(each.smallest for each in shapes),
        maximum=tuple(each.largest for each in shapes),
        inputs=ports_from(facts.inputs),
        outputs=ports_from(facts.outputs),
        calibration_batches=facts.calibration_batches,
        warnings=tuple(str(each) for each in facts.warnings),
        driver=worker_digest(),
        host={
            "python": str(host.python),
            "numpy": str(host.numpy),
            "magicmind": _sdk_version(host),
        },
    )
