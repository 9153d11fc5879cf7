"""Search of quantisation options for ``clipmlu compile --max-drop``.

The search tries the modes of the target, the expected fastest first. Each trial compiles a bundle for the target and
measures its zero-shot accuracy on images of the train split that the calibration does not use, or its recall on given pairs
of images and texts. The search stops at the
first trial whose loss of accuracy against float32 is, with 95 % confidence, within the allowed drop. Each trial is
stored, so that an interrupted search can resume.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from clipmlu.arguments import as_path, check_argument
from clipmlu.backends import get_backend
from clipmlu.backends.provenance import Command, Provenance, make_provenance
from clipmlu.bundle.directory import (
    CompiledBundle,
    ExportedBundle,
    check_output_free,
    open_compiled,
    open_exported,
    publish_copy,
)
from clipmlu.bundle.manifest import emulated_mark
from clipmlu.classify.scoring import PREFER_TOWERS, check_joint_templates
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompilationPlan, CompileOptions, plan_compilation
from clipmlu.compile.quantisation import recommended_quantisation
from clipmlu.compile.recipe import RECIPE_NAME, recipe_of
from clipmlu.data.calibration import CalibrationOptions, obtain_calibration
from clipmlu.data.calibration_set import CalibrationSet
from clipmlu.data.prompts import resolve_templates
from clipmlu.errors import CompileError, GateError, OptionError, OutputError
from clipmlu.file_names import name_from_path
from clipmlu.files.publish import encode_json, write_file
from clipmlu.host import require_graph_packages
from clipmlu.keys import make_key, options_key, value_digest
from clipmlu.measure.statistics import Z_ONE_SIDED, fraction_text
from clipmlu.specs import Precision, QuantisationOptions, Spec
from clipmlu.steps import StartStep, no_steps
from clipmlu.tune.bundles import compilation_key, open_unchanged
from clipmlu.tune.candidates import Candidates, modes_of, most_trials
from clipmlu.tune.evaluator import AccuracyEvaluator
from clipmlu.tune.figures import EARLY_SHARE, REFERENCE_NAME, Evaluator, Figures, ReferenceFigures
from clipmlu.tune.resume import Key, Note, ResultStore
from clipmlu.tune.retrieval_evaluator import RetrievalEvaluator
from clipmlu.tune.trial import SearchOptions, SearchReport, Trial, Verdict, best_text, describe_trial

SEARCH_NAME = "search.json"
_CANDIDATE_NAME, _EXPLORATORY_NAME = "candidate", "exploratory"
_CONFIDENCE = 0.95
_FOLDER_SUFFIX = ".search"
_SEARCH_RECORD = "search"


def search_bundle(
    source: str | os.PathLike[str] | ExportedBundle,
    output: str | os.PathLike[str],
    options: CompileOptions,
    search: SearchOptions,
    *,
    on_note: Note = lambda _message: None,
    on_result: Callable[[str], None] = lambda _name: None,
    on_step: StartStep = no_steps,
    command: Command | None = None,
) -> tuple[CompiledBundle, SearchReport]:
    """Find the first candidate within the allowed drop, and publish its bundle with the recipe and the report.

    Args:
        source: the exported bundle, or its path.
        output: directory of the compiled bundle.
        options: options that are not searched; with calibration data and without quantisation options.
        search: options of the search.
        on_note: called with a line for the user after each trial.
        on_result: called with the name of each trial after it is stored.
        on_step: begins each step that may take seconds; see ``clipmlu.steps``.
        command: the command line, for the report.

    Returns:
        The bundle, and the report.

    Raises:
        GateError: no trial is within the allowed drop; the message names the file of the report.
        InputError: the dataset has no labelled images to evaluate on.
        ClipmluError: as ``compile_bundle``.
    """
    require_graph_packages("Searching quantisation options")
    output = as_path(output, "the output")
    check_argument(options, CompileOptions, "options")
    check_argument(search, SearchOptions, "search")
    exported = source if isinstance(source, ExportedBundle) else open_exported(source)
    _check_request(exported, options, search)
    check_output_free(output, overwrite=options.overwrite)
    # A target without 8-bit modes is refused here.
    wanted = search.precision or Precision.QINT8_MIXED_FLOAT32
    plan = plan_compilation(dataclasses.replace(options, precision=wanted))
    if plan.why_target:
        on_note(plan.why_target)
    evaluator, base = _prepare(exported, plan, options, search, on_step)
    folder = output.with_name(output.name + _FOLDER_SUFFIX)
    store = ResultStore(folder / "trials", on_note, on_result)
    key = _search_key(exported, plan, base, evaluator, search)
    with store.lock():
        check_output_free(output, overwrite=options.overwrite)  # another search may have published it meanwhile
        _resume(store, key, on_note)
        process = _Search(
            exported, base, evaluator, search, folder, store, key, on_note, on_step, _provenance(exported, plan, base)
        )
        modes = modes_of(plan) if search.precision is None else (search.precision,)
        found = process.run(modes, functools.partial(recommended_quantisation, get_backend(plan.main.backend)))
        report = msgspec.structs.replace(process.report(), command=command)
        if found is None:
            write_file(folder / SEARCH_NAME, encode_json(report), overwrite=True)
            raise GateError(
                f"No quantisation options stay within a drop of {search.max_drop:g}: {best_text(report)}. "
                f"All trials are in '{folder / SEARCH_NAME}'. Allow more with --max-drop, or leave --precision out."
            )
        files = {SEARCH_NAME: encode_json(report), RECIPE_NAME: encode_json(recipe_of(found))}
        bundle = publish_copy(found, output, files, overwrite=options.overwrite)
        _remove_trials(folder, store)
    return bundle, report


def _remove_trials(folder: Path, store: ResultStore) -> None:
    """Remove what a search wrote to its folder, as far as possible; other files there stay."""
    for name in (REFERENCE_NAME, _CANDIDATE_NAME, _EXPLORATORY_NAME):
        shutil.rmtree(folder / name, ignore_errors=True)
    with contextlib.suppress(OSError, OutputError):
        store.clear()
        (folder / SEARCH_NAME).unlink(missing_ok=True)
        store.folder.rmdir()
        folder.rmdir()


def _check_request(exported: ExportedBundle, options: CompileOptions, search: SearchOptions) -> None:
    if exported.manifest.layout == "joint" and search.pairs is not None:
        raise OptionError(f"the recall of pairs needs two towers, whose embeddings it ranks; {PREFER_TOWERS}")
    if exported.manifest.layout == "joint":
        check_joint_templates(resolve_templates(search.templates), f"bundle '{exported.path}'")
    if options.quantisation is not None:
        raise OptionError("the search chooses the quantisation options; leave out those options, or --max-drop")
    if not options.check:
        raise OptionError("a search runs the compiled graphs; leave out --no-check")


def _prepare(
    exported: ExportedBundle,
    plan: CompilationPlan,
    options: CompileOptions,
    search: SearchOptions,
    on_step: StartStep,
) -> tuple[Evaluator, CompileOptions]:
    """The held-out images, and the options that all trials share."""
    calibration = options.calibration
    assert calibration is not None, "plan_compilation asked for it"
    if isinstance(calibration, CalibrationOptions):
        calibration = obtain_calibration(exported, calibration, on_step)
    evaluator = _evaluator(exported, calibration, options, search, on_step)
    fewest = math.ceil(Z_ONE_SIDED / search.max_drop) - 2
    if evaluator.independent < fewest:
        independent = "" if evaluator.independent == len(evaluator) else " that share no text"
        raise OptionError(
            f"{evaluator.independent} images{independent} cannot show that a drop is within {search.max_drop:g}, even if none of them is lost; "
            f"at least {fewest} can (--search-samples), or allow more (--max-drop)"
        )
    base = dataclasses.replace(
        options,
        target=plan.main.target,
        calibration=calibration,
        seen_images=evaluator.digests,
        overwrite=True,
    )
    return evaluator, base


def _evaluator(
    exported: ExportedBundle,
    calibration: CalibrationSet,
    options: CompileOptions,
    search: SearchOptions,
    on_step: StartStep,
) -> Evaluator:
    if search.pairs is not None:
        return RetrievalEvaluator(exported, calibration, search.pairs, search, on_step)
    return AccuracyEvaluator(exported, calibration, options, search, on_step)


def _provenance(exported: ExportedBundle, plan: CompilationPlan, base: CompileOptions) -> Provenance:
    placements = [plan.main, *([] if plan.text_tower is None else [plan.text_tower])]
    backends = {placement.backend for placement in placements}
    devices = (base.session.device,)
    return make_provenance(exported, plan.main.target, None, backends, devices, packages=("onnxruntime",))


def _search_key(
    exported: ExportedBundle, plan: CompilationPlan, base: CompileOptions, evaluator: Evaluator, search: SearchOptions
) -> dict[str, str]:
    """Key of a trial without its mode and its quantisation options."""
    return {
        **compilation_key(exported, plan, base, without=("precision", "quantisation")),
        **evaluator.key(),
        # The samples, the templates and the pairs enter as images and texts; the mode belongs to a trial.
        **options_key(search, prefix="search.", without=("samples", "templates", "pairs", "precision")),
    }


def _resume(store: ResultStore, key: Key, on_note: Note) -> None:
    """Keep the stored trials of the same search; remove those of another one."""
    if store.is_begun(_SEARCH_RECORD, key):
        on_note(f"resuming the search in {name_from_path(store.folder)}: {store.count() - 1} trials are stored")
    else:
        store.clear()
        store.begin(_SEARCH_RECORD, key)


class _StoredTrial(Spec, frozen=True, kw_only=True):
    """A trial, and the digest of its bundle if it was accepted."""

    trial: Trial
    bundle: str | None = None


class _Search:
    """One run of a search."""

    def __init__(
        self,
        exported: ExportedBundle,
        base: CompileOptions,
        evaluator: Evaluator,
        search: SearchOptions,
        folder: Path,
        store: ResultStore,
        key: Key,
        on_note: Note,
        on_step: StartStep,
        provenance: Provenance,
    ) -> None:
        self._provenance = provenance
        self._exported = exported
        self._base = base
        self._evaluator = evaluator
        self._search = search
        self._folder = folder
        self._store = store
        self._key = key
        self._note = on_note
        self._step = on_step
        self._most = 0
        self._reference_figures: ReferenceFigures | None = None
        self._trials: list[Trial] = []

    def run(
        self, modes: Sequence[Precision], recommend: Callable[[Precision], QuantisationOptions]
    ) -> CompiledBundle | None:
        """Return the first accepted bundle, in the folder of the search; None if no trial is accepted.

        Args:
            modes: the modes to try.
            recommend: returns the options that are recommended for the target in a mode that quantises.
        """
        self._most = most_trials(modes, recommend)
        from clipmlu.compile.preparing import role_shares

        shares = functools.partial(role_shares, self._exported)
        for precision, how in Candidates(modes, self._trials, shares, self._explore, recommend):
            trial, bundle = self._obtain(precision, how, exploratory=False)
            if trial.verdict == "accepted":
                return bundle
        return None

    def report(self) -> SearchReport:
        """Return the report of the trials so far."""
        return SearchReport(
            provenance=self._provenance,
            max_drop=self._search.max_drop,
            confidence=_CONFIDENCE,
            dataset=self._evaluator.name,
            split=self._evaluator.split,
            images=len(self._evaluator),
            templates=self._search.templates_text,
            reference_top1=self._reference().top1,
            reference_recall=self._reference().recall,
            trials=tuple(self._trials),
        )

    def _explore(self, precision: Precision, how: QuantisationOptions) -> Trial:
        return self._obtain(precision, how, exploratory=True)[0]

    def _obtain(
        self, precision: Precision, how: QuantisationOptions | None, *, exploratory: bool
    ) -> tuple[Trial, CompiledBundle | None]:
        """The stored trial with these settings, or a new one; with its bundle if it is accepted."""
        settings = make_key(precision=precision, quantisation=how, exploratory=exploratory)
        name = f"{precision.value}-{value_digest(settings)[:16]}"
        key = {**self._key, **settings}
        stored = self._store.load(name, key, _StoredTrial)
        bundle = None
        if stored is not None and stored.bundle is not None:
            bundle = open_unchanged(self._candidate_path, stored.bundle, open_compiled, self._note)
        if stored is not None and (stored.bundle is None or bundle is not None):
            self._add(stored.trial)
            return stored.trial, bundle
        self._reference()
        with self._step(f"trial {len(self._trials) + 1} of at most {self._most}"):
            trial, bundle, is_lasting = self._run_trial(precision, how, exploratory=exploratory)
        if is_lasting:
            digest = bundle.digest if bundle is not None and trial.verdict == "accepted" else None
            self._store.save(name, key, _StoredTrial(trial=trial, bundle=digest))
        self._add(trial)
        return trial, bundle

    def _run_trial(
        self, precision: Precision, how: QuantisationOptions | None, *, exploratory: bool
    ) -> tuple[Trial, CompiledBundle | None, bool]:
        """Compile and evaluate a candidate; returns the trial, its bundle or None, and whether to store the trial."""
        start = time.perf_counter()
        calibration = self._base.calibration if precision.bits is not None else None
        options = dataclasses.replace(self._base, precision=precision, quantisation=how, calibration=calibration)
        images = max(1, len(self._evaluator) // EARLY_SHARE) if exploratory else len(self._evaluator)
        limit = None if exploratory else self._search.max_drop
        try:
            bundle = compile_bundle(
                self._exported,
                self._folder / _EXPLORATORY_NAME if exploratory else self._candidate_path,
                options,
                on_step=self._step,
            )
            figures = self._evaluator.evaluate(bundle, options.session, images, limit)
        except (GateError, CompileError) as error:
            elapsed = time.perf_counter() - start
            trial = Trial(precision=precision, quantisation=how, verdict="failed", reason=str(error), elapsed_s=elapsed)
            # A failed gate is a result. A failure of a worker, of a card or of memory may not recur.
            return trial, None, isinstance(error, GateError)
        trial = Trial(
            precision=precision,
            quantisation=how,
            verdict="exploratory" if exploratory else self._verdict(figures),
            **msgspec.structs.asdict(figures),
            quantised_share=_quantised_share(bundle),
            elapsed_s=time.perf_counter() - start,
        )
        return trial, bundle, True

    @property
    def _candidate_path(self) -> Path:
        return self._folder / _CANDIDATE_NAME

    def _verdict(self, figures: Figures) -> Verdict:
        if figures.images < len(self._evaluator):
            return "stopped_early"
        return "accepted" if figures.drop_bound <= self._search.max_drop else "rejected"

    def _reference(self) -> ReferenceFigures:
        if self._reference_figures is None:
            with self._step("float32 reference"):
                self._reference_figures = found = self._evaluator.evaluate_reference(self._folder)
            shown = found.recall if found.top1 is None else f"top-1 {fraction_text(found.top1)}"
            self._note(f"float32: {shown} on {len(self._evaluator)} held-out images")
        return self._reference_figures

    def _add(self, trial: Trial) -> None:
        self._trials.append(trial)
        mark = emulated_mark(self._provenance.emulated)
        self._note(f"{len(self._trials):2d}. {describe_trial(trial)}{mark}")


def _quantised_share(bundle: CompiledBundle) -> float | None:
    records = bundle.compilation.quantised.values()
    total = sum(record.macs for record in records)
    return sum(record.quantised_macs for record in records) / total if total else None
