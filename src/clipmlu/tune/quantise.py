"""The search behind ``clipmlu compile --max-drop``: the cheapest way to quantise whose accuracy holds.

It climbs a ladder from cheap to dear. Each rung is compiled for the target and judged there, by the zero-shot accuracy on
images of the train split that calibration does not use. It stops at the first rung whose loss against float32 is, with
confidence, within what is allowed. What was measured is kept after each rung, so that an interrupted search goes on.
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
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle, check_output_free, open_exported, publish_copy
from clipmlu.classify.scoring import check_joint_templates
from clipmlu.compile.compiler import CompilationPlan, CompileOptions, compile_bundle, plan_compilation
from clipmlu.compile.recipe import RECIPE_NAME, encode_recipe, recipe_of
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
from clipmlu.tune.candidates import ALPHAS, PER_AXIS, ladder_of
from clipmlu.tune.evaluator import EARLY_SHARE, Jury
from clipmlu.tune.trial import Rung, SearchOptions, SearchReport, Verdict, best_text, describe_rung, encode_search

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
    """Find the cheapest rung that holds, and publish it with its recipe and the ladder.

    Args:
        source: the exported bundle, or its path.
        output: directory of the compiled bundle.
        options: everything that is not searched; with calibration data, and without a quantisation of its own.
        search: what is demanded.
        on_note: called with a line for people at each rung.

    Returns:
        The bundle, and the ladder.

    Raises:
        GateError: no rung holds; what was measured is kept, and said where.
        InputError: the dataset has no labelled images to judge with.
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
    ladder = ladder_of(plan) if search.precision is None else (search.precision,)
    assert options.calibration is not None, "plan_compilation asked for it"
    calibration = options.calibration
    if isinstance(calibration, CalibrationOptions):
        calibration = obtain_calibration(exported, calibration)
    jury = Jury(exported, calibration, options, search)
    fewest = math.ceil(_Z_ONE_SIDED / search.max_drop) - 2
    if len(jury) < fewest:
        raise OptionError(
            f"{len(jury)} images cannot show that a drop is within {search.max_drop:g}, even if none of them is lost; "
            f"at least {fewest} can (--search-samples), or allow more (--max-drop)"
        )
    base = dataclasses.replace(
        options,
        target=plan.main.target,
        calibration=calibration,
        seen_images=jury.digests,
        quantisation=None,
        overwrite=True,
    )
    key = _search_key(exported, plan, base, jury, search)
    state = _State(output.with_name(output.name + _STATE_SUFFIX), key, on_note)
    climber = _Climber(exported, base, jury, state, search, on_note, emulated=plan.main.emulated)
    found = climber.climb(ladder)
    report = climber.report()
    if found is None:
        kept = state.folder / _STATE_NAME
        raise GateError(
            f"No way to quantise stays within a drop of {search.max_drop:g}: {best_text(report)}. "
            f"All that was tried is in '{kept}'. Allow more with --max-drop, or leave --precision out."
        )
    recipe = encode_recipe(recipe_of(found))
    files = {SEARCH_NAME: encode_search(report), RECIPE_NAME: recipe}
    bundle = publish_copy(found, output, files, overwrite=options.overwrite)
    shutil.rmtree(state.folder, ignore_errors=True)
    return bundle, report


def _search_key(
    exported: ExportedBundle, plan: CompilationPlan, base: CompileOptions, jury: Jury, search: SearchOptions
) -> str:
    """Digest of all that decides what a rung measures, but for the rung itself: only then is an earlier verdict taken."""
    # Of the data there are digests; the others differ from rung to rung, or decide nothing.
    apart = ("calibration", "seen_images", "precision", "quantisation", "session", "overwrite")
    facts = [
        exported.digest,
        options_digest(base, without=apart),
        options_digest(base.session, without=("in_flight", "busy_wait")),
        jury.key,
        jury.labels.tolist(),
        jury.dataset.class_names,
        resolve_templates(search.templates),
        search.max_drop,
        tool_versions(plan, base.session, "onnxruntime"),
    ]
    return value_digest(facts)


