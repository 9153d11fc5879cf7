"""The training facts of a bare weights file, from its content and the files beside it: activation and preprocessing."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from clipmlu.bundle.other_folders import OPEN_CLIP_CONFIG
from clipmlu.data.preprocess import OPENAI_MEAN, OPENAI_STD
from clipmlu.export.catalog import quick_gelu_name, quick_gelu_tags
from clipmlu.export.torchscript import SCRIPT_ACTIVATION
from clipmlu.files.read import read_json, read_small_file

CONFIG_NAME = OPEN_CLIP_CONFIG
_PARAMETERS_NAME = "params.txt"  # written by open_clip's training into a run's folder, one "name: value" per line
_MOST_BYTES = 1 << 20

# State entries that only OpenAI's own package writes; all of its models use QuickGELU.
_OPENAI_ENTRIES = ("input_resolution", "context_length", "vocab_size")
_OPENAI_SOURCE = f"'{_OPENAI_ENTRIES[0]}' in it, which only OpenAI's own package writes,"
_FLAGS = ("quick_gelu", "force_quick_gelu")
_NAMES = ("model", "model_name", "arch", "name", "clip_model", "backbone")
_MARK = "quickgelu"
PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """Facts about the training of weights.

    Attributes:
        quick_gelu: whether they were trained with QuickGELU; None if unknown.
        gelu_source: source of that fact, as the subject of a sentence.
        preprocess: entries of open_clip's ``preprocess_cfg``; empty if unknown.
        preprocess_source: source of these entries.
    """

    quick_gelu: bool | None = None
    gelu_source: str = ""
    preprocess: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocess_source: str = ""


def files_beside(checkpoint: Path) -> Iterator[Path]:
    """Yield the files near a checkpoint that describe its training."""
    # open_clip's training writes FOLDER/params.txt and FOLDER/checkpoints/epoch_N.pt.
    folders = (
        [checkpoint.parent, checkpoint.parent.parent]
        if checkpoint.parent.name == "checkpoints"
        else [checkpoint.parent]
    )
    for path in (checkpoint.parent / CONFIG_NAME, *(folder / _PARAMETERS_NAME for folder in folders)):
        if path.is_file():
            yield path


def learn_training(
    checkpoint: Path, model_cfg: Mapping[str, Any], facts: Mapping[str, Any], tensors: Mapping[str, Any]
) -> Training:
    """Find out how the weights of a file were trained.

    Args:
        checkpoint: the file.
        model_cfg: the architecture that it is loaded into; configurations of other architectures are ignored.
        facts: numbers and strings in the file.
        tensors: its tensors.
    """
    found = training_from_content(checkpoint, facts, tensors)
    for path in files_beside(checkpoint):
        is_config = path.name == CONFIG_NAME
        found = _join(found, _training_from_config(path, model_cfg) if is_config else _training_from_parameters(path))
    if not _is_of_openais_package(facts, tensors):
        return found
    prepared = {"mean": list(OPENAI_MEAN), "std": list(OPENAI_STD)}
    return _join(found, Training(preprocess=prepared, preprocess_source=_OPENAI_SOURCE))


def training_from_content(checkpoint: Path, facts: Mapping[str, Any], tensors: Mapping[str, Any]) -> Training:
    """Find out from its content alone which activation the weights of a file have; arguments as for ``learn_training``."""
    if SCRIPT_ACTIVATION in facts:
        source = f"the TorchScript code in '{checkpoint}'"
        return Training(quick_gelu=facts[SCRIPT_ACTIVATION] == "quick_gelu", gelu_source=source)
    if _is_of_openais_package(facts, tensors):
        return Training(quick_gelu=True, gelu_source=_OPENAI_SOURCE)
    return _training_from_facts(checkpoint, facts)


def _is_of_openais_package(facts: Mapping[str, Any], tensors: Mapping[str, Any]) -> bool:
    return {name.rpartition(".")[2] for name in (*facts, *tensors)}.issuperset(_OPENAI_ENTRIES)


def _training_from_facts(checkpoint: Path, facts: Mapping[str, Any]) -> Training:
    for name, value in facts.items():
        key = name.rpartition(".")[2]
        if key in _FLAGS and _as_flag(value) is not None:
            # A False flag proves little: the architecture's name or the initial weights may imply QuickGELU.
            if _as_flag(value) or key == _FLAGS[0]:
                return Training(quick_gelu=_as_flag(value), gelu_source=f"'{name}' in '{checkpoint}'")
        elif key in _NAMES and isinstance(value, str) and _MARK in value.lower().replace("_", ""):
            return Training(quick_gelu=True, gelu_source=f"'{name}' in '{checkpoint}'")
    return Training()


def note_activation(name: str, checkpoint: Path, training: Training) -> str | None:
    """Return a note if the activation is assumed, or is not that of the model's name; else None."""
    twin = quick_gelu_name(name)
    if training.quick_gelu and twin is not None:
        return f"'{checkpoint}' is loaded with QuickGELU, as '{twin}' has it: {training.gelu_source} says so"
    if training.quick_gelu is False and name.endswith(f"-{_MARK}"):
        return f"'{checkpoint}' is loaded with QuickGELU, as '{name}' says, but {training.gelu_source} says that it was trained with GELU"
    if twin is None or training.quick_gelu is not None:
        return None
    tags = ", ".join(f"'{tag}'" for tag in quick_gelu_tags(name))
    return (
        f"'{checkpoint}' does not say which activation it was trained with, and is loaded with GELU, as '{name}' has it. "
        f"A fine-tune of weights with QuickGELU ({tags}) gives wrong results so: export it as '{twin}' instead"
    )


