"""Accuracy, speed and size over precisions and batch sizes, from one exported bundle; interrupted sweeps go on.

In the output directory are a bundle for each precision, ``results/`` with one file for each accuracy and each cell, and
the report as ``sweep.json`` and ``sweep.md``. A file is taken as it is when the bundle, the options, the versions and the
machine are those it was made with.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import msgspec

from clipmlu.arguments import as_path, check_argument, check_fields
from clipmlu.backends import SessionOptions, backend_for_target, runtime_versions
from clipmlu.backends.provenance import make_provenance
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle, open_exported
from clipmlu.classify.scoring import check_joint_templates
from clipmlu.compile.compiler import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_MAX_BATCH,
    CompileOptions,
    compile_bundle,
    plan_compilation,
)
from clipmlu.compile.reuse import reusable_compilation
from clipmlu.data.datasets import DATASETS, Dataset, check_dataset
from clipmlu.data.images import content_digest
from clipmlu.data.prompts import resolve_templates
from clipmlu.embed.encoder import Encoder
from clipmlu.errors import BundleExistsError, ClipmluError, GateError, OptionError, OutputError
from clipmlu.file_names import name_from_path, printable
from clipmlu.files.publish import encode_json, write_file, write_files
from clipmlu.files.read import read_kept, sealed
from clipmlu.keys import options_digest, value_digest
from clipmlu.measure.accuracy.evaluate import EvalOptions, evaluate
from clipmlu.measure.accuracy.report import AccuracyReport
from clipmlu.measure.machine import describe_machine
from clipmlu.measure.samples import choose_images
from clipmlu.measure.speed.loaded import make_samples, open_graph
from clipmlu.measure.speed.scenarios import Graph, Limits, milliseconds, percentile, run_offline, run_streams
from clipmlu.specs import NaturalInt, PositiveInt, Precision
from clipmlu.tune.resume import AccuracyKey, Cell, CellKey, KeptAccuracy, Repetition
from clipmlu.tune.sweep_report import SweepReport, SweepRow, mark_front, render_markdown

_IN_FLIGHT = 2
_FEWEST_BATCHES = 3

Note = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What to sweep over; validated on construction.

    Attributes:
        compile: how to compile; precision, batch sizes and shape are the sweep's own, and what is about quantising is left
            out of precisions that quantise nothing.
        precisions: each becomes one bundle.
        batch_sizes: each is measured on every bundle.
        evaluate: how to measure accuracy.
        threads: CPU threads for one batch; 0 leaves it to the runtime.
        repetitions: of each cell.
        duration_ms: of one repetition; latency takes half as long again.
    """

    compile: CompileOptions
    precisions: tuple[Precision, ...]
    batch_sizes: tuple[PositiveInt, ...]
    evaluate: EvalOptions = dataclasses.field(default_factory=EvalOptions)
    threads: NaturalInt = 0
    repetitions: PositiveInt = 3
    duration_ms: NaturalInt = 1000

    def __post_init__(self) -> None:
        check_fields(self)
        for name, values in (("precisions", self.precisions), ("batch sizes", self.batch_sizes)):
            if not values or len(set(values)) != len(values):
                raise OptionError(
                    f"{name} are {[str(getattr(v, 'value', v)) for v in values]}; expected different ones"
                )
        quantising = any(precision.bits is not None for precision in self.precisions)
        if not quantising and (self.compile.calibration is not None or self.compile.quantisation is not None):
            raise OptionError("none of the precisions quantises; leave the options for how to quantise out")

    @property
    def session(self) -> SessionOptions:
        """How sessions are opened to measure."""
        return dataclasses.replace(self.compile.session, threads=self.threads, in_flight=_IN_FLIGHT)

    def for_precision(self, precision: Precision) -> CompileOptions:
        """How one bundle is compiled."""
        changes: dict[str, object] = {} if precision.bits is not None else {"calibration": None, "quantisation": None}
        return dataclasses.replace(
            self.compile,
            precision=precision,
            batch_size=DEFAULT_BATCH_SIZE,
            dynamic_shape=True,
            max_batch=max(DEFAULT_MAX_BATCH, *self.batch_sizes),
            **changes,  # type: ignore[arg-type]
        )


class _Variant:
    """One precision: its bundle, its accuracy, and its cells; or why there are none."""

    def __init__(self, precision: Precision, name: str) -> None:
        self.precision = precision
        self.name = name
        self.bundle: CompiledBundle | None = None
        self.accuracy: AccuracyReport | None = None
        self.cells: dict[Path, Cell] = {}
        self.failure: ClipmluError | None = None

    def fail(self, error: ClipmluError, on_note: Note) -> None:
        on_note(f"{self.precision.value}: {error}")
        self.failure = error

    def rows(self, *, emulated: bool) -> list[SweepRow]:
        if self.failure is not None or self.bundle is None:
            gate = self.failure is not None and self.failure.exit_code == GateError.exit_code
            reason = " ".join(printable(str(self.failure)).split())
            return [SweepRow(precision=self.precision, emulated=emulated, failure=reason, gate_failed=gate)]
        return [_row(self.bundle, self.accuracy, cell) for cell in self.cells.values()]