class _StateContent(Spec, frozen=True, kw_only=True):
    key: str
    rungs: tuple[Rung, ...] = ()


class _State:
    """What has been measured so far, on disk.

    Attributes:
        folder: where; bundles that are being judged lie there too.
        rungs: what has been tried.
    """

    def __init__(self, folder: Path, key: str, on_note: Callable[[str], None]) -> None:
        self.folder = folder
        self._key = key
        self.rungs: list[Rung] = []
        content = read_kept(folder / _STATE_NAME, _StateContent, on_note)
        if content is not None and content.key == self._key:
            self.rungs = list(content.rungs)
            on_note(f"going on with the search in {folder}: {len(self.rungs)} rungs are known")

    def known(self, precision: Precision, how: QuantisationOptions | None, *, probe: bool) -> Rung | None:
        """What an earlier attempt found, unless the bundle is needed."""
        for rung in self.rungs:
            if (rung.precision, rung.quantisation, rung.verdict == "probe") == (precision, how, probe):
                return rung
        return None

    def add(self, rung: Rung) -> None:
        """Keep a rung, at once."""
        self.rungs.append(rung)
        content = _StateContent(key=self._key, rungs=tuple(self.rungs))
        write_file(self.folder / _STATE_NAME, encode_json(sealed(content), indent=1), overwrite=True)


