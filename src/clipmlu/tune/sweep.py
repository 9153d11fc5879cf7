"""Accuracy, speed and size over precisions and batch sizes, from one exported bundle. An interrupted sweep can resume.

The output directory has one bundle for each precision, ``results/`` with the stored results (see ``resume``), and the
report as ``sweep.json``.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import msgspec

from clipmlu.arguments import as_path, check_argument
from clipmlu.backends import choose_target
from clipmlu.backends.provenance import Command, make_provenance
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle, open_exported
from clipmlu.classify.scoring import check_joint_templates
from clipmlu.data.datasets import DATASETS, Dataset, check_dataset
from clipmlu.data.prompts import resolve_templates
from clipmlu.embed.encoder import Encoder
from clipmlu.errors import BundleExistsError, ClipmluError, GateError, MissingDependencyError, OptionError, OutputError
from clipmlu.file_names import name_from_path, printable
from clipmlu.files.publish import encode_json, output_errors, write_file
from clipmlu.host import require_graph_packages
from clipmlu.measure.accuracy.evaluate import evaluate
from clipmlu.measure.accuracy.report import AccuracyReport
from clipmlu.measure.machine import describe_machine
from clipmlu.measure.speed.loaded import make_samples, open_graph
from clipmlu.measure.speed.scenarios import Graph, Limits, milliseconds, percentile, run_offline, run_streams
from clipmlu.specs import Precision, Spec
from clipmlu.steps import StartStep, Step, counted, no_steps
from clipmlu.tune.bundles import obtain_compiled
from clipmlu.tune.resume import Key, Note, ResultStore
from clipmlu.tune.sweep_options import BATCHES_IN_FLIGHT, SweepOptions, accuracy_key, images_and_labels, timing_key
from clipmlu.tune.sweep_report import SweepReport, SweepRow, mark_front

TABLE_NAME = "sweep.md"
"""The report as a table, which ``clipmlu sweep`` writes; that of an earlier sweep is removed before the new report."""

_FEWEST_BATCHES = 3


class Repetition(Spec, frozen=True, kw_only=True):
    """Speed at one batch size: offline throughput, and median latency of a batch with no other in flight."""

    images_per_second: float
    latency_ms: float


def run_sweep(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: SweepOptions,
    dataset: Dataset | None = None,
    *,
    on_note: Note = lambda _message: None,
    on_result: Callable[[str], None] = lambda _name: None,
    on_step: StartStep = no_steps,
    command: Command | None = None,
) -> SweepReport:
    """Compile, evaluate and time every precision; see ``SweepOptions``.

    If a precision cannot be compiled or fails a gate, its row has the reason, and the sweep continues with the others.

    Args:
        source: the exported bundle.
        output: directory of the results.
        options: options of the sweep.
        dataset: dataset for accuracy; None measures no accuracy.
        on_note: called with a line for the user at each step.
        on_result: called with the name of each result (a bundle, an accuracy, a repetition) after it is stored.
        on_step: begins each step that may take seconds; see ``clipmlu.steps``.
        command: the command line, for the report.

    Raises:
        BundleError: the exported bundle does not exist or is invalid.
        BackendUnavailableError: the target's runtime is not available.
        MissingDependencyError: the packages that read and write graphs, or that of the tokenizer, are not installed.
        BundleExistsError: ``output`` has another bundle, and overwriting was not requested.
        OptionError: the target does not support an option.
    """
    require_graph_packages("A sweep")
    output = as_path(output, "the output")
    check_argument(options, SweepOptions, "options")
    if dataset is not None:
        check_dataset(dataset)
    exported = open_exported(source)
    if exported.manifest.layout == "joint":
        check_joint_templates(resolve_templates(options.evaluate.templates), f"bundle '{exported.path}'")
    sweep = _Sweep(exported, output, options, dataset, on_note, on_result, on_step)
    with sweep.store.lock():
        report = msgspec.structs.replace(sweep.run(), command=command)
        with output_errors(output):
            (output / TABLE_NAME).unlink(missing_ok=True)
        write_file(output / "sweep.json", encode_json(report), overwrite=True)
    return report


@dataclasses.dataclass(kw_only=True)
class _Timing:
    """Repetitions of one bundle at one batch size, with the name and the key of their record."""

    name: str
    key: Key
    batch_size: int
    repetitions: tuple[Repetition, ...]


@dataclasses.dataclass(kw_only=True)
class _Variant:
    """One precision: its bundle, its accuracy and its timings, or its failure."""

    precision: Precision
    name: str
    bundle: CompiledBundle | None = None
    accuracy: AccuracyReport | None = None
    timings: list[_Timing] = dataclasses.field(default_factory=list)
    failure: ClipmluError | None = None


class _Sweep:
    """One run of a sweep.

    Attributes:
        store: the stored results.
    """

    def __init__(
        self,
        exported: ExportedBundle,
        output: Path,
        options: SweepOptions,
        dataset: Dataset | None,
        on_note: Note,
        on_result: Callable[[str], None],
        on_step: StartStep,
    ) -> None:
        self._exported = exported
        self._output = output
        self._options = options
        self._dataset = dataset
        self._note = on_note
        self._step = on_step
        self.store = ResultStore(output / "results", on_note, on_result)
        self._target, self._backend, why = choose_target(options.compile.target)
        if why:
            on_note(why)
        self._variants = [
            _Variant(precision=precision, name=f"{self._target}-{precision.value}") for precision in options.precisions
        ]

    def run(self) -> SweepReport:
        """Make and measure missing results and return the report."""
        for number, variant in enumerate(self._variants, 1):
            try:
                with self._step(f"{number} of {len(self._variants)}: {variant.precision.value}"):
                    self._prepare(variant)
            except (OptionError, BundleExistsError, MissingDependencyError, OutputError):
                raise
            except ClipmluError as error:
                self._fail(variant, error)
        self._measure_speed()
        return self._report()

    def _fail(self, variant: _Variant, error: ClipmluError) -> None:
        self._note(f"{variant.precision.value}: {error}")
        variant.failure = error

    def _prepare(self, variant: _Variant) -> None:
        """Compile, evaluate, and load the stored repetitions."""
        path = self._output / variant.name
        options = self._options.for_precision(variant.precision)
        bundle, _reused = obtain_compiled(self._exported, path, options, self.store, self._note, self._step)
        variant.bundle = bundle
        if self._dataset is not None:
            variant.accuracy = self._obtain_accuracy(variant.name, bundle, self._dataset)
        variant.timings = [self._load_timing(variant.name, bundle, size) for size in self._options.batch_sizes]

    def _obtain_accuracy(self, variant: str, bundle: CompiledBundle, dataset: Dataset) -> AccuracyReport:
        name = f"{variant}.accuracy"
        key = accuracy_key(bundle, dataset, self._images, self._options)
        # The images of a folder may have changed since.
        kept = self.store.load(name, key, AccuracyReport) if dataset.name in DATASETS else None
        if kept is not None:
            self._note(f"reusing {name}: same bundle, images and prompts")
            return kept
        self._note(f"evaluating {name_from_path(bundle.path)}")
        with Encoder(bundle, self._options.session) as encoder:
            report = evaluate(encoder, dataset, self._options.evaluate, on_note=self._note, on_step=self._step)
        self.store.save(name, key, report)
        return report

    @functools.cached_property
    def _images(self) -> tuple[tuple[str, int], ...]:
        return () if self._dataset is None else images_and_labels(self._dataset, self._options.evaluate)

    def _load_timing(self, variant: str, bundle: CompiledBundle, batch_size: int) -> _Timing:
        name = f"{variant}-b{batch_size}"
        key = timing_key(bundle, batch_size, self._options)
        known = self.store.load(name, key, tuple[Repetition, ...]) or ()
        return _Timing(name=name, key=key, batch_size=batch_size, repetitions=known[: self._options.repetitions])

    def _measure_speed(self) -> None:
        """Measure each repetition on all bundles before the next one, so that other load affects all of them."""
        wanted = self._options.repetitions
        done = sum(len(timing.repetitions) for variant in self._variants for timing in variant.timings)
        if done:
            self._note(f"reusing {done} repetition(s) that were measured before")
        for number in range(wanted):
            for variant in self._variants:
                missing = [timing for timing in variant.timings if len(timing.repetitions) <= number]
                if variant.failure is not None or not missing:
                    continue
                self._note(f"measuring {variant.name}, repetition {number + 1} of {wanted}")
                try:
                    with self._step(f"measuring {variant.name}", total=len(missing), unit="batch sizes") as step:
                        self._repeat(variant, missing, step)
                except OutputError:
                    raise
                except ClipmluError as error:
                    self._fail(variant, error)

    def _repeat(self, variant: _Variant, missing: list[_Timing], step: Step) -> None:
        """Measure one more repetition of some batch sizes of a bundle, and store each."""
        assert variant.bundle is not None, "it has timings"
        with Encoder(variant.bundle, self._options.session) as encoder:
            tower = encoder.bundle.image_graph
            graph = open_graph(encoder, tower, make_samples(encoder, tower, max(self._options.batch_sizes)))
            for timing in counted(missing, step):
                repetition = _time(graph, timing.batch_size, self._options.duration_ms / 1e3)
                timing.repetitions = (*timing.repetitions, repetition)
                self.store.save(timing.name, timing.key, timing.repetitions)

    def _report(self) -> SweepReport:
        options, dataset = self._options, self._dataset
        accuracies = [variant.accuracy for variant in self._variants if variant.accuracy is not None]
        return SweepReport(
            provenance=make_provenance(
                self._exported, self._target, None, [self._backend.name], (options.session.device,)
            ),
            dataset=None if dataset is None else dataset.name,
            split=None if dataset is None else dataset.split,
            images=accuracies[0].images if accuracies else None,
            threads=options.threads,
            repetitions=options.repetitions,
            duration_ms=options.duration_ms,
            rows=mark_front([row for variant in self._variants for row in self._rows(variant)]),
            machine=describe_machine(),
            skipped=accuracies[0].skipped if accuracies else (),
        )

    def _rows(self, variant: _Variant) -> list[SweepRow]:
        if variant.bundle is not None and variant.failure is None:
            return [_row(variant.bundle, variant.accuracy, timing) for timing in variant.timings]
        failed_gate = variant.failure is not None and variant.failure.exit_code == GateError.exit_code
        reason = " ".join(printable(str(variant.failure)).split())
        emulated = self._backend.emulated
        return [SweepRow(precision=variant.precision, emulated=emulated, failure=reason, gate_failed=failed_gate)]


def _time(graph: Graph, batch_size: int, seconds: float) -> Repetition:
    run_offline([graph], batch_size, BATCHES_IN_FLIGHT, Limits(1, seconds / 10))
    offline = run_offline([graph], batch_size, BATCHES_IN_FLIGHT, Limits(_FEWEST_BATCHES, seconds))
    alone = run_streams([graph], batch_size, batch_size, Limits(_FEWEST_BATCHES, seconds / 2))
    return Repetition(
        images_per_second=offline.samples / offline.seconds,
        latency_ms=milliseconds(percentile(sorted(alone.latencies), 50)),
    )


def _row(bundle: CompiledBundle, accuracy: AccuracyReport | None, timing: _Timing) -> SweepRow:
    rates = [repetition.images_per_second for repetition in timing.repetitions]
    file = bundle.tower(bundle.image_graph).file
    return SweepRow(
        precision=bundle.compilation.precision,
        batch_size=timing.batch_size,
        images_per_second=statistics.median(rates),
        slowest_images_per_second=min(rates),
        fastest_images_per_second=max(rates),
        latency_ms=statistics.median(repetition.latency_ms for repetition in timing.repetitions),
        top1=None if accuracy is None else accuracy.top1,
        top1_interval=None if accuracy is None else accuracy.top1_interval,
        image_tower_bytes=sum(
            record.size
            for name, record in bundle.manifest.files.items()
            if name == file or name.startswith(f"{file}.")  # with external weights and records
        ),
        bundle_bytes=bundle.size_bytes,
        emulated=bundle.compilation.emulated,
    )