def run_sweep(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: SweepOptions,
    dataset: Dataset | None = None,
    *,
    on_note: Note = lambda _message: None,
) -> SweepReport:
    """Compile, evaluate and time every precision; see ``SweepOptions``.

    A precision that cannot be compiled or fails a gate is a row with the reason; the others go on.

    Args:
        source: the exported bundle.
        output: the directory.
        options: what to sweep over.
        dataset: what to measure accuracy on; None to leave that out.
        on_note: called with a line for people at each step.

    Raises:
        BundleError: there is no such bundle.
        BackendUnavailableError: the target's runtime cannot be used here.
        BundleExistsError: a bundle in ``output`` would have to be replaced, and overwriting was not asked for.
        OptionError: options that mean nothing for the target.
    """
    output = as_path(output, "the output")
    check_argument(options, SweepOptions, "options")
    if dataset is not None:
        check_dataset(dataset)
    exported = open_exported(source)
    if exported.manifest.layout == "joint":
        check_joint_templates(resolve_templates(options.evaluate.templates), f"bundle '{exported.path}'")
    target, backend = backend_for_target(options.compile.target)
    variants = [_Variant(precision, f"{target}-{precision.value}") for precision in options.precisions]
    for variant in variants:
        try:
            variant.bundle = _compile(
                exported, output / variant.name, options.for_precision(variant.precision), on_note
            )
            if dataset is not None:
                variant.accuracy = _evaluate(variant.bundle, output, variant.name, dataset, options, on_note)
            variant.cells = _open_cells(variant.bundle, output, variant.name, options, on_note)
        except (OptionError, BundleExistsError, OutputError):
            raise
        except ClipmluError as error:
            variant.fail(error, on_note)
    _measure(variants, options, on_note)
    accuracies = [variant.accuracy for variant in variants if variant.accuracy is not None]
    rows = [row for variant in variants for row in variant.rows(emulated=backend.emulated)]
    report = SweepReport(
        provenance=make_provenance(exported, target, None, [backend.name], (options.session.device,)),
        dataset=None if dataset is None else dataset.name,
        split=None if dataset is None else dataset.split,
        images=accuracies[0].images if accuracies else None,
        threads=options.threads,
        repetitions=options.repetitions,
        duration_ms=options.duration_ms,
        rows=mark_front(rows),
        machine=describe_machine(),
        skipped=accuracies[0].skipped if accuracies else (),
    )
    files = {output / "sweep.json": encode_json(report), output / "sweep.md": render_markdown(report).encode()}
    write_files(files, overwrite=True)
    return report


def _compile(exported: ExportedBundle, path: Path, options: CompileOptions, on_note: Note) -> CompiledBundle:
    plan = plan_compilation(options)
    bundle = reusable_compilation(exported, path, plan, options, on_note)
    if bundle is not None:
        on_note(f"reusing {name_from_path(path)}: its content matches")
        return bundle
    on_note(f"compiling {name_from_path(exported.path)} to {name_from_path(path)}")
    return compile_bundle(exported, path, options)


def _evaluate(
    bundle: CompiledBundle, output: Path, name: str, dataset: Dataset, options: SweepOptions, on_note: Note
) -> AccuracyReport:
    how = options.evaluate
    key = AccuracyKey(
        bundle_digest=bundle.digest,
        dataset=dataset.name,
        split=dataset.split,
        images=_images_digest(dataset, how),
        class_names=tuple(dataset.class_names),
        templates=resolve_templates(how.templates),
        max_pixels=dataset.max_pixels,
        evaluate=options_digest(how, without=("templates", "cache", "workers")),
        session=options_digest(options.session, without=("in_flight", "busy_wait")),
        tool_versions=_versions(bundle, options),
    )
    path = output / "results" / f"{name}.accuracy.json"
    kept = read_kept(path, KeptAccuracy, on_note)
    # The images of a folder may have changed since.
    if kept is not None and kept.key == key and dataset.name in DATASETS:
        on_note(f"reusing {name_from_path(path)}: same bundle, images and prompts")
        return kept.report
    on_note(f"evaluating {name_from_path(bundle.path)}")
    with Encoder(bundle, options.session) as encoder:
        report = evaluate(encoder, dataset, how, on_note=on_note)
    write_file(path, encode_json(sealed(KeptAccuracy(key=key, report=report))), overwrite=True)
    return report


