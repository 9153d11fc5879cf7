"""The whole chain behind ``clipmlu run``: export, compile, evaluate, each reused where its result is still valid."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from clipmlu.arguments import as_path, check_argument, check_fields
from clipmlu.backends.provenance import emulated_mark
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle, check_output_free, open_exported
from clipmlu.classify.scoring import check_joint_templates
from clipmlu.compile.compiler import CompilationPlan, CompileOptions, check_layout, compile_bundle, plan_compilation
from clipmlu.compile.reuse import reusable_compilation
from clipmlu.data.class_names import FolderNames
from clipmlu.data.datasets import open_dataset
from clipmlu.data.images import DEFAULT_MAX_PIXELS
from clipmlu.data.prompts import resolve_templates
from clipmlu.embed.encoder import Encoder
from clipmlu.errors import BundleError, BundleNotFoundError
from clipmlu.export.exporter import ExportOptions, export_model, is_current
from clipmlu.file_names import name_from_path
from clipmlu.files.publish import encode_json, write_file
from clipmlu.measure.accuracy.evaluate import EvalOptions, evaluate
from clipmlu.measure.accuracy.report import AccuracyReport
from clipmlu.specs import NaturalInt, PositiveInt, Spec

REPORT_NAME = "report.json"


class Step(Spec, frozen=True, kw_only=True):
    """One step of a run.

    Attributes:
        name: ``export``, ``compile`` or ``eval``.
        result: ``made``, ``reused``, or what was measured.
        elapsed_s: wall time in seconds.
        path: where the result is.
    """

    name: str
    result: str
    elapsed_s: float
    path: str


class RunReport(Spec, frozen=True, kw_only=True):
    """What ``clipmlu run`` did and measured."""

    steps: tuple[Step, ...]
    accuracy: AccuracyReport


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run the chain.

    Attributes:
        export: options of the export.
        compile: options of the compilation.
        evaluate: options of the evaluation.
        dataset: the dataset's name.
        split: which part of it; None for the usual one.
        class_names: other names for its classes; see ``open_dataset``.
        folder_names: see ``open_dataset``.
        data_dir: where its files are; see ``open_dataset``.
        download: fetch what is not on this machine.
        threads: CPU threads per batch; 0 leaves it to the runtime.
        max_pixels: largest width x height of an image that is decoded.
    """

    export: ExportOptions
    compile: CompileOptions
    evaluate: EvalOptions
    dataset: str
    split: str | None = None
    class_names: FolderNames | None = None
    folder_names: bool = False
    data_dir: str | os.PathLike[str] | None = None
    download: bool = True
    threads: NaturalInt = 0
    max_pixels: PositiveInt = DEFAULT_MAX_PIXELS

    def __post_init__(self) -> None:
        check_fields(self)


