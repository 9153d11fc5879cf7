"""The graph that a backend gets: lowered for its parser, and prepared for a mode that quantises."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clipmlu.backends import Backend
from clipmlu.backends.base import GraphOptions, SourceGraph, static_sizes
from clipmlu.bundle.directory import ExportedBundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.data.calibration import CalibrationOptions, obtain_calibration
from clipmlu.data.calibration_set import CalibrationSet
from clipmlu.data.feeds import CalibrationData
from clipmlu.errors import CalibrationError
from clipmlu.graph.roles import Operator
from clipmlu.graph.selection import check_selections, parse_selection
from clipmlu.host import check_memory
from clipmlu.specs import TEXT_AXIS, MluBuild, Precision, QuantisationOptions, TowerName
from clipmlu.steps import StartStep

if TYPE_CHECKING:  # it imports onnx
    from clipmlu.compile.preparing import PreparedGraph


def check_batch_fits(exported: ExportedBundle, options: CompileOptions) -> None:
    """Refuse batches of images that do not fit in memory, before anything slow begins.

    Raises:
        OptionError: they do not fit.
    """
    image = exported.manifest.preprocess
    needed = options.batch_size * 3 * image.height * image.width * np.dtype(np.float32).itemsize
    check_memory(needed, f"batches of {options.batch_size} images")


def obtain_data(exported: ExportedBundle, options: CompileOptions, on_step: StartStep) -> CalibrationSet | None:
    """Return the calibration data of a compilation, or None.

    Raises:
        CalibrationError: they do not fit the bundle, or are not those of the recipe.
    """
    calibration = options.calibration
    if isinstance(calibration, CalibrationOptions):
        calibration = obtain_calibration(exported, calibration, on_step)
    if calibration is None:
        return None
    calibration.check_fits(exported)
    wanted, found = options.calibration_digest, calibration.record.digest
    if wanted and wanted != found:
        raise CalibrationError(
            f"The calibration data of '{calibration.record.dataset}' differ from those of the recipe (digest {found[:12]}, "
            f"recipe: {wanted[:12]}). Give the same data, or search again."
        )
    return calibration


def graph_options(
    exported: ExportedBundle,
    name: TowerName,
    options: CompileOptions,
    *,
    precision: Precision,
    mlu: MluBuild | None,
    quantisation: QuantisationOptions | None,
    calibration: CalibrationSet | None,
    on_step: StartStep,
) -> GraphOptions:
    """Return the options of one graph's compilation.

    Args:
        exported: the exported bundle.
        name: name of the tower.
        options: options of the whole compilation.
        precision: arithmetic of this graph.
        mlu: build options for cards; None for the defaults.
        quantisation: resolved options of the quantisation; None without.
        calibration: the calibration data, or None.
        on_step: begins each step of the compilation.
    """
    build = mlu or MluBuild()
    feeds: dict[str, CalibrationData] = {}
    if calibration is not None and precision.bits is not None:
        feeds = calibration.feeds(exported, name, options.batch_size, build.text_rows)
    return GraphOptions(
        precision=precision,
        dynamic_shape=options.dynamic_shape,
        batch_size=options.batch_size,
        max_batch=options.largest_batch,
        mlu=build,
        quantisation=quantisation or QuantisationOptions(),
        calibration=feeds,
        pixels=exported.manifest.preprocess if options.uint8_input and name != "text" else None,
        calibration_server=options.calibration_server,
        session=options.session,
        on_step=on_step,
    )


def lower_for_target(
    exported: ExportedBundle, name: TowerName, backend: Backend, options: GraphOptions, folder: Path
) -> PreparedGraph:
    """Write the graph that a backend gets.

    For cards the number of texts of the fused graph is fixed in the file, too: one dimension of a model may vary (api 5,
    python_common README), which is the number of images.

    Args:
        exported: the exported bundle.
        name: name of the tower.
        backend: a backend that has a profile, which its parser reads.
        options: options of the graph's compilation.
        folder: folder of the graph's file, which has the name of the exported one.

    Raises:
        CompileError: the graph cannot be expressed in the profile.
        CalibrationError: the calibration data do not fit.
    """
    from clipmlu.compile.preparing import PreparedGraph, prepare_graph
    from clipmlu.graph.lowering import PROFILES, lower_tower

    profile = backend.profile(options.precision)
    assert profile is not None, "the canonical graph is not lowered"
    tower = exported.tower(name)
    path = folder / tower.file
    sizes = static_sizes(tower, options)
    if options.dynamic_shape:
        sizes = {axis: size for axis, size in sizes.items() if axis == TEXT_AXIS and backend.has_cards}
    with options.on_step("lowering"):
        lower_tower(exported.tower_path(name), path, PROFILES[profile], batch=sizes)
    graph = SourceGraph(name=name, path=path, tower=tower, data_files=tuple(folder.glob(f"{tower.file}.*")))
    if options.precision.bits is None or not options.calibration:
        return PreparedGraph(graph=graph, options=options)
    manifest = exported.manifest
    return prepare_graph(graph, options, manifest.logit_scale, manifest.preprocess)


def check_kept_float(quantisation: QuantisationOptions | None, towers: Sequence[tuple[Operator, ...]]) -> None:
    """Check that each selection matches an operator in at least one tower.

    Args:
        quantisation: options of the quantisation, or None.
        towers: the operators of each graph that is quantised.

    Raises:
        OptionError: a selection matches none.
    """
    if quantisation is not None and towers:
        selections = [parse_selection(text) for text in quantisation.keep_float]
        check_selections([operator for operators in towers for operator in operators], selections)
