"""``pipeline``: from the name of a model, or a bundle, to a model that is ready, with all bundles in the cache directory."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack, overload

from clipmlu.api.compile_keywords import (
    CalibrationKeywords,
    QuantisationKeywords,
    ReadingKeywords,
    ShapeKeywords,
    TargetKeywords,
    compile_options,
)
from clipmlu.api.open_set_keywords import OpenSetKeywords
from clipmlu.arguments import as_path, check_argument, is_there, shown
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle, open_bundle, open_exported
from clipmlu.chain import compiled_folder_name, export_key, model_folder_name, obtain_exported
from clipmlu.classify.classifier import ZeroShotClassifier
from clipmlu.classify.open_set import resolve_open_set
from clipmlu.compile.plan import CompileOptions, plan_compilation
from clipmlu.data.calibration import CalibrationOptions
from clipmlu.data.class_prompts import ClassLabels, resolve_labels, resolve_prompts
from clipmlu.data.prompts import Templates
from clipmlu.errors import MissingDependencyError, OptionError
from clipmlu.export.catalog import DEMO_MODEL, MODEL_PREFIXES
from clipmlu.export.options import ExportOptions
from clipmlu.export.source import files_of_name
from clipmlu.host import cache_dir as default_cache_dir
from clipmlu.keys import options_digest
from clipmlu.keywords import check_keywords, with_keywords
from clipmlu.model import Model, load
from clipmlu.specs import NaturalInt
from clipmlu.steps import StartStep, no_steps
from clipmlu.tune.bundles import obtain_compiled
from clipmlu.tune.resume import Note, ResultStore

_FOLDER = "models"
_UNNAMED = 12  # digits of a digest in a folder name; the stored keys have whole ones


class PipelineKeywords(
    OpenSetKeywords, TargetKeywords, ShapeKeywords, CalibrationKeywords, ReadingKeywords, total=False
):
    """Keywords of ``pipeline``.

    Attributes:
        pretrained: an open_clip tag of weights, or the path of a checkpoint file, for a name without ``::TAG``.
        random_weights: untrained weights, drawn from ``seed``.
        seed: seed of ``random_weights``.
        tokenizer: a ``tokenizer.json``, or a directory with one, instead of the model's own tokenizer.
        threads: CPU threads for one batch; 0 for the runtime's default.
        devices: several MLU cards that share the images: their indices, or ``"all"``.
        fast_preprocess: decode large JPEGs at a reduced scale; the pixels then differ from those of open_clip.
    """

    pretrained: str | None
    random_weights: bool
    seed: NaturalInt
    tokenizer: str | os.PathLike[str] | None
    threads: NaturalInt
    devices: Sequence[int] | str | None
    fast_preprocess: bool


_EXPORT_FIELDS = ("pretrained", "random_weights", "seed", "tokenizer", "offline")
_LOAD_FIELDS = ("threads", "devices", "fast_preprocess", "max_pixels")


@overload
def pipeline(
    model: str | os.PathLike[str] | ExportedBundle | CompiledBundle,
    labels: None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    on_note: Callable[[str], None] | None = None,
    on_step: StartStep = no_steps,
    **keywords: Unpack[PipelineKeywords],
) -> Model: ...


@overload
def pipeline(
    model: str | os.PathLike[str] | ExportedBundle | CompiledBundle,
    labels: ClassLabels,
    *,
    templates: Templates | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    on_note: Callable[[str], None] | None = None,
    on_step: StartStep = no_steps,
    **keywords: Unpack[PipelineKeywords],
) -> ZeroShotClassifier: ...


@with_keywords(
    OpenSetKeywords,
    ShapeKeywords,
    TargetKeywords,
    QuantisationKeywords,
    CalibrationKeywords,
    ReadingKeywords,
    PipelineKeywords,
    defaults=CompileOptions,
)
def pipeline(
    model: str | os.PathLike[str] | ExportedBundle | CompiledBundle,
    labels: ClassLabels | None = None,
    *,
    templates: Templates | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    on_note: Callable[[str], None] | None = None,
    on_step: StartStep = no_steps,
    **keywords: Unpack[PipelineKeywords],
) -> Model | ZeroShotClassifier:
    """Return a model that is ready to use: it is exported and compiled the first time, and read from the cache later.

    Bundles are kept in the cache directory under everything that decides their content: the model's files, the options, the
    versions of the tools. A later call with equal arguments needs no torch. Several processes may call at once: the first one
    does the work, the others wait for it.

    Args:
        model: a name (``"demo"``, ``"ViT-B-32::openai"``, ``"hf-hub:org/name"``, ``"hf:org/name"``, ``"ms:org/name"``, ``"local-dir:PATH"``), or an exported or compiled
            bundle or its path. ``"demo"`` is always the name; write ``"./demo"`` for a folder.
        labels: class names, as for ``Model.classifier``; None for the model itself.
        templates: prompt templates, as for ``Model.classifier``: one template, the name of a set, a file, or a list; None for
            ``"simple"``.
        cache_dir: folder that keeps the bundles; None for ``CLIPMLU_CACHE_DIR``, or ``~/.cache/clipmlu``.
        quiet: write nothing. Otherwise each step is one line on standard error.
        on_note: called with these lines instead.
        on_step: begins each step that may take seconds; see ``clipmlu.steps``.

    Returns:
        A classifier of the labels, which is called with images; without labels the model, which embeds images and texts.

    Raises:
        UnknownNameError: there is no such model, tag, target or keyword.
        OptionError: a value is wrong, or does not apply to what was given.
        MissingDependencyError: the model must be exported, and torch or open_clip is not installed.
        InputError: the labels or the templates cannot be read.
        ClipmluError: as ``export_model``, ``compile_bundle`` and ``load``.
    """
    check_argument(quiet, bool, "quiet")
    given = check_keywords(keywords, PipelineKeywords, "pipeline")
    if quiet and on_note is not None:
        raise OptionError("quiet is True, and on_note takes the lines; give one of them")
    for name, value in (
        ("templates", templates),
        *((each, given.get(each)) for each in OpenSetKeywords.__annotations__),
    ):
        if labels is None and value is not None:
            raise OptionError(f"{name.replace('_', ' ')} is {shown(value)}, but there are no labels; give labels too")
    # Errors that can be found early are raised before the slow steps.
    names = None if labels is None else resolve_labels(labels)
    rules: dict[str, Any] = {name: given.get(name) for name in OpenSetKeywords.__annotations__}
    if names is not None:
        resolve_open_set(tuple(names), **rules, logit_bias=None)  # whether the model has a bias is not known yet
    background = given.get("none_label") is not None or given.get("background") is not None
    resolved = None if names is None or templates is None else resolve_prompts(names, templates, background=background)
    note: Note = on_note or ((lambda _line: None) if quiet else _write_line)
    root = default_cache_dir() if cache_dir is None else as_path(cache_dir, "the cache directory")
    bundle = _obtain(model, given, root / _FOLDER, note, on_step)
    running = {name: given[name] for name in _LOAD_FIELDS if name in given}
    device = given.get("device") if given.get("devices") is None else None
    loaded = load(bundle.path, verify=False, device=device, **running)
    if names is None:
        return loaded
    try:
        return loaded.classifier(names, resolved, on_step=on_step, **rules)
    except BaseException:
        loaded.close()
        raise


def _write_line(line: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(f"clipmlu: {line}\n")
        sys.stderr.flush()


def _obtain(model: object, given: Mapping[str, Any], root: Path, note: Note, on_step: StartStep) -> CompiledBundle:
    """Return a compiled bundle of a model: the bundle itself, or one of the cache."""
    if isinstance(model, str) and not _is_folder(model):
        return _from_name(model, given, root, note, on_step)
    bundle = model if isinstance(model, ExportedBundle | CompiledBundle) else open_bundle(as_path(model, "the model"))
    _refuse(given, _EXPORT_FIELDS[:-1], "the model is exported already")
    if isinstance(bundle, CompiledBundle):
        running = (*_LOAD_FIELDS, *OpenSetKeywords.__annotations__, "device", "offline")
        building = [name for name in given if name not in running]
        _refuse(given, building, f"bundle '{bundle.path}' is compiled already")
        return bundle
    folder = root / f"{_safe(bundle)}-{bundle.digest[:_UNNAMED]}"
    store = ResultStore(folder / "results", note)
    with store.lock():
        return _compile(bundle, folder, given, store, note, on_step)


def _from_name(model: str, given: Mapping[str, Any], root: Path, note: Note, on_step: StartStep) -> CompiledBundle:
    plan_compilation(compile_options(given))  # wrong options are errors before the export
    options = ExportOptions(overwrite=True, **{name: given[name] for name in _EXPORT_FIELDS if name in given})
    folder = root / kept_name(model, options)
    path = folder / "exported"
    store = ResultStore(folder / "results", note)
    with store.lock():
        exported = _without_open_clip(model, path, options, note)
        if exported is None:
            exported = obtain_exported(model, path, options, store, note, on_step)[0]
        return _compile(exported, folder, given, store, note, on_step)


def kept_name(model: str, options: ExportOptions) -> str:
    """Return the name of the folder in the cache that holds the bundles of a model exported with these options."""
    asked = options_digest(options, without=("overwrite", "offline", "cache_dir"))
    return f"{model_folder_name(model, options)}-{asked[:_UNNAMED]}"


def _without_open_clip(model: str, path: Path, options: ExportOptions, note: Note) -> ExportedBundle | None:
    """Return the export at a path if it was made from the files that the options name; None if open_clip is installed.

    Raises:
        MissingDependencyError: there is no such export.
    """
    try:
        export_key(model, options)
    except MissingDependencyError:
        if not is_there(path, folder=True):
            raise
        exported = open_exported(path)
        if exported.manifest.export.source_files != files_of_name(model, options):
            raise
        note(f"using {path}: open_clip is not installed, so its list of weights is not compared")
        return exported
    return None


def _compile(
    exported: ExportedBundle, folder: Path, given: Mapping[str, Any], store: ResultStore, note: Note, on_step: StartStep
) -> CompiledBundle:
    options: CompileOptions = compile_options({**given, "overwrite": True})
    plan = plan_compilation(options)
    if plan.why_target:
        note(plan.why_target)
    path = folder / f"{compiled_folder_name(plan, options)}-{_asked(options)[:_UNNAMED]}"
    return obtain_compiled(exported, path, options, store, note, on_step)[0]


def _asked(options: CompileOptions) -> str:
    """Return a digest of the options that decide what is compiled; whether data may be downloaded is none of them."""
    if isinstance(options.calibration, CalibrationOptions):
        options = dataclasses.replace(options, calibration=dataclasses.replace(options.calibration, download=True))
    return options_digest(options, without=("target", "session", "overwrite"))


def _refuse(given: Mapping[str, Any], names: Sequence[str], why: str) -> None:
    for name in names:
        if given.get(name) is not None:
            raise OptionError(f"{name.replace('_', ' ')} is {shown(given[name])}, but {why}; leave it out")


def _is_folder(model: str) -> bool:
    """Whether a text is the path of a bundle, and not the name of a model."""
    if model == DEMO_MODEL or model.startswith(MODEL_PREFIXES) or "::" in model:
        return False
    return (os.sep in model.rstrip(os.sep) and model[:1] in "./~") or is_there(as_path(model, "the model"), folder=True)


def _safe(bundle: ExportedBundle) -> str:
    return model_folder_name(str(bundle.manifest.model), ExportOptions())
