"""Reading models' configurations, with checks before a model is built, since wrong sizes could exhaust the memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from clipmlu.errors import ExportError, reason_of
from clipmlu.export.catalog import MODEL_KEYS
from clipmlu.files.read import read_json

_MOST_BYTES = 16 << 20
_FLOAT_BYTES = 4

# Largest values of open_clip's keys and, below, of keys of transformers' configurations; far above those of any model.
_LIMITS = {
    "embed_dim": 1 << 16,
    "image_size": 1 << 13,
    "layers": 1 << 10,
    "width": 1 << 16,
    "head_width": 1 << 16,
    "patch_size": 1 << 13,
    "heads": 1 << 12,
    "mlp_ratio": 1 << 6,
    "context_length": 1 << 16,
    "vocab_size": 1 << 24,
    "attn_pooler_queries": 1 << 16,
    "attn_pooler_heads": 1 << 12,
}
_TEXT_LIMITS = {
    **dict.fromkeys(("hidden_size", "d_model", "dim", "intermediate_size", "d_ff", "embedding_size"), 1 << 18),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "num_decoder_layers", "n_layers", "encoder_layers"), 1 << 10),
    **dict.fromkeys(("num_attention_heads", "num_heads"), 1 << 12),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "type_vocab_size"), 1 << 24),
}
_TOWER_LIMITS = {
    **_TEXT_LIMITS,
    "image_size": 1 << 13,
    "patch_size": 1 << 13,
    "num_patches": 1 << 20,
    "projection_dim": 1 << 16,
}
_NAMES = ("timm_model_name", "hf_model_name", "hf_tokenizer_name", "hf_proj_type", "hf_pooler_type", "tokenizer_mode")
_TABLES = ("tokenizer_kwargs", "act_kwargs", "norm_kwargs")
_NO_CODE = frozenset(
    {"trust_remote_code", "code_revision", "subfolder", "revision", "use_auth_token", "token", "proxies"}
)

MODEL_TYPES = {
    "clip": "CLIPModel",
    "siglip": "SiglipModel",
    "siglip2": "Siglip2Model",
    "chinese_clip": "ChineseCLIPModel",
    "altclip": "AltCLIPModel",
    "metaclip_2": "MetaClip2Model",
    "align": "AlignModel",
}
"""Maps ``model_type`` of a configuration of transformers to the class of the model, for those that can be exported."""


def parse_config(path: Path) -> dict[str, Any]:
    """Read an ``open_clip_config.json``: ``model_cfg``, and optionally ``preprocess_cfg``.

    Raises:
        ExportError: the file is missing, cannot be parsed, or its sizes are not those of a possible model.
    """
    config = _read(path)
    model = config.get("model_cfg") if isinstance(config, dict) else None
    if not isinstance(model, dict) or not all(key in model for key in MODEL_KEYS):
        raise ExportError(f"'{path}' describes no model: expected 'model_cfg' with {', '.join(MODEL_KEYS)}.")
    if not isinstance(config.get("preprocess_cfg", {}), dict):
        raise ExportError(f"'{path}' has a 'preprocess_cfg' that is no object.")
    _check_numbers(path, "model_cfg", {"embed_dim": model["embed_dim"]})
    for part in ("vision_cfg", "text_cfg"):
        if not isinstance(model[part], dict):
            raise ExportError(f"'{path}' has a '{part}' that is no object of sizes.")
        _check_numbers(path, part, model[part])
        _check_names(path, part, model[part])
    _check_memory(path, _float_count(model))
    return dict(config)


def check_text_config(path: Path) -> None:
    """Check the ``config.json`` of a text tower that transformers builds.

    Raises:
        ExportError: as for ``parse_config``, or the configuration requires its own Python code.
    """
    config = _read(path)
    if not isinstance(config, dict):
        raise ExportError(f"'{path}' describes no text tower: expected an object.")
    if "auto_map" in config:
        raise ExportError(f"'{path}' requires its own Python code ('auto_map'), which clipmlu never runs.")
    for key, most in _TEXT_LIMITS.items():
        _check_number(path, "it", key, config.get(key), most)
    _check_memory(path, _tower_floats(config))


def parse_transformers_config(path: Path) -> dict[str, Any]:
    """Read the ``config.json`` of a model of two towers of the transformers library.

    Raises:
        ExportError: as for ``parse_config``, or the model is none of ``MODEL_TYPES``.
    """
    config = _read(path)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str):
        raise ExportError(f"'{path}' describes no model: expected an object with 'model_type'.")
    if kind not in MODEL_TYPES:
        own = " It requires its own Python code ('auto_map'), which clipmlu never runs." if "auto_map" in config else ""
        raise ExportError(f"'{path}' has the model_type '{kind}'; expected one of {', '.join(MODEL_TYPES)}.{own}")
    towers = {"it": config} | {
        f"'{part}'": config[part] for part in ("text_config", "vision_config") if config.get(part) is not None
    }
    for part, values in towers.items():
        if not isinstance(values, dict):
            raise ExportError(f"'{path}' has a {part} that is no object of sizes.")
        for key, most in _TOWER_LIMITS.items():
            _check_number(path, part, key, values.get(key), most)
    _check_memory(path, sum(map(_tower_floats, towers.values())))
    return dict(config)


def _tower_floats(config: Mapping[str, Any]) -> int:
    """Return a lower bound of the number of weights in a tower of transformers."""
    width = max((config.get(key) or 0 for key in ("hidden_size", "d_model", "dim")), default=0)
    layers = max((config.get(key) or 0 for key in ("num_hidden_layers", "num_layers", "n_layers")), default=0)
    rows = sum(config.get(key) or 0 for key in ("vocab_size", "max_position_embeddings"))
    return rows * width + layers * 4 * width**2


def _read(path: Path) -> Any:
    try:
        return read_json(path, Any, _MOST_BYTES)
    except (OSError, msgspec.DecodeError) as error:
        raise ExportError(f"Cannot read the model's configuration '{path}': {reason_of(error)}.") from error


def _check_numbers(path: Path, part: str, values: Mapping[str, Any]) -> None:
    for key, most in _LIMITS.items():
        value = values.get(key)
        several = key in ("layers", "image_size") and isinstance(value, list) and len(value) <= 4
        for each in value if several and isinstance(value, list) else [value]:
            _check_number(path, f"'{part}'", key, each, most)


def _check_number(path: Path, part: str, key: str, value: object, most: int) -> None:
    if value is None:
        return
    kinds = (int, float) if key == "mlp_ratio" else (int,)
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value <= most:
        shown = repr(value)[:60]
        raise ExportError(f"'{path}': {part} has {key} {shown}; expected a whole number from 1 to {most}.")


def _check_names(path: Path, part: str, values: Mapping[str, Any]) -> None:
    for key in _NAMES:
        if not isinstance(values.get(key, ""), (str, type(None))):
            raise ExportError(f"'{path}': '{part}' has {key} {values[key]!r}; expected a name.")
    if ":" in (values.get("timm_model_name") or ""):
        raise ExportError(
            f"'{path}': timm_model_name is '{values['timm_model_name']}'; expected the name of a model in timm."
        )
    for key in _TABLES:
        if not isinstance(values.get(key) or {}, dict):
            raise ExportError(f"'{path}': '{part}' has {key} {values[key]!r}; expected an object.")
    unwanted = _NO_CODE & set(values.get("tokenizer_kwargs") or {})
    if unwanted:
        raise ExportError(
            f"'{path}': tokenizer_kwargs has '{min(unwanted)}', which a model's configuration must not set."
        )


def _float_count(model: Mapping[str, Any]) -> int:
    """Return a lower bound of the number of weights in towers of open_clip's own types."""
    count = 0
    for part, rows in (("vision_cfg", ()), ("text_cfg", ("vocab_size", "context_length"))):
        values = model[part]
        width, layers = values.get("width") or 64, values.get("layers") or 1
        depth = layers if isinstance(layers, int) else 0
        count += depth * 4 * width**2 + sum(values.get(key) or 0 for key in rows) * width
    return count


def _check_memory(path: Path, floats: int) -> None:
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not available on this system
        return
    if floats * _FLOAT_BYTES > memory:
        raise ExportError(
            f"'{path}' describes a model of {floats * _FLOAT_BYTES / 1e9:,.0f} GB or more; this machine has {memory / 1e9:,.0f} GB."
        )