def run_chain(
    model: str,
    output: str | os.PathLike[str],
    options: RunOptions,
    *,
    on_note: Callable[[str], None] = lambda _message: None,
    on_progress: Callable[[int], None] = lambda _count: None,
) -> RunReport:
    """Export, compile and evaluate a model.

    A bundle in ``output`` is reused when its files match their digests, it was made from the same source (the files of
    a local model, the name, tag and seed of any other) with the same options and versions, and for a compiled bundle, from the very
    exported bundle.

    Args:
        model: as for ``export_model``.
        output: folder for the bundles and ``report.json``.
        options: how.
        on_note: called with a line for people at each step.
        on_progress: called with numbers of evaluated images.

    Raises:
        ClipmluError: as the steps raise it.
    """
    # What can be known to be wrong is found before the slow steps begin.
    output = as_path(output, "the output")
    check_argument(options, RunOptions, "options")
    plan = plan_compilation(options.compile)
    check_layout(plan, options.export.layout)
    if options.export.layout == "joint":
        check_joint_templates(resolve_templates(options.evaluate.templates), f"'{model}'")
    dataset = open_dataset(
        options.dataset,
        options.split,
        class_names=options.class_names,
        folder_names=options.folder_names,
        data_dir=options.data_dir,
        download=options.download,
        size=options.evaluate.samples,
        seed=options.evaluate.seed,
        max_pixels=options.max_pixels,
    )
    folder = output / _slug(model, options.export)
    exported, export_step = _export(model, folder / "exported", options.export, on_note)
    compiled, compile_step = _compile(
        exported, folder / _compiled_name(plan, options.compile), plan, options.compile, on_note
    )
    start = time.perf_counter()
    session = dataclasses.replace(options.compile.session, threads=options.threads)
    with Encoder(compiled, session) as encoder:
        accuracy = evaluate(encoder, dataset, options.evaluate, on_progress=on_progress, on_note=on_note)
    mark = emulated_mark(accuracy.provenance.emulated)
    eval_step = Step(
        name="eval",
        result=f"top-1 {accuracy.top1:.4f} on {accuracy.images} images{mark}",
        elapsed_s=time.perf_counter() - start,
        path=name_from_path(folder / REPORT_NAME),
    )
    report = RunReport(steps=(export_step, compile_step, eval_step), accuracy=accuracy)
    write_file(folder / REPORT_NAME, encode_json(report), overwrite=True)
    return report


def _export(
    model: str, path: Path, options: ExportOptions, on_note: Callable[[str], None]
) -> tuple[ExportedBundle, Step]:
    start = time.perf_counter()
    reusable = _reusable_export(model, path, options, on_note)
    if reusable is None:
        on_note(f"exporting {name_from_path(model)} to {name_from_path(path)}")
        result, bundle = "made", export_model(model, path, options, on_note=on_note)
    else:
        on_note(f"reusing {name_from_path(path)}: its content matches")
        result, bundle = "reused", reusable
        for line in bundle.manifest.export.notes:
            on_note(line)
    return bundle, Step(name="export", result=result, elapsed_s=time.perf_counter() - start, path=name_from_path(path))


def _reusable_export(
    model: str, path: Path, options: ExportOptions, on_note: Callable[[str], None]
) -> ExportedBundle | None:
    try:
        bundle = open_exported(path)
    except BundleNotFoundError:
        check_output_free(path, overwrite=True)
        return None
    except BundleError as error:
        check_output_free(path, overwrite=True)
        on_note(f"not reusing {name_from_path(path)}: {error}")
        return None
    same = is_current(bundle, model, options)
    if not same:
        on_note(
            f"not reusing {name_from_path(path)}: it was made from another source, with other options or by other versions"
        )
    return bundle if same else None


def _compile(
    exported: ExportedBundle, path: Path, plan: CompilationPlan, options: CompileOptions, on_note: Callable[[str], None]
) -> tuple[CompiledBundle, Step]:
    start = time.perf_counter()
    reusable = reusable_compilation(exported, path, plan, options, on_note)
    if reusable is None:
        on_note(f"compiling {name_from_path(exported.path)} to {name_from_path(path)}")
        result, bundle = "made", compile_bundle(exported, path, options)
    else:
        on_note(f"reusing {name_from_path(path)}: its content matches")
        result, bundle = "reused", reusable
    return bundle, Step(name="compile", result=result, elapsed_s=time.perf_counter() - start, path=name_from_path(path))


def _slug(model: str, options: ExportOptions) -> str:
    """A folder name for a model: its name, weights and layout, with what no file name should have replaced."""
    random = f"random-{options.seed}" if options.random_weights else ""
    parts = [model, options.pretrained or "", random, "joint" if options.layout == "joint" else ""]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(part for part in parts if part)).strip("-.")


def _compiled_name(plan: CompilationPlan, options: CompileOptions) -> str:
    shape = f"1-{options.largest_batch}" if options.dynamic_shape else str(options.batch_size)
    pixels = "-uint8" if options.uint8_input else ""
    return f"{plan.main.target}-{plan.main.precision.value}-{shape}{pixels}"
