"""Compiling: every graph of an exported bundle through one backend, checked against the graphs it came from."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from clipmlu.arguments import check_argument, check_fields
from clipmlu.backends import Backend, Session, SessionOptions, backend_for_target, get_backend
from clipmlu.backends.base import CompiledGraph, GraphOptions, SourceGraph
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle, open_compiled, open_exported, stage_bundle
from clipmlu.bundle.manifest import (
    CALIBRATION_NAME,
    TOKENIZER_NAME,
    Compilation,
    Placement,
    SeenData,
    Tower,
    current_tool_versions,
)
from clipmlu.bundle.runnable import RunnableModel
from clipmlu.compile.checks import Thresholds, check_agreement
from clipmlu.compile.preparing import joint_row_macs, prepare_graph
from clipmlu.data.calibration import CalibrationOptions, CalibrationSet, obtain_calibration
from clipmlu.data.feeds import CalibrationData
from clipmlu.errors import (
    BackendUnavailableError,
    CalibrationError,
    CompileError,
    OptionError,
    PrecisionError,
    SessionError,
)
from clipmlu.graph.pixels import NORMALISATION_KEY
from clipmlu.graph.roles import Operator
from clipmlu.graph.selection import check_selections, parse_selection
from clipmlu.host import check_memory
from clipmlu.specs import (
    CalibrationRecord,
    GraphQuantisation,
    Layout,
    MluBuild,
    PositiveInt,
    Precision,
    QuantisationOptions,
    TowerName,
)

DEFAULT_BATCH_SIZE = 32
DEFAULT_MAX_BATCH = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """How to compile; validated on construction.

    Attributes:
        target: ``cpu``, ``openvino``, ``mlu``, ``emulated-mlu``, or ``auto`` for the first target that can be used here and
            offers the precision.
        precision: arithmetic of the compiled graphs.
        batch_size: rows of a batch; the fixed size when static, the preferred one when dynamic.
        dynamic_shape: take any batch of 1..``max_batch`` rows; otherwise partial batches are padded and trimmed.
        max_batch: the largest batch when dynamic; None stands for 64, or ``batch_size`` if that is larger.
        text_target: where the text tower runs; None for ``target``. It is compiled in float32 there.
        mlu: how to build for MLU cards; None for the defaults. Other targets take none.
        quantisation: how the modes that quantise do it; None for the defaults. Other modes take none.
        calibration: data for the modes that quantise: which, or the set itself.
        calibration_digest: that the calibration data must have; None for any.
        seen_images: content digests of images that had a say in the other options, and are not to be evaluated either.
        calibration_server: ``ip:port`` of a card that calibrates for a host without one.
        min_cosine: smallest cosine similarity of a compiled embedding and its float32 reference; None for the
            precision's own bound, ``parity.MIN_COSINE``.
        min_agreement: smallest share of images whose best class is the same as in float32; None for the precision's own,
            ``parity.MIN_AGREEMENT``.
        check: run the compiled graphs before they are published; False to build for a card that is not here.
        uint8_input: let the graph that takes images take their pixels as uint8, a quarter of the bytes, and normalise them
            itself.
        session: where to compile: the card and the worker.
        overwrite: replace a bundle at the output path.
    """

    target: str = "auto"
    precision: Precision = Precision.FORCE_FLOAT32
    batch_size: PositiveInt = DEFAULT_BATCH_SIZE
    dynamic_shape: bool = True
    max_batch: PositiveInt | None = None
    text_target: str | None = None
    mlu: MluBuild | None = None
    quantisation: QuantisationOptions | None = None
    calibration: CalibrationOptions | CalibrationSet | None = None
    calibration_digest: str | None = None
    seen_images: tuple[str, ...] = ()
    calibration_server: str | None = None
    min_cosine: float | None = None
    min_agreement: float | None = None
    check: bool = True
    uint8_input: bool = False
    session: SessionOptions = dataclasses.field(default_factory=lambda: SessionOptions(busy_wait=False))
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.max_batch is not None and not self.dynamic_shape and self.max_batch != self.batch_size:
            raise OptionError(
                f"max batch is {self.max_batch}, but a static shape takes exactly {self.batch_size}; leave one of them out"
            )
        if self.batch_size > self.largest_batch:
            raise OptionError(
                f"batch size {self.batch_size} is larger than max batch {self.max_batch}; raise --max-batch"
            )
        if self.min_cosine is not None and not -1 <= self.min_cosine <= 1:
            raise OptionError(f"smallest cosine is {self.min_cosine}; expected -1 to 1")
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise OptionError(f"smallest agreement is {self.min_agreement}; expected 0 to 1")

    @property
    def largest_batch(self) -> int:
        """The largest batch that the compiled bundle takes."""
        if not self.dynamic_shape:
            return self.batch_size
        return self.max_batch if self.max_batch is not None else max(DEFAULT_MAX_BATCH, self.batch_size)


def compile_bundle(
    source: str | os.PathLike[str] | ExportedBundle,
    output: str | os.PathLike[str],
    options: CompileOptions | None = None,
) -> CompiledBundle:
    """Compile an exported bundle for one target.

    Args:
        source: the exported bundle, or its path.
        output: directory of the compiled bundle.
        options: how; the defaults of ``CompileOptions`` if None.

    Returns:
        The compiled bundle, published and verified.

    Raises:
        PrecisionError: the target does not offer the precision.
        OptionError: options that mean nothing for the target.
        CompileError: a graph cannot be expressed on the target.
        CalibrationError: a mode that quantises has no calibration data, or they do not fit.
        BackendUnavailableError: the target's runtime cannot be used here.
        BundleExistsError: the output is taken.
        GateError: the compiled graphs do not agree with the exported ones; nothing is published.
    """
    options = check_argument(options, CompileOptions | None, "options") or CompileOptions()
    plan = plan_compilation(options)
    exported = source if isinstance(source, ExportedBundle) else open_exported(source)
    check_layout(plan, exported.manifest.layout)
    if options.check or options.calibration is not None:
        image = exported.manifest.preprocess
        needed = options.batch_size * 3 * image.height * image.width * np.dtype(np.float32).itemsize
        check_memory(needed, f"batches of {options.batch_size} images")
    with stage_bundle(output, overwrite=options.overwrite) as staging:
        calibration = _obtain(exported, options)
        steps = [_Step(exported, name, plan, options, calibration) for name in exported.manifest.towers]
        made = {step.name: step.compile(staging.path) for step in steps}
        _check_kept_float(plan, [step.operators for step in steps if step.precision.bits is not None])
        shutil.copyfile(exported.tokenizer_path, staging.path / TOKENIZER_NAME)
        if calibration is not None:
            images = sorted({*calibration.images, *options.seen_images})
            seen = SeenData(images=tuple(images), prompts=calibration.prompts)
            (staging.path / CALIBRATION_NAME).write_bytes(msgspec.json.encode(seen))
        facts = plan.facts(options, exported.digest, None if calibration is None else calibration.record)
        quantised = {name: record for name, (_tower, record) in made.items() if record is not None}
        facts = msgspec.structs.replace(facts, quantised=quantised, row_macs=joint_row_macs(exported))
        packages = sorted({package for step in steps for package in step.backend.packages})
        draft = msgspec.structs.replace(
            exported.manifest,
            kind="compiled",
            towers={name: tower for name, (tower, _record) in made.items()},
            compilation=facts,
            files=staging.records(),
            tool_versions=exported.manifest.tool_versions
            | current_tool_versions(*packages)
            | {name: version for step in steps for name, version in step.versions.items()},
        )
        if options.check:
            compiled = RunnableModel(
                path=staging.path,
                tokenizer_path=staging.path / TOKENIZER_NAME,
                facts=exported.manifest,
                towers=draft.towers,
                compilation=facts,
            )
            by_name = {step.name: step for step in steps}
            checked = check_agreement(
                exported,
                compiled,
                lambda name: _open_compiled(compiled, by_name[name], options),
                {step.name: step.precision for step in steps},
                calibration,
                Thresholds(min_cosine=options.min_cosine, min_agreement=options.min_agreement),
            )
            facts = msgspec.structs.replace(facts, parity=checked.parity, agreement=checked.agreement)
        staging.finish(msgspec.structs.replace(draft, compilation=facts))
    return open_compiled(output, verify=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompilationPlan:
    """Where each tower goes.

    Attributes:
        main: where everything goes, but for what follows.
        text_tower: where the text tower goes if not there.
        mlu: how to build for MLU cards, or None when nothing is.
        quantisation: how the mode quantises, or None for one that does not.
    """

    main: Placement
    text_tower: Placement | None
    mlu: MluBuild | None
    quantisation: QuantisationOptions | None

    def placement(self, tower: TowerName) -> Placement:
        """Where a tower goes."""
        return self.text_tower if tower == "text" and self.text_tower is not None else self.main

    def facts(self, options: CompileOptions, source_digest: str, calibration: CalibrationRecord | None) -> Compilation:
        """The manifest's record, before anything is measured."""
        emulated = self.main.emulated or (self.text_tower is not None and self.text_tower.emulated)
        return Compilation(
            target=self.main.target,
            backend=self.main.backend,
            precision=self.main.precision,
            dynamic_shape=options.dynamic_shape,
            batch_size=options.batch_size,
            max_batch=options.largest_batch,
            emulated=emulated,
            source_digest=source_digest,
            parity=(),
            text_tower=self.text_tower,
            mlu=self.mlu,
            quantisation=self.quantisation,
            calibration=calibration,
            uint8_input=options.uint8_input,
        )