class _Climber:
    """Climbs the ladder."""

    def __init__(
        self,
        exported: ExportedBundle,
        base: CompileOptions,
        jury: Jury,
        state: _State,
        search: SearchOptions,
        on_note: Callable[[str], None],
        *,
        emulated: bool,
    ) -> None:
        self._exported = exported
        self._base = base
        self._jury = jury
        self._state = state
        self._search = search
        self._note = on_note
        self._emulated = emulated
        self._reference_top1: float | None = None
        self._climbed: list[Rung] = []

    def climb(self, modes: Sequence[Precision]) -> CompiledBundle | None:
        """The first bundle that holds, in the state's folder; None if there is none."""
        with contextlib.closing(self._rungs(modes)) as rungs:
            for precision, how in rungs:
                bundle = self._try(precision, how)
                if bundle is not None:
                    return bundle
        return None

    def report(self) -> SearchReport:
        """The ladder as far as it was climbed."""
        return SearchReport(
            target=self._base.target,
            emulated=self._emulated,
            max_drop=self._search.max_drop,
            confidence=_CONFIDENCE,
            dataset=self._jury.dataset.name,
            split=self._jury.dataset.split,
            images=len(self._jury),
            templates=self._search.templates_text,
            reference_top1=self._hear(),
            rungs=tuple(self._climbed),
        )

    def _rungs(self, modes: Sequence[Precision]) -> Generator[tuple[Precision, QuantisationOptions | None], None, None]:
        for position, mode in enumerate(modes):
            if mode.bits is None:
                yield mode, None
            elif position and mode.bits == modes[0].bits:
                best = self._best()  # the same integers, another float type around them
                yield mode, PER_AXIS if best is None else best.quantisation
            else:
                yield from ((mode, how) for how in self._ways(mode))

    def _ways(self, mode: Precision) -> Iterator[QuantisationOptions]:
        """Ways to quantise in one mode; those that cost the same at run time from plain to elaborate, then the dearer ones."""
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
        self, mode: Precision, plain: Rung, how: QuantisationOptions
    ) -> Iterator[QuantisationOptions]:
        """More and more roles in float, first those that bring most for the work they are."""
        gains = []
        for role, share in self._roles(mode):
            probe = self._probe(mode, msgspec.structs.replace(how, keep_float=(role,)))
            if probe is None or probe.embedding_error is None or plain.embedding_error is None:
                continue
            gains.append(((plain.embedding_error - probe.embedding_error) / max(share, 1e-9), role))
        kept: tuple[str, ...] = ()
        for _gain, role in sorted(gains, reverse=True)[:-1]:  # with the last one, nothing would be left to quantise
            kept = (*kept, role)
            yield msgspec.structs.replace(how, keep_float=kept)

    def _roles(self, mode: Precision) -> list[tuple[str, float]]:
        """Roles of the model and their share of the work, from small to large."""
        from clipmlu.compile.preparing import role_shares

        return sorted(role_shares(self._exported).items(), key=lambda entry: entry[1])

    def _best(self, mode: Precision | None = None) -> Rung | None:
        """Of what has been judged so far (in a mode), the one that loses least; its embeddings decide between equals."""
        judged = [
            rung
            for rung in self._climbed
            if rung.quantisation is not None
            and rung.verdict in ("rejected", "hopeless")
            and mode in (None, rung.precision)
        ]
        # A rung that was left early has a drop from fewer images: what came through to the end goes before it.
        return min(
            judged,
            key=lambda rung: (rung.verdict == "hopeless", rung.drop or 0.0, rung.embedding_error or 0.0),
            default=None,
        )

    def _try(self, precision: Precision, how: QuantisationOptions | None) -> CompiledBundle | None:
        known = self._state.known(precision, how, probe=False)
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
            self._state.rungs.remove(known)
        rung, bundle_or_none, lasting = self._measure(precision, how, path, probe=False)
        if lasting:
            self._state.add(rung)
        self._tell(rung)
        return bundle_or_none if rung.verdict == "accepted" else None

    def _probe(self, precision: Precision, how: QuantisationOptions) -> Rung | None:
        rung = self._state.known(precision, how, probe=True)
        if rung is None:
            rung, _bundle, _lasting = self._measure(precision, how, self._state.folder / "probe", probe=True)
            if rung.verdict == "probe":
                self._state.add(rung)
        self._tell(rung)
        return rung

    def _options(self, precision: Precision, how: QuantisationOptions | None) -> CompileOptions:
        calibration = self._base.calibration if precision.bits is not None else None
        return dataclasses.replace(self._base, precision=precision, quantisation=how, calibration=calibration)

    def _measure(
        self, precision: Precision, how: QuantisationOptions | None, path: Path, *, probe: bool
    ) -> tuple[Rung, CompiledBundle | None, bool]:
        """A rung, its bundle if it has one, and whether measuring it again would give the same."""
        self._hear()
        start = time.perf_counter()
        options = self._options(precision, how)
        images = max(1, len(self._jury) // EARLY_SHARE) if probe else len(self._jury)
        try:
            bundle = compile_bundle(self._exported, path, options)
            limit = None if probe else self._search.max_drop
            figures = self._jury.judge(bundle, options.session, images, limit)
        except (GateError, CompileError) as error:  # what one way cannot do, another may
            # Only what was measured lasts: a worker, a card or memory that failed may not fail the next time.
            lasting = isinstance(error, GateError)
            return self._broken(precision, how, error, time.perf_counter() - start), None, lasting
        verdict: Verdict = "probe"
        if not probe:
            complete = figures["images"] == images
            within = figures["drop_bound"] <= self._search.max_drop
            verdict = "accepted" if complete and within else "rejected" if complete else "hopeless"
        rung = Rung(
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
        return rung, bundle, True

    def _broken(
        self, precision: Precision, how: QuantisationOptions | None, error: ClipmluError, elapsed_s: float
    ) -> Rung:
        return Rung(
            precision=precision,
            quantisation=how,
            verdict="broken",
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

    def _hear(self) -> float:
        if self._reference_top1 is None:
            self._reference_top1 = self._jury.hear_reference(self._state.folder)
            self._note(f"float32: top-1 {self._reference_top1:.4f} on {len(self._jury)} held-out images")
        return self._reference_top1

    def _tell(self, rung: Rung) -> None:
        self._climbed.append(rung)
        mark = ", emulated" if self._emulated else ""
        self._note(f"{len(self._climbed):2d}. {describe_rung(rung)}{mark}")


def _quantised_share(bundle: CompiledBundle) -> float | None:
    records = bundle.compilation.quantised.values()
    total = sum(record.macs for record in records)
    return sum(record.quantised_macs for record in records) / total if total else None
