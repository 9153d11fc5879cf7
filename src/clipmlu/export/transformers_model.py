"""Loading models of two towers of the transformers library, from a directory as ``save_pretrained`` writes it.

Classes of the library itself are built, by ``model_type``; Python code of a repository is never run.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from clipmlu.data.processor_config import PROCESSOR_FILES, is_naflex, read_processor, spec_from_processor
from clipmlu.errors import ExportError, InputError, first_line, reason_of
from clipmlu.export.checkpoint import refusal_of_pickle
from clipmlu.export.configuration import MODEL_TYPES, parse_transformers_config
from clipmlu.export.directories import CONFIG_NAMES, WEIGHTS_NAMES
from clipmlu.export.filetypes import error_text, identify_weights, unusable_weights
from clipmlu.export.loading import LoadedModel, activation_name, digest_weights, read_logit_values
from clipmlu.export.options import PURPOSE, ExportOptions
from clipmlu.export.quiet import no_progress_bars
from clipmlu.export.source import Source
from clipmlu.export.transformers_images import transparency_of
from clipmlu.export.transformers_tokenizer import read_text_inputs
from clipmlu.export.transformers_towers import wrap_towers
from clipmlu.file_names import name_from_path
from clipmlu.files.read import read_json
from clipmlu.host import require
from clipmlu.specs import PreprocessSpec
from clipmlu.steps import StartStep, no_steps

_MOST_NAMED = 3
_MOST_INDEX_BYTES = 64 << 20
_ADAPTER = "adapter_config.json"  # of the library peft, with which transformers would load another model
_PLAIN_NAME = re.compile(r"[\w-][\w.+@-]*")


class _Index(msgspec.Struct):
    """An index of weights in several files; maps the name of each weight to its file."""

    weight_map: dict[str, str]


def load_transformers_model(source: Source, options: ExportOptions, on_step: StartStep = no_steps) -> LoadedModel:
    """Build the model of a directory and load its weights.

    Args:
        source: a source with a directory of the transformers library.
        options: options of the export.
        on_step: begins each step.

    Returns:
        The model; ``module`` has the methods of open_clip's that the export uses, and the library's own as ``wrapped_model``.

    Raises:
        MissingDependencyError: torch or transformers is not installed.
        ExportError: the configuration, the weights, the preprocessing or the tokenizer cannot be used.
    """
    folder = source.directory
    assert folder is not None, "repositories became directories"
    config = parse_transformers_config(folder / CONFIG_NAMES["transformers"])
    _check_weights(source)
    settings = _read_preprocessing(folder)
    with on_step("importing torch and transformers"):
        torch = require("torch", "export", PURPOSE)
        transformers = require("transformers", "export", PURPOSE)
    preprocess = _spec(folder, settings)
    _check_size(source, config, preprocess)
    texts = read_text_inputs(folder, config, optional=options.tokenizer is not None or source.random)
    kind = getattr(transformers, MODEL_TYPES[config["model_type"]], None)
    if kind is None:
        raise ExportError(
            f"transformers {transformers.__version__} has no {MODEL_TYPES[config['model_type']]}; install a newer version."
        )
    with on_step("loading the weights"), _errors(source), no_progress_bars(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model, notes = _build_random(kind, folder) if source.random else _load(kind, source)
    module = wrap_towers(model.float().eval().requires_grad_(False), config["model_type"], texts, preprocess)
    scale, bias = read_logit_values(module, source)
    return LoadedModel(
        module=module,
        config={"text_cfg": {"hf_tokenizer_name": str(folder), "tokenizer_kwargs": {"clean": "none"}}},
        preprocess=preprocess,
        context_length=texts.context_length,
        vocab_size=int(model.config.text_config.vocab_size),
        pad_id=texts.pad_id,
        logit_scale=scale,
        logit_bias=bias,
        activation=activation_name(model),
        weights_digest=digest_weights(module),
        notes=(*notes, *texts.notes, *_image_notes(settings, preprocess)),
    )


def _check_weights(source: Source) -> None:
    """Check that the weights are those of the directory alone, and identify their file by its first bytes.

    So a pointer or a failed download is named at once, and no file is read that nobody named or verified.
    """
    path = source.checkpoint
    if path is None:
        return
    if (path.parent / _ADAPTER).is_file():
        raise ExportError(
            f"'{path.parent}' has an adapter ('{_ADAPTER}') beside the weights. Merge it in the program that made it, save the "
            "whole model (merge_and_unload, save_pretrained), and give that; or move the adapter away."
        )
    if path.name.endswith(".json"):
        _check_index(path)
        return
    form = identify_weights(path)
    if form not in ("safetensors", "torch"):
        raise unusable_weights(path, "it is no file of weights as transformers writes it, but one of another format.")


def _check_index(path: Path) -> None:
    """Raise if an index of weights in several files is damaged, or names a file outside its directory."""
    try:
        names = read_json(path, _Index, _MOST_INDEX_BYTES).weight_map.values()
    except (OSError, msgspec.DecodeError) as error:
        raise unusable_weights(path, f"it is no index of weights in several files: {reason_of(error)}.") from error
    for name in dict.fromkeys(names):
        if not _PLAIN_NAME.fullmatch(name):
            raise unusable_weights(
                path, f"it takes weights from '{name}', which is not in its directory. Do not use this file."
            )
        if not (path.parent / name).is_file():
            raise unusable_weights(path, f"it names '{name}', which is missing. Get that file, too.")


def _read_preprocessing(folder: Path) -> dict[str, Any]:
    try:
        return read_processor(folder)[1]
    except InputError as error:
        raise ExportError(str(error)) from error


def _spec(folder: Path, settings: Mapping[str, Any]) -> PreprocessSpec:
    try:
        spec = spec_from_processor(settings)
        return spec_from_processor(settings, transparency=transparency_of(folder, spec))
    except ValueError as error:
        names = " or ".join(name for name in PROCESSOR_FILES if (folder / name).is_file())
        raise ExportError(f"'{folder}', {names}: {error}.") from error


def _check_size(source: Source, config: Mapping[str, Any], spec: PreprocessSpec) -> None:
    size = (config.get("vision_config") or {}).get("image_size")
    if config["model_type"] == "align" or not isinstance(size, int) or isinstance(size, bool):
        return
    if (spec.height, spec.width) != (size, size):
        raise ExportError(
            f"Model '{source.identity}': its configuration has images of {size}x{size}, its preprocessing makes "
            f"{spec.height}x{spec.width}. Correct {CONFIG_NAMES['transformers']} or {PROCESSOR_FILES[1]}."
        )


def _image_notes(settings: Mapping[str, Any], spec: PreprocessSpec) -> list[str]:
    if not is_naflex(settings):
        return []
    return [
        f"images are squashed to {spec.height}x{spec.width}: the model takes any aspect ratio in transformers, a graph one size"
    ]


def _build_random(kind: Any, folder: Path) -> tuple[Any, list[str]]:
    config = kind.config_class.from_pretrained(str(folder), local_files_only=True)
    return kind._from_config(config, attn_implementation="eager"), []


def _load(kind: Any, source: Source) -> tuple[Any, list[str]]:
    """Load the weights without running code from the directory; a pickle is read as weights only."""
    assert source.directory is not None, "the caller checked it"
    assert source.checkpoint is not None, "a source without random weights has a checkpoint"
    _refuse_other_weights(source.directory)
    torch = require("torch", "export", PURPOSE)
    transformers = require("transformers", "export", PURPOSE)
    # Version 5 rounds weights to the configuration's dtype; the file may hold more of them. Version 4 never does.
    exact = {"dtype": torch.float32} if int(transformers.__version__.partition(".")[0]) >= 5 else {}
    model, report = kind.from_pretrained(
        str(source.directory),
        **exact,
        local_files_only=True,
        weights_only=True,
        use_safetensors=".safetensors" in source.checkpoint.name,
        attn_implementation="eager",
        output_loading_info=True,
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise unusable_weights(
            source.checkpoint, f"{len(missing)} weights of {kind.__name__} are missing in it ({_first(missing)})."
        )
    unexpected = sorted(report["unexpected_keys"])
    left_out = f"{len(unexpected)} tensors ({_first(unexpected)}) were left out: they belong to no part of the model"
    return model, [left_out] if unexpected else []


def _refuse_other_weights(folder: Path) -> None:
    """Refuse quantised weights, and those that the configuration takes from a file of another name."""
    config = json.loads((folder / CONFIG_NAMES["transformers"]).read_bytes())
    if config.get("quantization_config"):
        raise ExportError(
            f"The weights in '{folder}' are quantised ('quantization_config'). Give the float weights, and quantise with clipmlu compile."
        )
    if config.get("transformers_weights"):
        raise ExportError(
            f"'{folder / CONFIG_NAMES['transformers']}' takes the weights from {config['transformers_weights']!r} ('transformers_weights'). "
            f"Remove that entry, and name the file {WEIGHTS_NAMES['transformers'][0]}."
        )


def _first(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:_MOST_NAMED]) + (", ..." if len(names) > _MOST_NAMED else "")


@contextmanager
def _errors(source: Source) -> Iterator[None]:
    try:
        yield
    except (ExportError, ImportError):
        raise
    except Exception as error:  # the library raises various errors for a wrong configuration or damaged weights
        if source.checkpoint is None:
            raise ExportError(f"Cannot build '{source.identity}': {first_line(error)}") from error
        if isinstance(error, pickle.UnpicklingError):
            raise refusal_of_pickle(source.checkpoint, error) from error
        shown = name_from_path(source.checkpoint)
        raise ExportError(f"Cannot load '{source.identity}' with the weights '{shown}': {error_text(error)}") from error
