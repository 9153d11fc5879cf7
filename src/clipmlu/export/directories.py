"""Whose format a model's directory or repository has, and which of its files an export needs, by their names alone."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal

from clipmlu.bundle.manifest import TOKENIZER_NAME
from clipmlu.bundle.other_folders import OPEN_CLIP_CONFIG, TRANSFORMERS_CONFIG
from clipmlu.data.processor_config import PROCESSOR_FILES

Library = Literal["open_clip", "transformers"]
"""The library whose format a directory has: open_clip's own, or what ``save_pretrained`` of transformers writes."""

CONFIG_NAMES: dict[Library, str] = {"open_clip": OPEN_CLIP_CONFIG, "transformers": TRANSFORMERS_CONFIG}
"""The file that marks a directory of each library, and configures its model."""

WEIGHTS_NAMES: dict[Library, tuple[str, ...]] = {
    "open_clip": (
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.safetensors",
        "open_clip_pytorch_model.bin",
        "open_clip_pytorch_model.pth",
        "model.safetensors",
        "pytorch_model.bin",
        "pytorch_model.pth",
        "model.pth",
    ),
    "transformers": (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ),
}
"""Names of weights in the order in which each library looks for them: ``factory._find_checkpoint_in_dir`` of open_clip, and
``modeling_utils`` of transformers, where an index belongs to weights in several files."""

WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
"""Suffixes of weights, the best first; open_clip takes a file of any name."""

TOKENIZER_FILES = (
    TOKENIZER_NAME,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
"""Possible files of a tokenizer of the transformers library."""

_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_INDEX = ".index.json"
_SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.(?:safetensors|bin)$)")


def library_of(names: Collection[str], *, prefer: Library = "open_clip") -> Library | None:
    """Return whose format a directory or repository has, or None if it is no model's.

    Args:
        names: its files.
        prefer: the library to take if it has the files of both.
    """
    found = [library for library, name in CONFIG_NAMES.items() if name in names]
    return prefer if prefer in found else next(iter(found), None)


def weights_of(names: Collection[str], library: Library) -> str | None:
    """Return the name of the weights, or of the index of weights in several files; None if there are none."""
    others = [name for suffix in WEIGHTS_SUFFIXES for name in sorted(names) if name.endswith(suffix)]
    usual = [name for name in WEIGHTS_NAMES[library] if name in names]
    return next(iter([*usual, *(others if library == "open_clip" else ())]), None)


def weights_files(names: Collection[str], library: Library) -> list[str]:
    """Return the file of weights that is used; or an index and the files that it belongs to."""
    found = weights_of(names, library)
    if found is None or not found.endswith(_INDEX):
        return [] if found is None else [found]
    whole = found.removesuffix(_INDEX)
    return [found, *sorted(name for name in names if name != whole and _SHARD.sub("", name) == whole)]


def described_files(names: Collection[str], library: Library) -> list[str]:
    """Return the files that describe the model, its preprocessing and its tokenizer."""
    wanted = (CONFIG_NAMES[library], *(PROCESSOR_FILES if library == "transformers" else ()), *TOKENIZER_FILES)
    return [name for name in wanted if name in names]


def has_tokenizer(names: Collection[str]) -> bool:
    """Return whether a directory has a tokenizer's vocabulary; without one transformers makes an empty tokenizer."""
    return any(name in names for name in _VOCABULARIES)
