"""How the weights in a bare file were trained, as far as the file and those beside it say: activation and preprocessing."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from clipmlu.export.catalog import quick_gelu_name, quick_gelu_tags
from clipmlu.files.read import read_json, read_small_file

CONFIG_NAME = "open_clip_config.json"
_PARAMETERS_NAME = "params.txt"  # what open_clip's training writes into a run's folder, one "name: value" a line
_MOST_BYTES = 1 << 20

# Entries that OpenAI's own package has in a state, and nobody else's; all of its models have QuickGELU.
_OPENAI_ENTRIES = ("input_resolution", "context_length", "vocab_size")
_FLAGS = ("quick_gelu", "force_quick_gelu")
_NAMES = ("model", "model_name", "arch", "name", "clip_model", "backbone")
_MARK = "quickgelu"
PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """What is known of it.

    Attributes:
        quick_gelu: whether it was trained with QuickGELU; None if nobody says.
        gelu_source: who says so, as the subject of a sentence.
        preprocess: entries of open_clip's ``preprocess_cfg``; empty if nobody says.
        preprocess_source: who says so.
    """

    quick_gelu: bool | None = None
    gelu_source: str = ""
    preprocess: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocess_source: str = ""


def files_beside(checkpoint: Path) -> Iterator[Path]:
    """Files near a checkpoint that tell how it was trained."""
    # A run of open_clip's training is FOLDER/params.txt and FOLDER/checkpoints/epoch_N.pt.
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
        model_cfg: the architecture that it is loaded into; what lies beside counts for the same one only.
        facts: numbers and strings in the file.
        tensors: its tensors.
    """
    found = _told_by_content(checkpoint, facts, tensors)
    for path in files_beside(checkpoint):
        told = _told_by_config(path, model_cfg) if path.name == CONFIG_NAME else _told_by_parameters(path)
        found = _join(found, told)
    return found


def note_activation(name: str, checkpoint: Path, training: Training) -> str | None:
    """A line for people where the activation is a guess, or is not the one that the name stands for; else None."""
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
    told = first if first.quick_gelu is not None else second
    prepared = first if first.preprocess else second
    return Training(
        quick_gelu=told.quick_gelu,
        gelu_source=told.gelu_source,
        preprocess=prepared.preprocess,
        preprocess_source=prepared.preprocess_source,
    )


def _told_by_content(checkpoint: Path, facts: Mapping[str, Any], tensors: Mapping[str, Any]) -> Training:
    entries = {name.rpartition(".")[2] for name in (*facts, *tensors)}
    if entries.issuperset(_OPENAI_ENTRIES):
        source = f"'{_OPENAI_ENTRIES[0]}' in it, which only OpenAI's own package writes,"
        return Training(quick_gelu=True, gelu_source=source)
    for name, value in facts.items():
        key = name.rpartition(".")[2]
        if key in _FLAGS and _as_flag(value) is not None:
            # A flag that was not set says little: the architecture's name may have said it, or the weights begun with.
            if _as_flag(value) or key == _FLAGS[0]:
                return Training(quick_gelu=_as_flag(value), gelu_source=f"'{name}' in '{checkpoint}'")
        elif key in _NAMES and isinstance(value, str) and _MARK in value.lower().replace("_", ""):
            return Training(quick_gelu=True, gelu_source=f"'{name}' in '{checkpoint}'")
    return Training()


def _as_flag(value: object) -> bool | None:
    return {"true": True, "false": False}.get(str(value).lower())


def _told_by_config(path: Path, model_cfg: Mapping[str, Any]) -> Training:
    try:
        content = read_json(path, dict[str, Any], _MOST_BYTES)
    except (OSError, msgspec.DecodeError):
        return Training()  # it is not what the user gave, and may be anything
    config = content.get("model_cfg")
    if not isinstance(config, dict) or any(
        config.get(key) != model_cfg.get(key) for key in ("embed_dim", "vision_cfg")
    ):
        return Training()
    preprocess = content.get("preprocess_cfg")
    told = (
        {key: preprocess[key] for key in PREPROCESS_KEYS if key in preprocess} if isinstance(preprocess, dict) else {}
    )
    return Training(
        quick_gelu=bool(config.get("quick_gelu", False)),
        gelu_source=f"'{path}'",
        preprocess=told,
        preprocess_source=f"'{path}'",
    )


def _told_by_parameters(path: Path) -> Training:
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
    # Versions of open_clip differ in what they built for --pretrained openai under a plain name.
    return None if values.get("pretrained") or values.get("resume", "None") not in ("None", "") else False


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
