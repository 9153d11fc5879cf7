"""Compiling every graph of an exported bundle with a backend, and comparing it with the exported graph."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from clipmlu.arguments import check_argument
from clipmlu.backends import Backend, Session, get_backend
from clipmlu.backends.base import CompiledGraph, GraphOptions, SourceGraph
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle, open_compiled, open_exported, stage_bundle
from clipmlu.bundle.manifest import (
    CALIBRATION_NAME,
    TOKENIZER_NAME,
    SeenData,
    Tower,
    current_tool_versions,
)
from clipmlu.bundle.runnable import RunnableModel
from clipmlu.compile.checks import Agreement, Thresholds, check_agreement
from clipmlu.compile.lowered_graph import (
    check_batch_fits,
    check_kept_float,
    graph_options,
    lower_for_target,
    obtain_data,
)
from clipmlu.compile.plan import CompilationPlan, CompileOptions, check_layout, plan_compilation
from clipmlu.data.calibration_set import CalibrationSet
from clipmlu.data.resize.order import pillow_versions
from clipmlu.data.tokenizer import Tokenizer
from clipmlu.errors import (
    BackendUnavailableError,
    CompileError,
    SessionError,
)
from clipmlu.graph.roles import Operator
from clipmlu.host import require_graph_packages
from clipmlu.specs import (
    GraphQuantisation,
    TowerName,
)
from clipmlu.steps import StartStep, no_steps


def compile_bundle(
    source: str | os.PathLike[str] | ExportedBundle,
    output: str | os.PathLike[str],
    options: CompileOptions | None = None,
    *,
    on_note: Callable[[str], None] = lambda _message: None,
    on_step: StartStep = no_steps,
) -> CompiledBundle:
    """Compile an exported bundle for one target.

    Args:
        source: the exported bundle, or its path.
        output: directory of the compiled bundle.
        options: options of the compilation; defaults if None.
        on_note: called with a line about the target that ``auto`` took.
        on_step: begins each step that may take seconds; see ``clipmlu.steps``.

    Returns:
        The compiled bundle, published and verified.

    Raises:
        PrecisionError: the target does not offer the precision.
        OptionError: an option does not apply to the target.
        CompileError: a graph cannot be expressed on the target.
        CalibrationError: the calibration data do not fit.
        BackendUnavailableError: the target's runtime cannot be used on this machine.
        MissingDependencyError: the packages that read and write graphs are not installed, or the check's tokenizer needs one.
        BundleExistsError: the output path already exists.
        GateError: the compiled graphs do not agree with the exported ones; nothing is published.
    """
    require_graph_packages("Compiling a bundle")
    from clipmlu.compile.preparing import joint_row_macs

    options = check_argument(options, CompileOptions | None, "options") or CompileOptions()
    plan = plan_compilation(options)
    exported = source if isinstance(source, ExportedBundle) else _open(source, on_step)
    check_layout(plan, exported.manifest.layout)
    if plan.why_target:
        on_note(plan.why_target)
    if options.check or options.calibration is not None:
        check_batch_fits(exported, options)
    if options.check:  # it tokenizes prompts, after all that is slow
        Tokenizer.load(exported.tokenizer_path, exported.manifest.tokenizer)
    with stage_bundle(output, overwrite=options.overwrite) as staging, contextlib.ExitStack() as connections:
        calibration = obtain_data(exported, options, on_step)
        steps = [_Step(exported, name, plan, options, calibration, on_step) for name in exported.manifest.towers]
        for backend in {step.backend.name: step.backend for step in steps}.values():
            connections.enter_context(backend.connected(options.session))
        made = {step.name: step.compile(staging.path) for step in steps}
        check_kept_float(plan.quantisation, [step.operators for step in steps if step.precision.bits is not None])
        shutil.copyfile(exported.tokenizer_path, staging.path / TOKENIZER_NAME)
        if calibration is not None:
            _write_seen_data(calibration, options, staging.path)
        towers = {name: tower for name, (tower, _record) in made.items()}
        facts = msgspec.structs.replace(
            plan.facts(options, exported.digest, None if calibration is None else calibration.record),
            quantised={name: record for name, (_tower, record) in made.items() if record is not None},
            row_macs=joint_row_macs(exported),
        )
        with on_step("computing digests"):
            files = staging.records()
        if options.check:
            compiled = RunnableModel(
                path=staging.path,
                tokenizer_path=staging.path / TOKENIZER_NAME,
                facts=exported.manifest,
                towers=towers,
                compilation=facts,
            )
            found = _check(exported, compiled, steps, calibration, options, on_step)
            facts = msgspec.structs.replace(facts, parity=found.parity, agreement=found.agreement)
        manifest = msgspec.structs.replace(
            exported.manifest,
            kind="compiled",
            towers=towers,
            compilation=facts,
            files=files,
            tool_versions=_tool_versions(exported, steps),
        )
        staging.finish(manifest)
    return open_compiled(output, verify=False)


class _Step:
    """The compilation of one tower."""

    def __init__(
        self,
        exported: ExportedBundle,
        name: TowerName,
        plan: CompilationPlan,
        options: CompileOptions,
        calibration: CalibrationSet | None,
        on_step: StartStep,
    ) -> None:
        self.name = name
        self.precision = plan.placement(name).precision
        self.backend: Backend = get_backend(plan.placement(name).backend)
        self._exported = exported
        self.operators: tuple[Operator, ...] = ()
        self.versions: dict[str, str] = {}
        self._options = graph_options(
            exported,
            name,
            options,
            precision=self.precision,
            mlu=plan.mlu,
            quantisation=plan.quantisation,
            calibration=calibration,
            on_step=on_step,
        )

    def compile(self, directory: Path) -> tuple[Tower, GraphQuantisation | None]:
        """Lower the graph for the backend, and compile it."""
        with self._options.on_step(f"compiling the {self.name} tower"):
            return self._compile(directory)

    def _compile(self, directory: Path) -> tuple[Tower, GraphQuantisation | None]:
        tower = self._exported.tower(self.name)
        path = self._exported.tower_path(self.name)
        if self.backend.profile(self.precision) is None:
            listed = self._exported.manifest.files
            data_files = tuple(self._exported.path / name for name in listed if name.startswith(f"{tower.file}."))
            graph = SourceGraph(name=self.name, path=path, tower=tower, data_files=data_files)
            return self._build(graph, self._options, directory).tower, None
        with tempfile.TemporaryDirectory(prefix="lowered-", dir=directory) as folder:
            prepared = lower_for_target(self._exported, self.name, self.backend, self._options, Path(folder))
            self.operators = prepared.operators
            compiled = self._build(prepared.graph, prepared.options, directory)
        record = prepared.record
        if record is None:
            return compiled.tower, None
        return compiled.tower, msgspec.structs.replace(record, tensors=dict(compiled.quantised))

    def _build(self, graph: SourceGraph, options: GraphOptions, directory: Path) -> CompiledGraph:
        compiled = self.backend.compile_tower(graph, options, directory)
        self.versions.update(compiled.versions)
        return compiled


def _write_seen_data(calibration: CalibrationSet, options: CompileOptions, folder: Path) -> None:
    """Write the digests of the calibration and search images, and the prompts."""
    images = sorted({*calibration.images, *options.seen_images})
    seen = SeenData(images=tuple(images), prompts=calibration.prompts)
    (folder / CALIBRATION_NAME).write_bytes(msgspec.json.encode(seen))


def _tool_versions(exported: ExportedBundle, steps: Sequence[_Step]) -> dict[str, str]:
    """Return the versions of all tools of the export and the compilation."""
    packages = sorted({package for step in steps for package in step.backend.packages})
    of_sdks = {name: version for step in steps for name, version in step.versions.items()}
    return exported.manifest.tool_versions | current_tool_versions(*packages) | pillow_versions() | of_sdks


def _check(
    exported: ExportedBundle,
    compiled: RunnableModel,
    steps: Sequence[_Step],
    calibration: CalibrationSet | None,
    options: CompileOptions,
    on_step: StartStep,
) -> Agreement:
    """Compare the compiled graphs with the exported ones.

    Raises:
        GateError: they do not agree.
    """
    by_name = {step.name: step for step in steps}
    return check_agreement(
        exported,
        compiled,
        lambda name: _open_compiled(compiled, by_name[name], options),
        {step.name: step.precision for step in steps},
        calibration,
        Thresholds(min_cosine=options.min_cosine, min_agreement=options.min_agreement),
        on_step,
    )


def _open(source: str | os.PathLike[str], on_step: StartStep) -> ExportedBundle:
    with on_step("verifying the exported bundle"):
        return open_exported(source)


def _open_compiled(compiled: RunnableModel, step: _Step, options: CompileOptions) -> Session:
    try:
        return step.backend.open(compiled, step.name, options.session)
    except (SessionError, BackendUnavailableError) as error:
        if not step.backend.has_cards:
            raise
        raise CompileError(
            f"The {step.name} tower was built, but cannot be checked here: {str(error).rstrip('.')}. "
            "To build without running the graphs, add --no-check"
        ) from error