def _images_digest(dataset: Dataset, how: EvalOptions) -> str:
    """Of the images that are evaluated and of their labels; empty for a folder, which is evaluated anew each time."""
    if dataset.name not in DATASETS:
        return ""
    indices = choose_images(dataset, how.samples, shuffle=how.shuffle, seed=how.seed)
    return value_digest([(content_digest(dataset.image(index)), int(dataset.label(index))) for index in indices])


def _open_cells(
    bundle: CompiledBundle, output: Path, name: str, options: SweepOptions, on_note: Note
) -> dict[Path, Cell]:
    """The cells of a bundle with the repetitions that are there already."""
    cells = {}
    for batch_size in options.batch_sizes:
        key = CellKey(
            bundle_digest=bundle.digest,
            batch_size=batch_size,
            session=options_digest(options.session),
            duration_ms=options.duration_ms,
            machine=describe_machine(),
            tool_versions=_versions(bundle, options),
        )
        path = output / "results" / f"{name}-b{batch_size}.json"
        kept = read_kept(path, Cell, on_note)
        known = kept.repetitions[: options.repetitions] if kept is not None and kept.key == key else ()
        cells[path] = Cell(key=key, repetitions=known)
    return cells


def _measure(variants: list[_Variant], options: SweepOptions, on_note: Note) -> None:
    """Measure all cells in turns, so that whatever else the machine does at a time spoils no single one of them."""
    done = sum(len(cell.repetitions) for variant in variants for cell in variant.cells.values())
    if done:
        on_note(f"reusing {done} repetition(s) that were measured before")
    for number in range(options.repetitions):
        for variant in variants:
            missing = [path for path, cell in variant.cells.items() if len(cell.repetitions) <= number]
            if variant.failure is not None or not missing:
                continue
            on_note(f"measuring {variant.name}, repetition {number + 1} of {options.repetitions}")
            try:
                _repeat(variant, missing, options)
            except OutputError:
                raise
            except ClipmluError as error:
                variant.fail(error, on_note)


def _repeat(variant: _Variant, missing: list[Path], options: SweepOptions) -> None:
    """One more repetition of some cells of a bundle, each written when it is done."""
    assert variant.bundle is not None, "it has cells"
    with Encoder(variant.bundle, options.session) as encoder:
        tower = encoder.bundle.image_graph
        graph = open_graph(encoder, tower, make_samples(encoder, tower, max(options.batch_sizes)))
        for path in missing:
            cell = variant.cells[path]
            repetition = _time(graph, cell.key.batch_size, options.duration_ms / 1e3)
            cell = msgspec.structs.replace(cell, repetitions=(*cell.repetitions, repetition))
            write_file(path, encode_json(sealed(cell)), overwrite=True)
            variant.cells[path] = cell


def _time(graph: Graph, batch_size: int, seconds: float) -> Repetition:
    run_offline([graph], batch_size, _IN_FLIGHT, Limits(1, seconds / 10))
    offline = run_offline([graph], batch_size, _IN_FLIGHT, Limits(_FEWEST_BATCHES, seconds))
    alone = run_streams([graph], batch_size, batch_size, Limits(_FEWEST_BATCHES, seconds / 2))
    return Repetition(
        images_per_second=offline.samples / offline.seconds,
        latency_ms=milliseconds(percentile(sorted(alone.latencies), 50)),
    )


def _row(bundle: CompiledBundle, accuracy: AccuracyReport | None, cell: Cell) -> SweepRow:
    rates = [repetition.images_per_second for repetition in cell.repetitions]
    file = bundle.tower(bundle.image_graph).file
    return SweepRow(
        precision=bundle.compilation.precision,
        batch_size=cell.key.batch_size,
        images_per_second=statistics.median(rates),
        slowest_images_per_second=min(rates),
        fastest_images_per_second=max(rates),
        latency_ms=statistics.median(repetition.latency_ms for repetition in cell.repetitions),
        top1=None if accuracy is None else accuracy.top1,
        top1_interval=None if accuracy is None else accuracy.top1_interval,
        image_tower_bytes=sum(
            record.size
            for name, record in bundle.manifest.files.items()
            if name == file or name.startswith(f"{file}.")  # weights and records beside it
        ),
        bundle_bytes=bundle.size_bytes,
        emulated=bundle.compilation.emulated,
    )


def _versions(bundle: CompiledBundle, options: SweepOptions) -> dict[str, str]:
    placements = [bundle.compilation.placement(tower) for tower in bundle.manifest.towers]
    return runtime_versions((placement.backend for placement in placements), options.session)
