"""ONNX Runtime on the CPU: the embedded default, and the reference that other targets are compared with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from clipmlu.backends.base import Array, Availability, Feeds, GraphOptions, Session, SessionOptions, SourceGraph
from clipmlu.bundle import CompiledBundle, Tower
from clipmlu.errors import (
    BackendUnavailableError,
    BundleCorruptError,
    CalibrationError,
    OptionError,
    SessionError,
    first_line,
)
from clipmlu.specs import Precision, TensorSpec, TowerName

if TYPE_CHECKING:
    import onnx
    import onnxruntime

    from clipmlu.quantisation.calibrate import Ranges

_IMAGE_AXES = frozenset({"batch", "image_batch"})
_FUSED_PRECISIONS = (Precision.FORCE_FLOAT32, Precision.QINT8_MIXED_FLOAT32)
_CONTRIBUTED = "com.microsoft"
_QUANTISATION_SUFFIX = ".quantisation.json"
_SMALL_BYTES = 1024
_EXTERNAL_BYTES = 1_900_000_000  # protobuf cannot hold more than 2 GiB in one file
_ERRORS_ONLY = 3  # onnxruntime's log severity: 0 verbose .. 4 fatal


class OnnxRuntimeBackend:
    """Runs the canonical graphs as they are; see ``Backend``."""

    name = "onnxruntime"
    precisions = tuple(Precision)
    packages = ("onnxruntime",)
    emulated = False
    has_cards = False

    def profile(self, precision: Precision) -> str | None:
        """The other modes start from the graph that a card would get, so that both quantise the same tensors."""
        return None if precision is Precision.FORCE_FLOAT32 else "magicmind"

    def probe(self) -> Availability:
        """Look for the package without importing it."""
        if util.find_spec("onnxruntime") is None:
            return Availability(False, None, "the package 'onnxruntime' is not installed; pip install onnxruntime")
        return Availability(True, metadata.version("onnxruntime"))

    def compile_tower(self, graph: SourceGraph, options: GraphOptions, directory: Path) -> Tower:
        """Copy the graph; with a static shape, write the batch size into it; rewrite it for any mode but force_float32."""
        spec = graph.tower
        if options.precision is not Precision.FORCE_FLOAT32:
            return _write_mode(graph, options, directory)
        for path in graph.data_files:
            shutil.copyfile(path, directory / path.name)
        if options.dynamic_shape:
            shutil.copyfile(graph.path, directory / spec.file)
            return spec
        _write_static(graph.path, directory / spec.file, options.batch_size)
        return Tower(
            file=spec.file,
            inputs=tuple(_with_batch(tensor, options.batch_size) for tensor in spec.inputs),
            outputs=tuple(_with_batch(tensor, options.batch_size) for tensor in spec.outputs),
        )

    def open(self, bundle: CompiledBundle, tower: TowerName, options: SessionOptions) -> Session:
        """Load one graph; see ``Backend.open``."""
        availability = self.probe()
        if not availability.ok:
            raise BackendUnavailableError(f"Bundle '{bundle.path}' runs on onnxruntime: {availability.reason}.")
        if options.device and bundle.compilation.backend == self.name:
            raise OptionError(f"device is {options.device}, but bundle '{bundle.path}' runs on the CPU; leave it out")
        label = f"Bundle '{bundle.path}' ({tower} tower)"
        precision = bundle.compilation.placement(tower).precision
        return OnnxRuntimeSession(bundle.tower(tower), bundle.tower_path(tower), label, options, precision)


class OnnxRuntimeSession(Session):
    """A session whose batches run one after the other on a thread of its own."""

    def __init__(
        self,
        tower: Tower,
        path: Path,
        label: str,
        options: SessionOptions,
        precision: Precision = Precision.FORCE_FLOAT32,
    ) -> None:
        super().__init__(tower, label)
        self._session = _load(path, options, precision)
        self._output_names = list(self.outputs)
        # One worker keeps the order of the batches; the runtime itself spreads one batch over the cores.
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="clipmlu-onnxruntime")

    def submit(self, feeds: Feeds) -> Future[dict[str, Array]]:
        """Queue one batch; see ``Session.submit``."""
        self.check_feeds(feeds)
        return self._worker.submit(self._run, dict(feeds))

    def close(self) -> None:
        """Wait for the batches in flight and stop the thread."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        try:
            results = self._session.run(self._output_names, feeds)
        except Exception as error:
            # onnxruntime's exceptions share no base class of their own.
            raise SessionError(f"{self._label}: onnxruntime failed: {first_line(error)}") from error
        return {name: np.asarray(result) for name, result in zip(self._output_names, results, strict=True)}


