"""The public functions that make bundles: export, calibrate, compile and search."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypedDict, Unpack

from clipmlu.api.compile_keywords import (
    CalibrateKeywords,
    CalibrationKeywords,
    CompileKeywords,
    LowerKeywords,
    QuantisationKeywords,
    ReadingKeywords,
    SearchKeywords,
    ShapeKeywords,
    TargetKeywords,
    calibration_options,
    compile_options,
    lower_options,
)
from clipmlu.arguments import check_argument, shown
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle, open_bundle
from clipmlu.compile import compiler, lowering
from clipmlu.compile.lowering import LoweredGraphs, LowerOptions
from clipmlu.compile.plan import CompileOptions
from clipmlu.compile.recipe import apply_recipe, read_recipe
from clipmlu.data.calibration import CalibrationOptions, obtain_calibration
from clipmlu.data.calibration_set import CalibrationSet
from clipmlu.data.images import DEFAULT_MAX_PIXELS
from clipmlu.data.pairs.reading import PairChoice
from clipmlu.errors import OptionError
from clipmlu.export import exporter
from clipmlu.export.options import ExportOptions
from clipmlu.keywords import check_keywords, refuse_both, with_keywords
from clipmlu.specs import Layout, NaturalInt
from clipmlu.steps import StartStep, no_steps
from clipmlu.tune import quantise
from clipmlu.tune.trial import SearchOptions, SearchReport

Bundle = ExportedBundle | CompiledBundle
_COMPILING = (ShapeKeywords, TargetKeywords, QuantisationKeywords, CalibrationKeywords, ReadingKeywords)


class ExportKeywords(TypedDict, total=False):
    """Keywords of ``export_model``.

    Attributes:
        pretrained: an open_clip tag of weights, or the path of a checkpoint file, for a model name of open_clip.
        random_weights: export untrained weights, drawn from ``seed``.
        seed: seed of ``random_weights``.
        layout: ``"towers"`` for one graph per tower, ``"joint"`` for the fused two-input graph.
        opset: ONNX opset of the graphs, 18 or 20.
        tokenizer: a ``tokenizer.json``, or a directory with one, instead of the model's own tokenizer.
        cache_dir: directory of downloads; None for huggingface_hub's default (``HF_HOME``).
        offline: use only local files, no network.
        overwrite: replace a bundle at the output path.
        max_abs_diff: gate: largest difference of an embedding's element between torch and the exported graph.
        min_cosine: gate: smallest cosine similarity of two embeddings of the same input.
        external_data_bytes: a graph with more bytes of weights than this stores them in a file beside it.
    """

    pretrained: str | None
    random_weights: bool
    seed: NaturalInt
    layout: Layout
    opset: int
    tokenizer: str | os.PathLike[str] | None
    cache_dir: str | os.PathLike[str] | None
    offline: bool
    overwrite: bool
    max_abs_diff: float
    min_cosine: float
    external_data_bytes: int


@with_keywords(ExportKeywords, defaults=ExportOptions)
def export_model(
    model: str,
    output: str | os.PathLike[str],
    options: ExportOptions | None = None,
    *,
    on_note: Callable[[str], None] | None = None,
    on_step: StartStep = no_steps,
    **keywords: Unpack[ExportKeywords],
) -> ExportedBundle:
    """Export a model to ONNX and compare it with torch, as ``clipmlu export`` does.

    Args:
        model: an open_clip name (``"ViT-B-32::openai"``), ``"hf-hub:org/name"``, ``"hf:org/name"``, ``"ms:org/name"``, ``"local-dir:PATH"``, or ``"demo"``.
        output: directory of the exported bundle.
        options: an options object instead of the keywords.
        on_note: called with a line for the user about each assumption; None for a log warning.
        on_step: begins each step that may take seconds; see ``clipmlu.steps``.

    Returns:
        The published bundle, opened.

    Raises:
        UnknownNameError: there is no such model or pretrained tag, or no such keyword.
        OptionError: a value is wrong, or the weights are not given, or given twice.
        MissingDependencyError: torch or open_clip is not installed.
        DownloadError: a file of the model cannot be downloaded.
        BundleExistsError: the output path already exists.
        OutputError: the output cannot be written.
        ParityError: the graphs' results differ from torch; nothing is published.
        ExportError: the model cannot be exported for another reason.
    """
    refuse_both(options, keywords, "export_model")
    if options is None:
        options = ExportOptions(**check_keywords(keywords, ExportKeywords, "export_model"))
    return exporter.export_model(model, output, options, on_note=on_note or exporter.LOG.warning, on_step=on_step)


@with_keywords(*_COMPILING, SearchKeywords, CompileKeywords, defaults=CompileOptions)
def compile_bundle(
    source: str | os.PathLike[str] | ExportedBundle,
    output: str | os.PathLike[str],
    options: CompileOptions | None = None,
    *,
    on_note: Callable[[str], None] = lambda _message: None,
    on_step: StartStep = no_steps,
    **keywords: Unpack[CompileKeywords],
) -> CompiledBundle:
    """Compile an exported bundle for one target, as ``clipmlu compile`` does.

    Args:
        source: the exported bundle, or its path.
        output: directory of the compiled bundle.
        options: an options object instead of the keywords.
        on_note: called with a line for the user: the target that ``auto`` took, and each trial of a search.
        on_step: begins each step that may take seconds; see ``clipmlu.steps``.

    Returns:
        The compiled bundle, published and verified.

    Raises:
        UnknownNameError: there is no such target or keyword.
        PrecisionError: the target does not offer the precision.
        OptionError: a value is wrong, or does not apply to the target.
        CompileError: a graph cannot be expressed on the target.
        CalibrationError: the calibration data do not fit.
        BackendUnavailableError: the target's runtime cannot be used on this machine.
        BundleExistsError: the output path already exists.
        GateError: the compiled graphs do not agree with the exported ones; nothing is published.
    """
    refuse_both(options, keywords, "compile_bundle")
    if options is not None or not keywords:
        return compiler.compile_bundle(source, output, options, on_note=on_note, on_step=on_step)
    given = check_keywords(keywords, CompileKeywords, "compile_bundle")
    recipe = given.pop("recipe", None)
    if given.get("max_drop") is not None:
        if recipe is not None:
            raise OptionError(_RECIPE_ALONE)
        return _search(source, output, given, on_note, on_step=on_step)[0]
    refuse_search(given)
    chosen = compile_options(given)
    if recipe is not None:
        chosen = use_recipe(recipe, chosen, given)
    return compiler.compile_bundle(source, output, chosen, on_note=on_note, on_step=on_step)


_OF_PAIRS = ("search_image_column", "search_text_column", "search_image_root", "search_split")
"""Keywords about how the pairs of a search are read."""


def refuse_search(given: Mapping[str, Any]) -> None:
    """Check that no option of a search is given, as there is no search without ``max_drop``.

    Raises:
        OptionError: one is not None.
    """
    for name in ("search_pairs", *_OF_PAIRS, "search_samples", "search_templates"):
        if given.get(name) is not None:
            raise OptionError(
                f"{name.replace('_', ' ')} is {shown(given[name])}, but nothing is searched; give max_drop (--max-drop) too"
            )


_RECIPE_ALONE = "a recipe sets the precision and the quantisation options; leave out --max-drop and --precision"


def use_recipe(recipe: str | os.PathLike[str], options: CompileOptions, given: Mapping[str, Any]) -> CompileOptions:
    """Return the options of a compilation with a recipe.

    Args:
        recipe: the recipe's file, or a compiled bundle.
        options: all other options.
        given: keywords of the call, which must not contradict the recipe.

    Raises:
        OptionError: the precision, or a search, is given too.
        InputError, BundleError: the recipe cannot be read.
    """
    if given.get("max_drop") is not None or given.get("precision") is not None:
        raise OptionError(_RECIPE_ALONE)
    return apply_recipe(read_recipe(recipe), options, max_pixels=given.get("max_pixels", DEFAULT_MAX_PIXELS))


@with_keywords(*_COMPILING, SearchKeywords, defaults=CompileOptions)
def search_bundle(
    source: str | os.PathLike[str] | ExportedBundle,
    output: str | os.PathLike[str],
    options: CompileOptions | None = None,
    search: SearchOptions | None = None,
    *,
    on_note: Callable[[str], None] = lambda _message: None,
    on_result: Callable[[str], None] = lambda _name: None,
    on_step: StartStep = no_steps,
    **keywords: Unpack[SearchKeywords],
) -> tuple[CompiledBundle, SearchReport]:
    """Compile the fastest bundle within an allowed loss of accuracy, as ``clipmlu compile --max-drop`` does.

    Args:
        source: the exported bundle, or its path.
        output: directory of the compiled bundle.
        options: options that are not searched, instead of the keywords; with calibration data.
        search: options of the search, given with ``options``.
        on_note: called with a line for the user after each trial.
        on_result: called with the name of each trial after it is stored.
        on_step: begins each step that may take seconds; see ``clipmlu.steps``.

    Returns:
        The bundle, and the report.

    Raises:
        GateError: no trial is within the allowed drop; the message names the file of the report.
        OptionError: ``max_drop`` is missing, or a value is wrong.
        InputError: the dataset has no labelled images to evaluate on.
        ClipmluError: as ``compile_bundle``.
    """
    refuse_both(options if search is None else search, keywords, "search_bundle")
    if options is not None or search is not None:
        chosen: SearchOptions = check_argument(search, SearchOptions, "search")
        held: CompileOptions = check_argument(options, CompileOptions, "options")
        return quantise.search_bundle(
            source, output, held, chosen, on_note=on_note, on_result=on_result, on_step=on_step
        )
    given = check_keywords(keywords, SearchKeywords, "search_bundle")
    if given.get("max_drop") is None:
        raise OptionError("max drop is missing; expected the allowed loss of top-1 accuracy, such as max_drop=0.01")
    return _search(source, output, given, on_note, on_result, on_step)


def _search(
    source: str | os.PathLike[str] | ExportedBundle,
    output: str | os.PathLike[str],
    given: Mapping[str, Any],
    on_note: Callable[[str], None],
    on_result: Callable[[str], None] = lambda _name: None,
    on_step: StartStep = no_steps,
) -> tuple[CompiledBundle, SearchReport]:
    options, search = compile_options(given), search_options(given)
    return quantise.search_bundle(
        source, output, options, search, on_note=on_note, on_result=on_result, on_step=on_step
    )


def search_options(keywords: Mapping[str, Any]) -> SearchOptions:
    """Return the options of a search from ``SearchKeywords``; the precision limits it if it is given.

    Raises:
        OptionError: a value is wrong.
    """
    pairs = keywords.get("search_pairs")
    paths = (pairs,) if isinstance(pairs, str | os.PathLike) else tuple(pairs or ())
    reading = {name: keywords[name] for name in _OF_PAIRS if keywords.get(name) is not None}
    if reading and not paths:
        name, value = next(iter(reading.items()))
        raise OptionError(
            f"{name.replace('_', ' ')} is {shown(value)}, but there are no pairs; give search_pairs (--search-pairs) too"
        )
    if paths and keywords.get("search_templates", "simple") != "simple":
        raise OptionError("search templates are for classes; texts of pairs are taken as they are, so leave them out")
    return SearchOptions(
        max_drop=keywords["max_drop"],
        pairs=PairChoice(
            paths=paths,
            max_pixels=keywords.get("max_pixels", DEFAULT_MAX_PIXELS),
            **{name.removeprefix("search_"): value for name, value in reading.items()},
        )
        if paths
        else None,
        samples=keywords.get("search_samples"),
        templates=keywords.get("search_templates", "simple"),
        precision=keywords.get("precision"),
    )


@with_keywords(
    ShapeKeywords, QuantisationKeywords, CalibrationKeywords, ReadingKeywords, LowerKeywords, defaults=CompileOptions
)
def lower(
    bundle: str | os.PathLike[str] | ExportedBundle,
    output: str | os.PathLike[str],
    options: LowerOptions | None = None,
    *,
    on_note: Callable[[str], None] = lambda _message: None,
    on_step: StartStep = no_steps,
    **keywords: Unpack[LowerKeywords],
) -> LoweredGraphs:
    """Write the ONNX files that ``compile_bundle`` hands to the vendor's parser, as ``clipmlu lower`` does.

    They have opset 11 and plain operators, and a description of inputs, outputs and build commands beside them. Nothing of the
    vendor's SDK is needed.

    Args:
        bundle: the exported bundle, or its path.
        output: the folder to write.
        options: an options object instead of the keywords.
        on_note: called with a line for the user about the labels.
        on_step: begins each step that may take seconds; see ``clipmlu.steps``.

    Returns:
        The folder: its ``header`` describes the graphs, ``graph_path`` gives their files.

    Raises:
        UnknownNameError: there is no such keyword.
        OptionError: a value is wrong, or two contradict each other.
        BundleError: the bundle is a compiled one, or has the fused graph and two towers are wanted.
        CompileError: a graph cannot be expressed for the parser.
        CalibrationError: the calibration data do not fit.
        BundleExistsError: the output path already exists.
    """
    refuse_both(options, keywords, "lower")
    if options is None:
        options = lower_options(check_keywords(keywords, LowerKeywords, "lower"))
    return lowering.lower_bundle(bundle, output, options, on_note=on_note, on_step=on_step)


@with_keywords(CalibrationKeywords, ReadingKeywords, CalibrateKeywords)
def calibrate_bundle(
    bundle: str | os.PathLike[str] | Bundle,
    output: str | os.PathLike[str],
    options: CalibrationOptions | None = None,
    *,
    on_step: StartStep = no_steps,
    **keywords: Unpack[CalibrateKeywords],
) -> CalibrationSet:
    """Select calibration data for a bundle and save them, as ``clipmlu calibrate`` does; ``calib`` must be given.

    Args:
        bundle: the bundle, or its path.
        output: directory of the calibration set.
        options: an options object instead of the keywords.
        on_step: shows the images; see ``clipmlu.steps``.

    Returns:
        The set; its ``record`` has the numbers of images and texts and the digest.

    Raises:
        OptionError: a value is wrong, or no data are given.
        CalibrationError, InputError: the data cannot be read.
        BundleExistsError: the output path already exists.
    """
    given = check_keywords(keywords, CalibrateKeywords, "calibrate_bundle")
    overwrite = given.pop("overwrite", False)
    refuse_both(options, given, "calibrate_bundle")
    chosen = calibration_options(given) if options is None else options
    if chosen is None:
        raise OptionError("calib is missing; expected a dataset or a folder of images, such as calib='cifar100'")
    opened = open_bundle(bundle) if isinstance(bundle, str | os.PathLike) else bundle
    drawn = obtain_calibration(opened, check_argument(chosen, CalibrationOptions, "options"), on_step)
    drawn.save(output, overwrite=overwrite)
    return drawn