def plan_compilation(options: CompileOptions) -> CompilationPlan:
    """Decide where each tower goes, before anything slow begins.

    Raises:
        UnknownNameError: there is no such target.
        BackendUnavailableError: its runtime cannot be used here.
        PrecisionError: it does not offer the precision.
        OptionError: options that mean nothing for it.
        CalibrationError: a mode that quantises has no calibration data.
    """
    if options.precision.bits is None:
        _refuse_quantisation(options)
    target, backend = backend_for_target(options.target, options.precision)
    if options.precision not in backend.precisions:
        offered = ", ".join(each.value for each in backend.precisions)
        raise PrecisionError(
            f"Target '{target}' does not offer the precision '{options.precision.value}' yet. It offers: {offered}. "
            f"{backend.why_not(options.precision)}".rstrip()
        )
    if options.precision.bits is not None and options.calibration is None:
        raise CalibrationError(
            f"The precision {options.precision.value} needs calibration data: give --calib DATASET, "
            "or --calib imagefolder:PATH of images that you do not evaluate later."
        )
    if not backend.has_cards and options.mlu is not None:
        raise OptionError(f"target '{target}' has no MLU cards; leave the options for building for cards out")
    if options.mlu is not None:
        _refuse_normalisation(options.mlu)
    main = Placement(target=target, backend=backend.name, precision=options.precision, emulated=backend.emulated)
    mlu = (options.mlu or MluBuild()) if backend.has_cards else None
    quantisation = (options.quantisation or QuantisationOptions()) if options.precision.bits is not None else None
    return CompilationPlan(main=main, text_tower=_place_text(options, main), mlu=mlu, quantisation=quantisation)


