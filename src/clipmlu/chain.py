"""The steps of ``clipmlu run``: export, compile, evaluate. Results that are still valid are reused."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from clipmlu.arguments import as_path, check_argument, check_fields
from clipmlu.backends.provenance import Command
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle, open_exported
from clipmlu.bundle.manifest import emulated_mark
from clipmlu.classify.scoring import check_joint_templates
from clipmlu.compile.plan import CompilationPlan, CompileOptions, check_layout, plan_compilation
from clipmlu.data.datasets.choice import DatasetChoice
from clipmlu.data.prompts import resolve_templates
from clipmlu.display import counted, size_text
from clipmlu.embed.encoder import Encoder
from clipmlu.errors import BundleError, MissingDependencyError
from clipmlu.export.exporter import ExportOptions, export_model, identify_source, is_current
from clipmlu.export.source import resolve_source
from clipmlu.file_names import name_from_path
from clipmlu.files.publish import encode_json, write_file
from clipmlu.keys import make_key, options_key
from clipmlu.measure.accuracy.evaluate import EvalOptions, evaluate
from clipmlu.measure.accuracy.report import AccuracyReport
from clipmlu.measure.statistics import fraction_text
from clipmlu.specs import NaturalInt
from clipmlu.steps import StartStep, no_steps
from clipmlu.tune.bundles import obtain_bundle, obtain_compiled
from clipmlu.tune.resume import ResultStore
from clipmlu.tune.run_report import RunReport, Step

REPORT_NAME = "report.json"
PAGE_NAME = "report.html"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of a run.

    Attributes:
        export: options of the export.
        compile: options of the compilation.
        evaluate: options of the evaluation.
        dataset: dataset of the evaluation.
        threads: CPU threads per batch; 0 lets the runtime choose.
        html: also write the report as an HTML page and as Markdown, if the extra ``report`` is installed.
    """

    export: ExportOptions
    compile: CompileOptions
    evaluate: EvalOptions
    dataset: DatasetChoice
    threads: NaturalInt = 0
    html: bool = True

    def __post_init__(self) -> None:
        check_fields(self)


def run_chain(
    model: str,
    output: str | os.PathLike[str],
    options: RunOptions,
    *,
    on_note: Callable[[str], None] = lambda _message: None,
    on_warning: Callable[[str], None] | None = None,
    on_progress: Callable[[int], None] = lambda _count: None,
    on_result: Callable[[str], None] = lambda _name: None,
    on_step: StartStep = no_steps,
    command: Command | None = None,
) -> RunReport:
    """Export, compile and evaluate a model.

    A bundle in ``output`` is reused if it is unchanged and was made from the same content with the same options and
    versions. The content is the files of a local model, or the name, tag and seed of any other; the exported bundle;
    the calibration data.

    Args:
        model: as for ``export_model``.
        output: folder for the bundles, ``report.json``, and the page ``report.html`` with its Markdown.
        options: options of the run.
        on_note: called with a line for the user at each step.
        on_warning: called with what the export assumed, which decides whether the results are right; None for ``on_note``.
        on_progress: called with numbers of evaluated images; the first one is 0.
        on_result: called with the name of each bundle when it is made and recorded.
        on_step: begins each step that may take seconds, except the images of the evaluation; see ``clipmlu.steps``.
        command: the command line, for the report.

    Raises:
        ClipmluError: as the steps.
    """
    # Errors that can be found early are raised before the slow steps.
    output = as_path(output, "the output")
    check_argument(options, RunOptions, "options")
    plan = plan_compilation(options.compile)
    if plan.why_target:
        on_note(plan.why_target)
    check_layout(plan, options.export.layout)
    if options.export.layout == "joint":
        check_joint_templates(resolve_templates(options.evaluate.templates), f"'{model}'")
    resolve_source(model, options.export)
    with on_step(f"opening {name_from_path(options.dataset.name)}"):
        dataset = options.dataset.open()
    folder = output / model_folder_name(model, options.export)
    store = ResultStore(folder / "results", on_note, on_result)
    with store.lock():
        exported, export_step = _export(
            model, folder / "exported", options.export, store, on_note, on_warning or on_note, on_step
        )
        compiled, compile_step = _compile(
            exported, folder / compiled_folder_name(plan, options.compile), options.compile, store, on_note, on_step
        )
        start = time.perf_counter()
        session = dataclasses.replace(options.compile.session, threads=options.threads)
        with Encoder(compiled, session) as encoder:
            on_progress(0)
            accuracy = evaluate(
                encoder, dataset, options.evaluate, on_progress=on_progress, on_note=on_note, on_step=on_step
            )
        accuracy = msgspec.structs.replace(accuracy, command=command)
        eval_step = _step("eval", _accuracy_text(accuracy), folder / REPORT_NAME, start)
        report = RunReport(steps=(export_step, compile_step, eval_step), accuracy=accuracy)
        write_file(folder / REPORT_NAME, encode_json(report), overwrite=True)
        if options.html:
            _write_page(folder, on_note, on_step)
    return report