def _write_mode(graph: SourceGraph, options: GraphOptions, directory: Path) -> Tower:
    """Calibrate if the mode quantises, rewrite the graph, and note how each tensor was quantised in a file beside it."""
    import onnx

    from clipmlu.quantisation.calibrate import collect_ranges
    from clipmlu.quantisation.rewrite import Plan, apply_numerics, quantised_tensors

    model = onnx.load(str(graph.path))
    bits = options.precision.bits
    how = options.quantisation
    ranges: Ranges = {}
    if bits is not None:
        names, batches = quantised_tensors(model), _calibration_batches(graph, options)
        ranges, _ = collect_ranges(model, names, batches, bits=bits, least_noise=how.algorithm == "eqnm")
    plan = Plan(
        half=options.precision.value.endswith("float16"),
        bits=bits,
        per_axis=how.granularity == "per_axis",
        centred=how.activation == "symmetric",
        least_noise=how.algorithm == "eqnm",
        ranges=ranges,
        # 16-bit integers have no kernels of their own; half needs rounding between the operators that would be fused.
        integer_weights=options.precision is Precision.QINT8_MIXED_FLOAT32,
    )
    rewritten, record = apply_numerics(model, _element_types(model), plan)
    if not any(entry.domain == _CONTRIBUTED for entry in rewritten.opset_import):
        rewritten.opset_import.append(onnx.helper.make_opsetid(_CONTRIBUTED, 1))
    _save(rewritten, directory / graph.tower.file)
    if record:
        content = msgspec.json.format(msgspec.json.encode(record), indent=1)
        (directory / f"{graph.name}{_QUANTISATION_SUFFIX}").write_bytes(content + b"\n")
    fixed = None if options.dynamic_shape else options.batch_size
    return Tower(
        file=graph.tower.file,
        inputs=tuple(_with_batch(tensor, fixed) for tensor in graph.tower.inputs),
        outputs=tuple(_with_batch(tensor, fixed) for tensor in graph.tower.outputs),
    )


def _calibration_batches(graph: SourceGraph, options: GraphOptions) -> Callable[[], Iterator[list[Array]]]:
    sources = [options.calibration.get(tensor.name) for tensor in graph.tower.inputs]
    if None in sources:
        raise CalibrationError(
            f"The precision {options.precision.value} needs calibration data; give them with --calib."
        )
    steps = max(len(source.batches) for source in sources if source is not None)

    def batches() -> Iterator[list[Array]]:
        for step in range(steps):
            picked = [source.batches[0 if source.repeat else step] for source in sources if source is not None]
            yield [np.load(batch, allow_pickle=False) if isinstance(batch, Path) else batch for batch in picked]

    return batches


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor; weights keep their shapes only, for the inference has a limit of 2 GiB."""
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for weight in bare.graph.initializer:
        if len(weight.raw_data) > _SMALL_BYTES:
            weight.ClearField("raw_data")
    inferred = onnx.shape_inference.infer_shapes(bare).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    return {value.name: value.type.tensor_type.elem_type for value in values}


def _save(model: onnx.ModelProto, path: Path) -> None:
    import onnx

    large = sum(len(weight.raw_data) for weight in model.graph.initializer) > _EXTERNAL_BYTES
    if large:
        onnx.save(model, str(path), save_as_external_data=True, location=f"{path.name}.data")
    else:
        onnx.save(model, str(path))


def _load(path: Path, options: SessionOptions, precision: Precision) -> onnxruntime.InferenceSession:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.log_severity_level = _ERRORS_ONLY
    if precision not in _FUSED_PRECISIONS:
        # Each node's result is rounded or quantised as the mode says; fusing across nodes would skip that.
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BundleCorruptError(f"onnxruntime cannot load '{path}': {first_line(error)}") from error


def _write_static(source: Path, destination: Path, batch_size: int) -> None:
    """Replace the image batch axis by a number in every declared shape; weights stay where they are."""
    import onnx

    model = onnx.load(str(source), load_external_data=False)
    graph = model.graph
    for value in [*graph.input, *graph.output, *graph.value_info]:
        _fix_axes(value, batch_size)
    onnx.save(model, str(destination))


def _fix_axes(value: onnx.ValueInfoProto, batch_size: int) -> None:
    for axis in value.type.tensor_type.shape.dim:
        if axis.dim_param in _IMAGE_AXES:
            axis.dim_value = batch_size


def _with_batch(tensor: TensorSpec, batch_size: int | None) -> TensorSpec:
    shape = tuple(batch_size if batch_size and size in _IMAGE_AXES else size for size in tensor.shape)
    return TensorSpec(name=tensor.name, dtype=tensor.dtype, shape=shape)
