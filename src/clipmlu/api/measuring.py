"""The public functions that measure: accuracy, two bundles side by side, speed, and sweeps."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Unpack

from clipmlu.api.compile_keywords import (
    CalibrationKeywords,
    QuantisationKeywords,
    ReadingKeywords,
    TargetKeywords,
    compile_options,
)
from clipmlu.api.measure_keywords import (
    CompareKeywords,
    DatasetKeywords,
    EngineKeywords,
    EvaluateKeywords,
    PairKeywords,
    RetrievalKeywords,
    RunningKeywords,
    SpeedKeywords,
    SweepKeywords,
    dataset_choice,
    engine_options,
    pair_choice,
    speed_options,
)
from clipmlu.arguments import check_argument, shown
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle, open_compiled
from clipmlu.clock import now
from clipmlu.data.datasets import Dataset
from clipmlu.data.datasets.choice import DatasetChoice
from clipmlu.data.pairs.pairs import PairSet
from clipmlu.embed.encoder import Encoder
from clipmlu.errors import OptionError
from clipmlu.host import serve_api_key
from clipmlu.jobs.evaluation import evaluate_in_parts
from clipmlu.keywords import check_keywords, refuse_both, with_keywords
from clipmlu.measure.accuracy.evaluate import EvalOptions
from clipmlu.measure.accuracy.report import AccuracyReport, check_baseline, compare_with_baseline, read_report
from clipmlu.measure.accuracy.tally import ImageResult, Tally
from clipmlu.measure.compare import compare
from clipmlu.measure.compare.compare import CompareOptions, ComparisonReport
from clipmlu.measure.retrieval import evaluate as retrieval
from clipmlu.measure.retrieval.evaluate import RetrievalOptions
from clipmlu.measure.retrieval.report import (
    DEFAULT_MAX_RECALL_DROP,
    RetrievalReport,
    check_recall,
    compare_with_recall,
    read_retrieval_report,
)
from clipmlu.measure.speed import speed
from clipmlu.measure.speed.load import PipelineLoad
from clipmlu.measure.speed.loads import SpeedOptions
from clipmlu.measure.speed.served import Server, check_served_options, measure_served
from clipmlu.measure.speed.speed import SpeedReport
from clipmlu.model import load
from clipmlu.serve.process import started_server
from clipmlu.steps import StartStep, no_steps
from clipmlu.tune import sweep
from clipmlu.tune.sweep_options import SweepOptions
from clipmlu.tune.sweep_report import SweepReport

AnyDataset = str | DatasetChoice | Dataset
_ABOUT_LOADING = ("threads", "fast_preprocess", "device", "devices", "max_pixels")
_MAX_DROP = 0.01


@with_keywords(
    DatasetKeywords, ReadingKeywords, RunningKeywords, EngineKeywords, EvaluateKeywords, defaults=EvalOptions
)
def evaluate(
    model: str | os.PathLike[str] | CompiledBundle | Encoder,
    dataset: AnyDataset,
    options: EvalOptions | None = None,
    *,
    on_result: Callable[[ImageResult], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
    on_load: Callable[[PipelineLoad], None] | None = None,
    on_interrupt: Callable[[Tally, int], None] | None = None,
    on_note: Callable[[str], None] = lambda _message: None,
    on_step: StartStep = no_steps,
    **keywords: Unpack[EvaluateKeywords],
) -> AccuracyReport:
    """Measure the zero-shot accuracy of a compiled bundle on a labelled dataset, as ``clipmlu eval`` does.

    Args:
        model: the bundle, its path, or a loaded ``Model``.
        dataset: its name (``"cifar100"``, ``"cifar10"``, ``"imagefolder:PATH"``, ``"demo"``), or an open dataset.
        options: an options object instead of the keywords.
        on_result: called for every evaluated image, in the order of evaluation.
        on_progress: called with the number of images since the last call.
        on_load: called with what the pipeline did since the last call.
        on_interrupt: called with the counts so far and the number of requested images if Ctrl-C or an error ends the run early;
            the exception is then raised again.
        on_note: called with a line for the user.
        on_step: begins each step that may take seconds; see ``clipmlu.steps``.

    Returns:
        The report; its accuracies are fractions, 0 to 1.

    Raises:
        UnknownNameError: there is no such dataset or keyword.
        OptionError: a value is wrong, or more samples than the dataset has.
        ShapeError: the bundle does not support the batch size.
        InputError: no image can be read.
        OverlapError: the bundle was calibrated with an image, and ``allow_overlap`` is False.
        GateError: the accuracy is more than ``max_drop`` below that of ``baseline``.
        BundleError: there is no such bundle, or it is not compiled.
    """
    refuse_both(options, keywords, "evaluate")
    given = check_keywords(keywords, EvaluateKeywords, "evaluate")
    baseline = _baseline(given)
    opened, choice = _open_dataset(dataset, given)
    if options is None:
        fields = {field.name for field in dataclasses.fields(EvalOptions)}
        options = EvalOptions(**{name: value for name, value in given.items() if name in fields})
    engine = engine_options(given)
    with _open_model(model, given) as encoder:
        report = evaluate_in_parts(
            encoder,
            opened,
            options,
            engine,
            choice=choice,
            on_result=on_result,
            on_progress=on_progress,
            on_load=on_load,
            on_interrupt=on_interrupt,
            on_note=on_note,
            on_step=on_step,
        )
    if baseline is not None:
        report = compare_with_baseline(report, baseline, given.get("max_drop", _MAX_DROP))
        check_baseline(report)
    return report


@with_keywords(PairKeywords, ReadingKeywords, RunningKeywords, RetrievalKeywords, defaults=RetrievalOptions)
def evaluate_retrieval(
    model: str | os.PathLike[str] | CompiledBundle | Encoder,
    pairs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | PairSet,
    options: RetrievalOptions | None = None,
    *,
    on_step: StartStep = no_steps,
    **keywords: Unpack[RetrievalKeywords],
) -> RetrievalReport:
    """Measure how well images find their texts, and texts their images, as ``clipmlu eval --task retrieval`` does.

    Args:
        model: the bundle, its path, or a loaded ``Model``; with two towers.
        pairs: one or several files of images and texts: ``.csv``, ``.tsv``, ``.jsonl``, ``.json``, or ``.tar`` of WebDataset.
        options: an options object instead of the keywords.
        on_step: begins each step that may take seconds; see ``clipmlu.steps``.

    Returns:
        The report; its recalls are fractions, 0 to 1.

    Raises:
        UnknownNameError: there is no such keyword.
        OptionError: a value is wrong, or more samples than there are images.
        ShapeError: the bundle does not support the batch size.
        InputError: a file cannot be read, or not one image can be.
        OverlapError: a bundle was calibrated with an image, and ``allow_overlap`` is False.
        GateError: a recall is more than ``max_recall_drop`` below that of ``baseline``.
        BundleError: there is no such bundle, it is not compiled, or it has the joint layout.
    """
    refuse_both(options, keywords, "evaluate_retrieval")
    given = check_keywords(keywords, RetrievalKeywords, "evaluate_retrieval")
    baseline = _recall_baseline(given)
    opened = _open_pairs(pairs, given)
    if options is None:
        fields = {field.name for field in dataclasses.fields(RetrievalOptions)}
        options = RetrievalOptions(**{name: value for name, value in given.items() if name in fields})
    with contextlib.ExitStack() as stack:
        encoder = stack.enter_context(_open_model(model, given))
        other = given.get("reference")
        reference = None if other is None else stack.enter_context(_open_model(other, _without_cards(given, other)))
        report = retrieval.evaluate_retrieval(encoder, opened, options, reference=reference, on_step=on_step)
    if baseline is not None:
        report = compare_with_recall(report, baseline, given.get("max_recall_drop", DEFAULT_MAX_RECALL_DROP))
        check_recall(report)
    return report


def _without_cards(given: Mapping[str, Any], other: object) -> Mapping[str, Any]:
    """Return the keywords of loading a reference: it may be for a target without cards, and a loaded one takes none."""
    if isinstance(other, Encoder):
        return {}
    return {name: value for name, value in given.items() if name not in ("device", "devices")}


def _recall_baseline(given: Mapping[str, Any]) -> RetrievalReport | None:
    baseline = given.get("baseline")
    if baseline is None:
        if given.get("max_recall_drop") is not None:
            raise OptionError(
                f"max recall drop is {given['max_recall_drop']}, but there is no baseline to compare with; give one"
            )
        return None
    return baseline if isinstance(baseline, RetrievalReport) else read_retrieval_report(baseline)


def _open_pairs(
    pairs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | PairSet, given: Mapping[str, Any]
) -> PairSet:
    check_argument(pairs, str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | PairSet, "pairs")
    if not isinstance(pairs, PairSet):
        return pair_choice([pairs] if isinstance(pairs, str | os.PathLike) else pairs, given).open()
    for name in PairKeywords.__annotations__:
        if given.get(name) is not None:
            raise OptionError(f"{name.replace('_', ' ')} is {shown(given[name])}, but the pairs are open; leave it out")
    return pairs


def _baseline(given: Mapping[str, Any]) -> AccuracyReport | None:
    baseline = given.get("baseline")
    if baseline is None:
        if given.get("max_drop") is not None:
            raise OptionError(f"max drop is {given['max_drop']}, but there is no baseline to compare with; give one")
        return None
    return baseline if isinstance(baseline, AccuracyReport) else read_report(baseline)


def _open_dataset(
    dataset: AnyDataset, given: Mapping[str, Any], default_size: int | None = None
) -> tuple[Dataset, DatasetChoice | None]:
    """Open a dataset by its name; also return how each worker opens it, or None if it was open."""
    if isinstance(dataset, str):
        choice = dataset_choice(dataset, given, default_size)
        assert choice is not None, "it has a name"
        return choice.open(), choice
    for name in ("split", "class_names", "folder_names", "data_dir", "offline"):
        if given.get(name):
            raise OptionError(
                f"{name.replace('_', ' ')} is {shown(given[name])}, but the dataset is open; leave it out"
            )
    return (dataset.open(), dataset) if isinstance(dataset, DatasetChoice) else (dataset, None)


@contextlib.contextmanager
def _open_model(
    model: str | os.PathLike[str] | CompiledBundle | Encoder, given: Mapping[str, Any]
) -> Iterator[Encoder]:
    """Load a bundle, and close it again; a loaded model is used as it is, and stays open."""
    running = {name: given[name] for name in _ABOUT_LOADING if name in given}
    if isinstance(model, str | os.PathLike | CompiledBundle):
        path, verify = (model.path, False) if isinstance(model, CompiledBundle) else (model, True)
        with load(path, verify=verify, busy_wait=False, **running) as encoder:
            yield encoder
        return
    for name in running:
        if name != "max_pixels":  # of the dataset, too
            raise OptionError(
                f"{name.replace('_', ' ')} is {shown(given[name])}, but the model is loaded already; give it to load"
            )
    yield check_argument(model, Encoder, "model")


@with_keywords(DatasetKeywords, ReadingKeywords, CompareKeywords, defaults=CompareOptions)
def compare_bundles(
    measured: str | os.PathLike[str] | ExportedBundle | CompiledBundle,
    reference: str | os.PathLike[str] | ExportedBundle | CompiledBundle,
    dataset: AnyDataset = "demo",
    options: CompareOptions | None = None,
    *,
    on_note: Callable[[str], None] = lambda _message: None,
    on_step: StartStep = no_steps,
    **keywords: Unpack[CompareKeywords],
) -> ComparisonReport:
    """Compare two bundles of one model, node by node and by predictions, as ``clipmlu compare`` does.

    Args:
        measured: a bundle or its path.
        reference: what it is compared with: another compiled bundle, or an exported one, which stands for its float graphs.
        dataset: its name (``"cifar100"``, ``"cifar10"``, ``"imagefolder:PATH"``, ``"demo"``), or an open dataset.
        options: an options object instead of the keywords.
        on_note: called with a line for the user at each step.
        on_step: begins each step that may take seconds; see ``clipmlu.steps``.

    Raises:
        UnknownNameError: there is no such dataset or keyword.
        BundleError: one of them is not a bundle, or they are of different models.
        OptionError: a value is wrong, or does not fit the bundles or the dataset.
        ShapeError: a bundle does not support the batch size.
        InputError: no image can be read.
        OverlapError: a bundle was calibrated with an image, and ``allow_overlap`` is False.
        BackendUnavailableError: a bundle's runtime cannot be used on this machine.
    """
    refuse_both(options, keywords, "compare_bundles")
    given = check_keywords(keywords, CompareKeywords, "compare_bundles")
    opened, _choice = _open_dataset(dataset, given, compare.DEFAULT_SAMPLES)
    if options is None:
        fields = {field.name for field in dataclasses.fields(CompareOptions)}
        options = CompareOptions(**{name: value for name, value in given.items() if name in fields})
    return compare.compare_bundles(measured, reference, opened, options, on_note=on_note, on_step=on_step)


@with_keywords(SpeedKeywords, defaults=SpeedOptions)
def measure_speed(
    bundle: str | os.PathLike[str] | CompiledBundle,
    options: SpeedOptions | None = None,
    *,
    on_note: Callable[[str], None] = lambda _message: None,
    on_step: StartStep = no_steps,
    **keywords: Unpack[SpeedKeywords],
) -> SpeedReport:
    """Measure the speed of a compiled bundle, as ``clipmlu bench`` does.

    Args:
        bundle: the bundle, or its path.
        options: an options object instead of the keywords.
        on_note: called with a line for the user before each part.
        on_step: begins each step that may take seconds; see ``clipmlu.steps``.

    Returns:
        The report; its times are in seconds or, where the name says so, in milliseconds.

    Raises:
        BundleError: there is no such bundle, or it has no such graph.
        OptionError: a value is wrong.
        ShapeError: the bundle does not support the batch size.
        BackendUnavailableError: its runtime cannot be used on this machine.
        InputError: no image can be read.
        SessionError: with ``http``, the server does not answer or serves another bundle.
        MissingDependencyError: with ``http=True``, FastAPI or uvicorn is not installed.
    """
    refuse_both(options, keywords, "measure_speed")
    given = check_keywords(keywords, SpeedKeywords, "measure_speed")
    path = bundle.path if isinstance(bundle, CompiledBundle) else bundle
    chosen = speed_options(given) if options is None else options
    if http := given.get("http"):
        return measure_http(path, http, chosen, on_note=on_note, on_step=on_step)
    return speed.measure_speed(path, chosen, on_note=on_note, on_step=on_step)


def measure_http(
    bundle: str | os.PathLike[str],
    http: Literal[True] | str,
    options: SpeedOptions,
    *,
    on_note: Callable[[str], None] = lambda _message: None,
    on_step: StartStep = no_steps,
) -> SpeedReport:
    """Measure a compiled bundle behind a server; see the keyword ``http`` of ``measure_speed``.

    The API key of the environment variable ``CLIPMLU_API_KEY`` is sent to the server.

    Args:
        bundle: path of the bundle.
        http: True to start a server, or the URL of one.
        options: options of the measurement.
        on_note: called with a line for the user before each part.
        on_step: begins each step that may take seconds; see ``clipmlu.steps``.

    Raises:
        BundleError, OptionError, SessionError, MissingDependencyError, InputError: as for ``measure_speed``.
    """
    check_served_options(options)
    with on_step("verifying the bundle"):
        opened = open_compiled(bundle)
    name = opened.path.resolve().name
    key = serve_api_key()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    if isinstance(http, str):
        return measure_served(opened, Server(http, name, headers), options, on_note=on_note, on_step=on_step)
    on_note("starting a server")
    start = now()
    with started_server(name, opened.path) as url:
        server = Server(url, name, headers, now() - start)
        return measure_served(opened, server, options, on_note=on_note, on_step=on_step)


@with_keywords(
    TargetKeywords, QuantisationKeywords, CalibrationKeywords, DatasetKeywords, ReadingKeywords, SweepKeywords
)
def run_sweep(
    source: str | os.PathLike[str] | ExportedBundle,
    output: str | os.PathLike[str],
    options: SweepOptions | None = None,
    dataset: AnyDataset | None = None,
    *,
    on_note: Callable[[str], None] = lambda _message: None,
    on_result: Callable[[str], None] = lambda _name: None,
    on_step: StartStep = no_steps,
    **keywords: Unpack[SweepKeywords],
) -> SweepReport:
    """Compile a bundle in several precisions, and measure accuracy, speed and size, as ``clipmlu sweep`` does.

    An interrupted sweep goes on with the same call: only missing or invalid results are measured.

    Args:
        source: the exported bundle, or its path.
        output: directory of the bundles and of the results.
        options: an options object instead of the keywords.
        dataset: dataset for accuracy: its name, or an open one; None measures no accuracy.
        on_note: called with a line for the user at each step.
        on_result: called with the name of each result after it is stored.
        on_step: begins each step that may take seconds; see ``clipmlu.steps``.

    Raises:
        UnknownNameError: there is no such dataset or keyword.
        OptionError: a value is wrong, or no precision is given.
        BundleError: the exported bundle does not exist or is invalid.
        BackendUnavailableError: the target's runtime is not available.
        BundleExistsError: ``output`` has another bundle, and ``overwrite`` is False.
        ClipmluError: as the steps.
    """
    refuse_both(options, keywords, "run_sweep")
    given = check_keywords(keywords, SweepKeywords, "run_sweep")
    chosen = _sweep_options(given) if options is None else options
    if dataset is None:
        dataset_choice(None, given)  # refuses what describes images
    opened = None if dataset is None else _open_dataset(dataset, given)[0]
    path = source.path if isinstance(source, ExportedBundle) else source
    return sweep.run_sweep(path, output, chosen, opened, on_note=on_note, on_result=on_result, on_step=on_step)


def _sweep_options(given: Mapping[str, Any]) -> SweepOptions:
    if not given.get("precision"):
        raise OptionError("precision is missing; expected one or several, such as precision=['fp32', 'int8']")
    compiling = {name: value for name, value in given.items() if name not in ("precision", "batch_size")}
    measuring = {name: given[name] for name in ("samples", "seed", "templates", "workers") if name in given}
    fields = {"threads": "threads", "repetitions": "repetitions", "duration_ms": "duration"}
    return SweepOptions(
        compile=compile_options(compiling),
        precisions=_several(given["precision"]),
        batch_sizes=_several(given.get("batch_size", (1, 8, 32))),
        evaluate=EvalOptions(**measuring),
        **{field: given[name] for field, name in fields.items() if name in given},
    )


def _several(given: Any) -> tuple[Any, ...]:
    return (given,) if isinstance(given, str | int) else tuple(given)