def _write_page(folder: Path, on_note: Callable[[str], None], on_step: StartStep) -> None:
    """Write the report as a page beside the JSON file, or say which extra is missing."""
    # It reads all kinds of reports, and what measures them imports onnx.
    from clipmlu.report.document.thumbnails import Thumbnails
    from clipmlu.report.inputs import read_inputs
    from clipmlu.report.write import check_report_packages, own_command, publish_report

    try:
        check_report_packages()
    except MissingDependencyError as error:
        on_note(f"no HTML report: {error}")
        return
    with on_step("writing the page"):
        source, page = folder / REPORT_NAME, folder / PAGE_NAME
        again = own_command([source], page, thumbnails=True, overwrite=True)
        written = publish_report(read_inputs([source]), page, Thumbnails(), command=again, overwrite=True)
    mark = emulated_mark(written.emulated)
    on_note(f"report: {written.path} ({size_text(written.size_bytes)}){mark}; as Markdown: {written.markdown_path}")


def _export(
    model: str,
    path: Path,
    options: ExportOptions,
    store: ResultStore,
    on_note: Callable[[str], None],
    on_warning: Callable[[str], None],
    on_step: StartStep,
) -> tuple[ExportedBundle, Step]:
    start = time.perf_counter()
    bundle, reused = obtain_exported(model, path, options, store, on_note, on_step, on_warning=on_warning)
    return bundle, _step("export", "reused" if reused else "made", path, start)


def obtain_exported(
    model: str,
    path: Path,
    options: ExportOptions,
    store: ResultStore,
    on_note: Callable[[str], None],
    on_step: StartStep = no_steps,
    *,
    on_warning: Callable[[str], None] | None = None,
) -> tuple[ExportedBundle, bool]:
    """Return the exported bundle at a path if its key is equal and it is unchanged; otherwise export the model.

    Returns:
        The bundle, and whether it was reused.

    Raises:
        ClipmluError: as ``export_model``.
    """

    def make(overwrite: bool) -> ExportedBundle:
        on_note(f"exporting {name_from_path(model)} to {name_from_path(path)}")
        replaced = dataclasses.replace(options, overwrite=overwrite)
        return export_model(model, path, replaced, on_note=on_warning or on_note, on_step=on_step)

    bundle, reused = obtain_bundle(
        path,
        store,
        export_key(model, options),
        lambda place: _open_current(place, options),
        make,
        overwrite=options.overwrite,
        on_note=on_note,
    )
    if reused:
        for line in bundle.manifest.export.notes:
            (on_warning or on_note)(line)
    return bundle, reused


def export_key(model: str, options: ExportOptions) -> dict[str, str]:
    """Return the key of an exported bundle without the versions that ``is_current`` compares."""
    identity, source_files = identify_source(model, options)
    return {
        **make_key(model=identity, source_files=source_files),
        **options_key(options, prefix="export.", without=("overwrite", "offline", "cache_dir")),
    }


def _open_current(path: Path, options: ExportOptions) -> ExportedBundle:
    bundle = open_exported(path)
    if not is_current(bundle, options):
        raise BundleError("it was exported by other versions of the tools, or from other files of the hub")
    return bundle


def _compile(
    exported: ExportedBundle,
    path: Path,
    options: CompileOptions,
    store: ResultStore,
    on_note: Callable[[str], None],
    on_step: StartStep,
) -> tuple[CompiledBundle, Step]:
    start = time.perf_counter()
    bundle, reused = obtain_compiled(exported, path, options, store, on_note, on_step)
    return bundle, _step("compile", "reused" if reused else "made", path, start)


def _step(name: str, result: str, path: Path, start: float) -> Step:
    return Step(name=name, result=result, elapsed_s=time.perf_counter() - start, path=name_from_path(path))


def _accuracy_text(accuracy: AccuracyReport) -> str:
    mark = emulated_mark(accuracy.provenance.emulated)
    return f"top-1 {fraction_text(accuracy.top1)} on {counted(accuracy.images, 'image')}{mark}"


def model_folder_name(model: str, options: ExportOptions) -> str:
    """Return the folder name of a model: its name, weights and layout; ``-`` replaces characters unsafe in file names."""
    random = f"random-{options.seed}" if options.random_weights else ""
    parts = [model, options.pretrained or "", random, "joint" if options.layout == "joint" else ""]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(part for part in parts if part)).strip("-.")


def compiled_folder_name(plan: CompilationPlan, options: CompileOptions) -> str:
    """Return the folder name of a compiled bundle: its target, precision and batches."""
    shape = f"1-{options.largest_batch}" if options.dynamic_shape else str(options.batch_size)
    pixels = "-uint8" if options.uint8_input else ""
    return f"{plan.main.target}-{plan.main.precision.value}-{shape}{pixels}"