def check_layout(plan: CompilationPlan, layout: Layout) -> None:
    """Refuse a place of its own for a text tower that a layout does not have.

    Raises:
        OptionError: the layout is ``joint``.
    """
    if plan.text_tower is not None and layout == "joint":
        raise OptionError("the joint layout has no separate text tower; leave --text-target out")


def _refuse_quantisation(options: CompileOptions) -> None:
    if options.calibration is not None:
        raise OptionError(f"precision {options.precision.value} quantises nothing; leave --calib out")
    if options.quantisation is not None:
        raise OptionError(
            f"precision {options.precision.value} quantises nothing; leave the options for how to quantise out"
        )


def _refuse_normalisation(mlu: MluBuild) -> None:
    """The SDK makes an input uint8 by a key of its configuration; only we know that the manifest has to say so too."""
    wrapped = mlu.build_config.get("builder_config")
    if NORMALISATION_KEY in mlu.build_config or (isinstance(wrapped, dict) and NORMALISATION_KEY in wrapped):
        raise OptionError(
            f"the build configuration has '{NORMALISATION_KEY}', which --uint8-input writes with the model's own mean and "
            "standard deviation; leave it out of --build-config, and give --uint8-input for uint8 pixels"
        )


def _place_text(options: CompileOptions, main: Placement) -> Placement | None:
    if options.text_target is None or options.text_target == main.target:
        return None
    target, backend = backend_for_target(options.text_target, Precision.FORCE_FLOAT32)
    if backend.has_cards:
        raise OptionError(
            f"text target is '{target}'; expected cpu or openvino, or nothing for the same as the image tower"
        )
    return Placement(target=target, backend=backend.name, precision=Precision.FORCE_FLOAT32, emulated=backend.emulated)