def _join(first: Training, second: Training) -> Training:
    activated = first if first.quick_gelu is not None else second
    prepared = first if first.preprocess else second
    return Training(
        quick_gelu=activated.quick_gelu,
        gelu_source=activated.gelu_source,
        preprocess=prepared.preprocess,
        preprocess_source=prepared.preprocess_source,
    )


def _as_flag(value: object) -> bool | None:
    return {"true": True, "false": False}.get(str(value).lower())


def _training_from_config(path: Path, model_cfg: Mapping[str, Any]) -> Training:
    try:
        content = read_json(path, dict[str, Any], _MOST_BYTES)
    except (OSError, msgspec.DecodeError):
        return Training()  # the user did not name this file, so its errors are ignored
    config = content.get("model_cfg")
    if not isinstance(config, dict) or any(
        config.get(key) != model_cfg.get(key) for key in ("embed_dim", "vision_cfg")
    ):
        return Training()
    preprocess = content.get("preprocess_cfg")
    known = (
        {key: preprocess[key] for key in PREPROCESS_KEYS if key in preprocess} if isinstance(preprocess, dict) else {}
    )
    return Training(
        quick_gelu=bool(config.get("quick_gelu", False)),
        gelu_source=f"'{path}'",
        preprocess=known,
        preprocess_source=f"'{path}'",
    )


def _training_from_parameters(path: Path) -> Training:
    try:
        lines = read_small_file(path, _MOST_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:
        return Training()
    values = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    preprocess = {
        key: _literal(values[f"image_{key}"])
        for key in PREPROCESS_KEYS
        if values.get(f"image_{key}", "None") not in ("None", "")
    }
    return Training(
        quick_gelu=_trained_quick_gelu(values),
        gelu_source=f"'{path}'",
        preprocess=preprocess,
        preprocess_source=f"'{path}'",
    )


def _trained_quick_gelu(values: Mapping[str, str]) -> bool | None:
    model = values.get("model", "")
    if not model:
        return None
    if values.get("force_quick_gelu") == "True" or _MARK in model:
        return True
    # Versions of open_clip differ in the activation of --pretrained openai with a plain name.
    return None if values.get("pretrained") or values.get("resume", "None") not in ("None", "") else False


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
