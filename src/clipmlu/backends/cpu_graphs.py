"""Code that the CPU backends share: writing compiled ONNX files, and checks before opening one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from clipmlu.backends.base import (
    Backend,
    CompiledGraph,
    GraphOptions,
    SessionOptions,
    SourceGraph,
    static_sizes,
)
from clipmlu.bundle.manifest import GRAPH_SUFFIX, Tower
from clipmlu.bundle.runnable import RunnableModel
from clipmlu.data.feeds import calibration_batches, count_calibration_batches
from clipmlu.errors import BackendUnavailableError, BundleCorruptError, BundleError, OptionError
from clipmlu.file_names import name_from_path
from clipmlu.graph.pixels import insert_normalisation, with_uint8_pixels
from clipmlu.specs import PreprocessSpec, TensorSpec, TowerName
from clipmlu.steps import counted

if TYPE_CHECKING:
    from clipmlu.graph.quantisation.calibrate import Ranges


def check_openable(backend: Backend, model: RunnableModel, tower: TowerName, options: SessionOptions) -> None:
    """Check that a graph's runtime, file and device allow opening it.

    Raises:
        BundleCorruptError: the tower's file is not an ONNX graph.
        BackendUnavailableError: the runtime cannot be used on this machine.
        OptionError: a device was chosen for a bundle that runs on the CPU.
    """
    availability = backend.probe()
    if not availability.ok:
        raise BackendUnavailableError(f"Bundle '{model.path}' runs on {backend.name}: {availability.reason}.")
    # With another suffix a runtime accepts other formats as well, and ``open_bundle`` has checked only ONNX files.
    if not model.tower(tower).file.endswith(GRAPH_SUFFIX):
        raise BundleCorruptError(
            f"Manifest of '{model.path}' has the file '{model.tower(tower).file}' for {backend.name}, which takes "
            f"'*{GRAPH_SUFFIX}'. Make the bundle again."
        )
    # With --text-target the device is for the image tower.
    if options.device and model.compilation.backend == backend.name:
        raise OptionError(f"device is {options.device}, but bundle '{model.path}' runs on the CPU; leave it out")


def runtime_path(path: Path) -> str:
    """Return a graph's path as the runtimes accept it.

    Raises:
        BundleError: the path is not UTF-8; the runtimes' Python interfaces accept text only.
    """
    text = str(path)
    if any("\udc80" <= each <= "\udcff" for each in text):  # Python's form of such bytes (PEP 383)
        raise BundleError(
            f"The path '{name_from_path(path)}' is no UTF-8, which the runtimes cannot open. Rename the folder, or move the bundle."
        )
    return text


def copy_graph(graph: SourceGraph, options: GraphOptions, directory: Path) -> CompiledGraph:
    """Copy a graph and its weights, write static sizes into it, and add uint8 input if requested.

    Args:
        graph: the canonical graph.
        options: the shapes and the pixels.
        directory: folder of the new files.
    """
    spec = graph.tower
    with options.on_step("writing the graph"):
        for path in graph.data_files:
            shutil.copyfile(path, directory / path.name)
        if options.dynamic_shape:
            shutil.copyfile(graph.path, directory / spec.file)
            return _with_pixel_input(CompiledGraph(tower=spec), options, directory)
        sizes = static_sizes(spec, options)
        _write_static(graph.path, directory / spec.file, sizes)
        return _with_pixel_input(CompiledGraph(tower=_tower_with_sizes(spec, sizes)), options, directory)


def write_mode(graph: SourceGraph, options: GraphOptions, directory: Path) -> CompiledGraph:
    """Rewrite a graph for a precision mode; onnxruntime calibrates it if the mode quantises.

    Args:
        graph: the lowered graph.
        options: precision, shapes, pixels, quantisation options and calibration data.
        directory: folder of the new file.

    Raises:
        CalibrationError: calibration data are missing or do not fit.
    """
    import onnx

    from clipmlu.graph.index import save_model
    from clipmlu.graph.quantisation.calibrate import RangeOptions, collect_ranges
    from clipmlu.graph.quantisation.rewrite import quantised_tensors, rewrite_for_runtime

    model = onnx.load(str(graph.path))
    bits, how = options.precision.bits, options.quantisation
    ranges: Ranges = {}
    if bits is not None:
        names = quantised_tensors(model, without=frozenset(options.node_types))
        range_options = RangeOptions(bits=bits, algorithm=how.algorithm)
        total = range_options.passes * count_calibration_batches(graph.tower, options.calibration)
        with options.on_step("calibrating", total=total, unit="batches") as step:
            ranges, _ = collect_ranges(
                model,
                names,
                lambda: counted(calibration_batches(graph.tower, options.calibration), step),
                range_options,
            )
    with options.on_step("writing the graph"):
        rewritten, record = rewrite_for_runtime(model, options.precision, how, ranges, options.node_types)
        save_model(rewritten, directory / graph.tower.file)
    tower = _tower_with_sizes(graph.tower, {} if options.dynamic_shape else static_sizes(graph.tower, options))
    return _with_pixel_input(CompiledGraph(tower=tower, quantised=record), options, directory)


def _with_pixel_input(compiled: CompiledGraph, options: GraphOptions, directory: Path) -> CompiledGraph:
    return compiled if options.pixels is None else take_uint8(compiled, options.pixels, directory)


def _write_static(source: Path, destination: Path, sizes: Mapping[str, int]) -> None:
    """Replace variable axes by numbers in every declared shape; weights are not moved."""
    import onnx

    model = onnx.load(str(source), load_external_data=False)
    graph = model.graph
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in sizes:
                axis.dim_value = sizes[axis.dim_param]
    onnx.save(model, str(destination))


def _tower_with_sizes(tower: Tower, sizes: Mapping[str, int]) -> Tower:
    return Tower(
        file=tower.file,
        inputs=tuple(_with_sizes(tensor, sizes) for tensor in tower.inputs),
        outputs=tuple(_with_sizes(tensor, sizes) for tensor in tower.outputs),
    )


def _with_sizes(tensor: TensorSpec, sizes: Mapping[str, int]) -> TensorSpec:
    shape = tuple(sizes.get(size, size) if isinstance(size, str) else size for size in tensor.shape)
    return TensorSpec(name=tensor.name, dtype=tensor.dtype, shape=shape)


def take_uint8(compiled: CompiledGraph, spec: PreprocessSpec, directory: Path) -> CompiledGraph:
    """Change a compiled ONNX file to take uint8 pixels; external weights are neither read nor moved.

    Args:
        compiled: a graph that takes normalised pixels.
        spec: the normalisation.
        directory: folder of its file.
    """
    import onnx

    path = directory / compiled.tower.file
    model = onnx.load(str(path), load_external_data=False)
    insert_normalisation(model, spec)
    onnx.save(model, str(path))
    return CompiledGraph(tower=with_uint8_pixels(compiled.tower), quantised=compiled.quantised)