class _Step:
    """The compilation of one tower."""

    def __init__(
        self,
        exported: ExportedBundle,
        name: TowerName,
        plan: CompilationPlan,
        options: CompileOptions,
        calibration: CalibrationSet | None,
    ) -> None:
        self.name = name
        self.precision = plan.placement(name).precision
        self.backend: Backend = get_backend(plan.placement(name).backend)
        self._exported = exported
        mlu = plan.mlu or MluBuild()
        self.operators: tuple[Operator, ...] = ()
        self.versions: dict[str, str] = {}
        feeds: dict[str, CalibrationData] = {}
        if calibration is not None and self.precision.bits is not None:
            feeds = calibration.feeds(exported, name, options.batch_size, mlu.text_rows)
        self._options = GraphOptions(
            precision=self.precision,
            dynamic_shape=options.dynamic_shape,
            batch_size=options.batch_size,
            max_batch=options.largest_batch,
            mlu=mlu,
            quantisation=plan.quantisation or QuantisationOptions(),
            calibration=feeds,
            pixels=exported.manifest.preprocess if options.uint8_input and name != "text" else None,
            calibration_server=options.calibration_server,
            session=options.session,
        )

    def compile(self, directory: Path) -> tuple[Tower, GraphQuantisation | None]:
        """Bring the graph into the form that the backend takes, and compile it."""
        tower = self._exported.tower(self.name)
        path = self._exported.tower_path(self.name)
        profile = self.backend.profile(self.precision)
        if profile is None:
            listed = self._exported.manifest.files
            data_files = tuple(self._exported.path / name for name in listed if name.startswith(f"{tower.file}."))
            graph = SourceGraph(name=self.name, path=path, tower=tower, data_files=data_files)
            return self._build(graph, self._options, directory).tower, None
        with tempfile.TemporaryDirectory(prefix="lowered-", dir=directory) as folder:
            graph = _lower(self.name, path, tower, Path(folder), profile, self._static_sizes(tower))
            if self.precision.bits is None or not self._options.calibration:
                return self._build(graph, self._options, directory).tower, None
            prepared = prepare_graph(graph, self._options, self._exported.manifest.logit_scale)
            self.operators = prepared.operators
            compiled = self._build(prepared.graph, prepared.options, directory)
            return compiled.tower, msgspec.structs.replace(prepared.record, tensors=dict(compiled.quantised))

    def _build(self, graph: SourceGraph, options: GraphOptions, directory: Path) -> CompiledGraph:
        compiled = self.backend.compile_tower(graph, options, directory)
        self.versions.update(compiled.versions)
        return compiled

    def _static_sizes(self, tower: Tower) -> dict[str, int] | None:
        """Sizes of the axes when no shape may vary; a graph keeps its dynamic axis otherwise."""
        if self._options.dynamic_shape:
            return None
        axes = {size for tensor in tower.inputs for size in tensor.shape if isinstance(size, str)}
        return {
            axis: self._options.mlu.text_rows if axis == "text_batch" else self._options.batch_size for axis in axes
        }


def _obtain(exported: ExportedBundle, options: CompileOptions) -> CalibrationSet | None:
    calibration = options.calibration
    if isinstance(calibration, CalibrationOptions):
        calibration = obtain_calibration(exported, calibration)
    if calibration is None:
        return None
    calibration.check_fits(exported)
    wanted, found = options.calibration_digest, calibration.record.digest
    if wanted and wanted != found:
        raise CalibrationError(
            f"The calibration data of '{calibration.record.dataset}' are not those of the recipe (digest {found[:12]}, "
            f"there {wanted[:12]}). Give the same data, or search again."
        )
    return calibration


def _check_kept_float(plan: CompilationPlan, towers: Sequence[tuple[Operator, ...]]) -> None:
    """A selection may name what only one tower has, but must name something."""
    if plan.quantisation is not None and towers:
        selections = [parse_selection(text) for text in plan.quantisation.keep_float]
        check_selections([operator for operators in towers for operator in operators], selections)


def _lower(
    name: TowerName, path: Path, tower: Tower, folder: Path, profile: str, sizes: dict[str, int] | None
) -> SourceGraph:
    from clipmlu.graph.lowering import PROFILES, lower_tower

    lowered = folder / tower.file
    lower_tower(path, lowered, PROFILES[profile], batch=sizes)
    return SourceGraph(name=name, path=lowered, tower=tower, data_files=tuple(folder.glob(f"{tower.file}.*")))


def _open_compiled(compiled: RunnableModel, step: _Step, options: CompileOptions) -> Session:
    try:
        return step.backend.open(compiled, step.name, options.session)
    except (SessionError, BackendUnavailableError) as error:
        if not step.backend.has_cards:
            raise
        raise CompileError(
            f"The {step.name} tower was built, but cannot be checked here: {str(error).rstrip('.')}. "
            "To build for a card that is not here, leave the check out: --no-check"
        ) from error
