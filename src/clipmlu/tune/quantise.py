"""The search behind ``clipmlu compile --max-drop``: the cheapest way to quantise whose accuracy holds.

It tries the modes of the target from cheap to dear. Each trial compiles a bundle for the target and measures its zero-shot accuracy
on images of the train split that the calibration does not use. The search stops at the first trial whose loss against float32 is,
with confidence, within the allowed drop. Each trial is stored, so that an interrupted search goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import msgspec

from clipmlu.arguments import as_path, check_argument
from clipmlu.backends.provenance import Provenance, emulated_mark, make_provenance
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle, check_output_free, open_exported, publish_copy
from clipmlu.classify.scoring import check_joint_templates
from clipmlu.compile.compiler import CompilationPlan, CompileOptions, compile_bundle, plan_compilation
from clipmlu.compile.recipe import RECIPE_NAME, recipe_of
from clipmlu.compile.reuse import reusable_compilation, tool_versions
from clipmlu.data.calibration import (
    CalibrationOptions,
    obtain_calibration,
)
from clipmlu.data.prompts import resolve_templates
from clipmlu.errors import ClipmluError, CompileError, GateError, OptionError
from clipmlu.files.publish import encode_json, write_file
from clipmlu.files.read import read_kept, sealed
from clipmlu.keys import options_digest, value_digest
from clipmlu.measure.statistics import _Z_ONE_SIDED
from clipmlu.specs import SMOOTHED_ROLES, Precision, QuantisationOptions, Spec
from clipmlu.tune.candidates import ALPHAS, PER_AXIS, modes_of
from clipmlu.tune.evaluator import EARLY_SHARE, Evaluator
from clipmlu.tune.trial import SearchOptions, SearchReport, Trial, Verdict, best_text, describe_trial

SEARCH_NAME = "search.json"


_CONFIDENCE = 0.95
_STATE_SUFFIX = ".search"
_STATE_NAME = "state.json"


def search_bundle(
    source: str | os.PathLike[str] | ExportedBundle,
    output: str | os.PathLike[str],
    options: CompileOptions,
    search: SearchOptions,
    *,
    on_note: Callable[[str], None] = lambda _message: None,
) -> tuple[CompiledBundle, SearchReport]:
    """Find the cheapest way to quantise within the allowed drop, and publish its bundle with the recipe and the report.

    Args:
        source: the exported bundle, or its path.
        output: directory of the compiled bundle.
        options: everything that is not searched; with calibration data, and without a quantisation of its own.
        search: what is demanded.
        on_note: called with a line for people after each trial.

    Returns:
        The bundle, and the report.

    Raises:
        GateError: no trial is within the allowed drop; the message names the file of what was tried.
        InputError: the dataset has no labelled images to evaluate on.
        ClipmluError: as ``compile_bundle``.
    """
    output = as_path(output, "the output")
    check_argument(options, CompileOptions, "options")
    check_argument(search, SearchOptions, "search")
    exported = source if isinstance(source, ExportedBundle) else open_exported(source)
    if exported.manifest.layout == "joint":
        check_joint_templates(resolve_templates(search.templates), f"bundle '{exported.path}'")
    if options.quantisation is not None:
        raise OptionError("the search chooses how to quantise; leave the options for that out, or --max-drop")
    if not options.check:
        raise OptionError("a search runs what it compiles; leave --no-check out")
    check_output_free(output, overwrite=options.overwrite)
    # A target without 8 bits has nothing to search for, and refuses them here.
    wanted = search.precision or Precision.QINT8_MIXED_FLOAT32
    plan = plan_compilation(dataclasses.replace(options, precision=wanted))
    modes = modes_of(plan) if search.precision is None else (search.precision,)
    assert options.calibration is not None, "plan_compilation asked for it"
    calibration = options.calibration
    if isinstance(calibration, CalibrationOptions):
        calibration = obtain_calibration(exported, calibration)
    evaluator = Evaluator(exported, calibration, options, search)
    fewest = math.ceil(_Z_ONE_SIDED / search.max_drop) - 2
    if len(evaluator) < fewest:
        raise OptionError(
            f"{len(evaluator)} images cannot show that a drop is within {search.max_drop:g}, even if none of them is lost; "
            f"at least {fewest} can (--search-samples), or allow more (--max-drop)"
        )
    base = dataclasses.replace(
        options,
        target=plan.main.target,
        calibration=calibration,
        seen_images=evaluator.digests,
        quantisation=None,
        overwrite=True,
    )
    key = _search_key(exported, plan, base, evaluator, search)
    state = _State(output.with_name(output.name + _STATE_SUFFIX), key, on_note)
    process = _Search(exported, base, evaluator, state, search, on_note, _provenance(exported, plan, base))
    found = process.run(modes)
    report = process.report()
    if found is None:
        kept = state.folder / _STATE_NAME
        raise GateError(
            f"No way to quantise stays within a drop of {search.max_drop:g}: {best_text(report)}. "
            f"All that was tried is in '{kept}'. Allow more with --max-drop, or leave --precision out."
        )
    recipe = encode_json(recipe_of(found))
    files = {SEARCH_NAME: encode_json(report), RECIPE_NAME: recipe}
    bundle = publish_copy(found, output, files, overwrite=options.overwrite)
    shutil.rmtree(state.folder, ignore_errors=True)
    return bundle, report


def _provenance(exported: ExportedBundle, plan: CompilationPlan, base: CompileOptions) -> Provenance:
    placements = [plan.main, *([] if plan.text_tower is None else [plan.text_tower])]
    backends = {placement.backend for placement in placements}
    devices = (base.session.device,)
    return make_provenance(exported, plan.main.target, None, backends, devices, packages=("onnxruntime",))


def _search_key(
    exported: ExportedBundle, plan: CompilationPlan, base: CompileOptions, evaluator: Evaluator, search: SearchOptions
) -> str:
    """Digest of everything that decides the result of a trial, except the mode and the quantisation options."""
    # The data enter as digests; the rest differs between trials, or does not change a result.
    apart = ("calibration", "seen_images", "precision", "quantisation", "session", "overwrite")
    facts = [
        exported.digest,
        options_digest(base, without=apart),
        options_digest(base.session, without=("in_flight", "busy_wait")),
        evaluator.key,
        evaluator.labels.tolist(),
        evaluator.dataset.class_names,
        resolve_templates(search.templates),
        search.max_drop,
        tool_versions(plan, base.session, "onnxruntime"),
    ]
    return value_digest(facts)


class _StateContent(Spec, frozen=True, kw_only=True):
    key: str
    trials: tuple[Trial, ...] = ()


class _State:
    """The trials of a search on disk.

    Attributes:
        folder: their place; the bundles under evaluation are there too.
        trials: those that are stored.
    """

    def __init__(self, folder: Path, key: str, on_note: Callable[[str], None]) -> None:
        self.folder = folder
        self._key = key
        self.trials: list[Trial] = []
        content = read_kept(folder / _STATE_NAME, _StateContent, on_note)
        if content is not None and content.key == self._key:
            self.trials = list(content.trials)
            on_note(f"going on with the search in {folder}: {len(self.trials)} trials are known")

    def known(self, precision: Precision, how: QuantisationOptions | None, *, exploratory: bool) -> Trial | None:
        """The recorded trial with these settings, or None."""
        for trial in self.trials:
            if (trial.precision, trial.quantisation, trial.verdict == "exploratory") == (precision, how, exploratory):
                return trial
        return None

    def add(self, trial: Trial) -> None:
        """Store a trial."""
        self.trials.append(trial)
        content = _StateContent(key=self._key, trials=tuple(self.trials))
        write_file(self.folder / _STATE_NAME, encode_json(sealed(content), indent=1), overwrite=True)


class _Search:
    """One run of a search."""

    def __init__(
        self,
        exported: ExportedBundle,
        base: CompileOptions,
        evaluator: Evaluator,
        state: _State,
        search: SearchOptions,
        on_note: Callable[[str], None],
        provenance: Provenance,
    ) -> None:
        self._exported = exported
        self._base = base
        self._evaluator = evaluator
        self._state = state
        self._search = search
        self._note = on_note
        self._provenance = provenance
        self._reference_top1: float | None = None
        self._trials: list[Trial] = []

    def run(self, modes: Sequence[Precision]) -> CompiledBundle | None:
        """The first accepted bundle, in the state's folder; None if there is none."""
        with contextlib.closing(self._candidates(modes)) as candidates:
            for precision, how in candidates:
                bundle = self._try(precision, how)
                if bundle is not None:
                    return bundle
        return None

    def report(self) -> SearchReport:
        """The report of the trials so far."""
        return SearchReport(
            provenance=self._provenance,
            max_drop=self._search.max_drop,
            confidence=_CONFIDENCE,
            dataset=self._evaluator.dataset.name,
            split=self._evaluator.dataset.split,
            images=len(self._evaluator),
            templates=self._search.templates_text,
            reference_top1=self._reference(),
            trials=tuple(self._trials),
        )

    def _candidates(
        self, modes: Sequence[Precision]
    ) -> Generator[tuple[Precision, QuantisationOptions | None], None, None]:
        for position, mode in enumerate(modes):
            if mode.bits is None:
                yield mode, None
            elif position and mode.bits == modes[0].bits:
                best = self._best()  # the same integers with another float type
                yield mode, PER_AXIS if best is None else best.quantisation
            else:
                yield from ((mode, how) for how in self._ways(mode))

    def _ways(self, mode: Precision) -> Iterator[QuantisationOptions]:
        """Quantisation options of one mode, in the order of trying; those with operators in float, which run slower, come last."""
        yield QuantisationOptions()
        yield PER_AXIS
        yield msgspec.structs.replace(PER_AXIS, activation="asymmetric")
        for algorithm in ("eqnm", "percentile", "entropy"):
            yield msgspec.structs.replace(PER_AXIS, algorithm=algorithm)
        best = self._best(mode)
        base = PER_AXIS if best is None or best.quantisation is None else best.quantisation
        for alpha in ALPHAS:
            yield msgspec.structs.replace(base, smooth_alpha=dict.fromkeys(SMOOTHED_ROLES, alpha))
        best = self._best(mode)
        if mode.bits == 8 and best is not None and best.quantisation is not None:
            yield from self._with_float_roles(mode, best, best.quantisation)

    def _with_float_roles(
        self, mode: Precision, plain: Trial, how: QuantisationOptions
    ) -> Iterator[QuantisationOptions]:
        """More and more roles in float, first those that lower the embedding error most for their share of the work."""
        gains = []
        for role, share in self._roles(mode):
            probe = self._explore(mode, msgspec.structs.replace(how, keep_float=(role,)))
            if probe is None or probe.embedding_error is None or plain.embedding_error is None:
                continue
            gains.append(((plain.embedding_error - probe.embedding_error) / max(share, 1e-9), role))
        kept: tuple[str, ...] = ()
        for _gain, role in sorted(gains, reverse=True)[:-1]:  # with the last one, nothing would be left to quantise
            kept = (*kept, role)
            yield msgspec.structs.replace(how, keep_float=kept)

    def _roles(self, mode: Precision) -> list[tuple[str, float]]:
        """Roles of the model and their share of the multiply-accumulate operations, in ascending order."""
        from clipmlu.compile.preparing import role_shares

        return sorted(role_shares(self._exported).items(), key=lambda entry: entry[1])

    def _best(self, mode: Precision | None = None) -> Trial | None:
        """The evaluated trial (of a mode) with the smallest drop; of equals, the one with the smallest embedding error."""
        evaluated = [
            trial
            for trial in self._trials
            if trial.quantisation is not None
            and trial.verdict in ("rejected", "stopped_early")
            and mode in (None, trial.precision)
        ]
        # A trial that stopped early has a drop of fewer images: complete ones go before it.
        return min(
            evaluated,
            key=lambda trial: (trial.verdict == "stopped_early", trial.drop or 0.0, trial.embedding_error or 0.0),
            default=None,
        )

    def _try(self, precision: Precision, how: QuantisationOptions | None) -> CompiledBundle | None:
        known = self._state.known(precision, how, exploratory=False)
        path = self._state.folder / "candidate"
        if known is not None and known.verdict != "accepted":
            self._tell(known)
            return None
        if known is not None:
            options = self._options(precision, how)
            bundle = reusable_compilation(self._exported, path, plan_compilation(options), options, self._note)
            if bundle is not None:
                self._tell(known)
                return bundle
            self._state.trials.remove(known)
        trial, bundle_or_none, lasting = self._measure(precision, how, path, exploratory=False)
        if lasting:
            self._state.add(trial)
        self._tell(trial)
        return bundle_or_none if trial.verdict == "accepted" else None

    def _explore(self, precision: Precision, how: QuantisationOptions) -> Trial | None:
        trial = self._state.known(precision, how, exploratory=True)
        if trial is None:
            trial, _bundle, _lasting = self._measure(
                precision, how, self._state.folder / "exploratory", exploratory=True
            )
            if trial.verdict == "exploratory":
                self._state.add(trial)
        self._tell(trial)
        return trial

    def _options(self, precision: Precision, how: QuantisationOptions | None) -> CompileOptions:
        calibration = self._base.calibration if precision.bits is not None else None
        return dataclasses.replace(self._base, precision=precision, quantisation=how, calibration=calibration)

    def _measure(
        self, precision: Precision, how: QuantisationOptions | None, path: Path, *, exploratory: bool
    ) -> tuple[Trial, CompiledBundle | None, bool]:
        """Run a trial: its record, its bundle if it has one, and whether to store it."""
        self._reference()
        start = time.perf_counter()
        options = self._options(precision, how)
        images = max(1, len(self._evaluator) // EARLY_SHARE) if exploratory else len(self._evaluator)
        try:
            bundle = compile_bundle(self._exported, path, options)
            limit = None if exploratory else self._search.max_drop
            figures = self._evaluator.evaluate(bundle, options.session, images, limit)
        except (GateError, CompileError) as error:
            # A failed gate is a result. A worker, a card or memory that failed may not fail the next time.
            lasting = isinstance(error, GateError)
            return self._failed(precision, how, error, time.perf_counter() - start), None, lasting
        verdict: Verdict = "exploratory"
        if not exploratory:
            complete = figures["images"] == images
            within = figures["drop_bound"] <= self._search.max_drop
            verdict = "accepted" if complete and within else "rejected" if complete else "stopped_early"
        trial = Trial(
            precision=precision,
            quantisation=how,
            verdict=verdict,
            images=int(figures["images"]),
            top1=figures["top1"],
            drop=figures["drop"],
            drop_bound=figures["drop_bound"],
            agreement=figures["agreement"],
            embedding_error=figures["embedding_error"],
            quantised_share=_quantised_share(bundle),
            elapsed_s=time.perf_counter() - start,
        )
        return trial, bundle, True

    def _failed(
        self, precision: Precision, how: QuantisationOptions | None, error: ClipmluError, elapsed_s: float
    ) -> Trial:
        return Trial(
            precision=precision,
            quantisation=how,
            verdict="failed",
            images=0,
            top1=None,
            drop=None,
            drop_bound=None,
            agreement=None,
            embedding_error=None,
            quantised_share=None,
            reason=str(error),
            elapsed_s=elapsed_s,
        )

    def _reference(self) -> float:
        if self._reference_top1 is None:
            self._reference_top1 = self._evaluator.evaluate_reference(self._state.folder)
            self._note(f"float32: top-1 {self._reference_top1:.4f} on {len(self._evaluator)} held-out images")
        return self._reference_top1

    def _tell(self, trial: Trial) -> None:
        self._trials.append(trial)
        mark = emulated_mark(self._provenance.emulated)
        self._note(f"{len(self._trials):2d}. {describe_trial(trial)}{mark}")


def _quantised_share(bundle: CompiledBundle) -> float | None:
    records = bundle.compilation.quantised.values()
    total = sum(record.macs for record in records)
    return sum(record.quantised_macs for record in records) / total if total else None
