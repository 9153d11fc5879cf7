"""The tokenizer of a directory of the transformers library: what its text tower gets, and its ``tokenizer.json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipmlu.errors import DownloadError, ExportError, first_line
from clipmlu.export.directories import has_tokenizer
from clipmlu.export.options import PURPOSE
from clipmlu.export.quiet import quiet_libraries
from clipmlu.export.siglip_tokenizer import build_siglip_tokenizer
from clipmlu.host import require
from clipmlu.specs import TextCleaning, TokenizerSpec

_OWN = "Give one as --tokenizer PATH."

# Kinds whose text tower looks back only and takes the end token's result, so that padding after it changes nothing.
_CAUSAL = ("clip", "metaclip_2")
_MASKED = ("chinese_clip", "altclip", "align")  # without a tokenizer's word; SigLIP was trained without a mask

TRAINED_LENGTHS = {
    "chinese_clip": 52,  # cn_clip.clip.utils.tokenize(context_length=52)
    "altclip": 77,  # FlagAI's AltCLIP pads to 77
    "align": 64,  # AlignProcessor: max_length 64
    "siglip": 64,
    "siglip2": 64,
}
"""Token ids of a text where the tower has room for more than it was trained with: a graph has one length."""
_LONGEST_UNSAID = 1 << 20  # the library's model_max_length is 1e30 if a tokenizer does not say it


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextInputs:
    """What a text tower gets.

    Attributes:
        tokenizer: the library's tokenizer, or None if it is not needed.
        context_length: token ids per text.
        pad_id: the id of padding.
        masked: whether padding is hidden from the tower by an attention mask.
        ends_with_padding: whether the end token is the padding token.
        notes: one line for each assumption.
    """

    tokenizer: Any
    context_length: int
    pad_id: int
    masked: bool
    ends_with_padding: bool = False
    notes: tuple[str, ...] = ()


def read_text_inputs(folder: Path, config: Mapping[str, Any], *, optional: bool) -> TextInputs:
    """Load the tokenizer of a directory, and find out what the text tower gets.

    Args:
        folder: the directory.
        config: its ``config.json``.
        optional: whether the tower can be exported without its tokenizer: it gets another one, or has random weights.

    Raises:
        ExportError: there is no tokenizer, or it cannot be used.
    """
    kind, text_config = config["model_type"], config.get("text_config") or {}
    try:
        tokenizer = load_tokenizer(folder)
    except ExportError:
        if not optional:
            raise
        pad_id = text_config.get("pad_token_id")
        length = _length(kind, text_config, None)
        return TextInputs(tokenizer=None, context_length=length, pad_id=pad_id or 0, masked=kind in _MASKED)
    pad_id, masked = tokenizer.pad_token_id, kind not in _CAUSAL and "attention_mask" in tokenizer.model_input_names
    if pad_id is None:
        raise ExportError(
            f"The tokenizer in '{folder}' has no padding token ('pad_token' in tokenizer_config.json). {_OWN}"
        )
    if tokenizer.padding_side != "right" and (masked or kind in _CAUSAL):
        raise ExportError(
            f"The tokenizer in '{folder}' pads on the left, which the text tower of '{kind}' does not take. {_OWN}"
        )
    length = _length(kind, text_config, tokenizer)
    room = _room(kind, text_config, tokenizer)
    shorter = f"texts are cut to {length} tokens, with which such models are trained, though the text tower has room for {room}"
    return TextInputs(
        tokenizer=tokenizer,
        context_length=length,
        pad_id=int(pad_id),
        masked=masked,
        ends_with_padding=pad_id == tokenizer.eos_token_id,
        notes=(shorter,) if length < room else (),
    )


def _room(kind: str, text_config: Mapping[str, Any], tokenizer: Any) -> int:
    """Return the tokens that tower and tokenizer have room for."""
    positions = int(text_config.get("max_position_embeddings") or TRAINED_LENGTHS.get(kind, 77))
    if kind == "altclip":  # RoBERTa's positions begin after the padding id
        positions -= int(text_config.get("pad_token_id", 1)) + 1
    stated = _LONGEST_UNSAID if tokenizer is None else tokenizer.model_max_length
    if isinstance(stated, bool) or not isinstance(stated, (int, float)) or not stated >= 1:
        raise ExportError(f"The tokenizer's model_max_length is {stated!r}; expected a whole number from 1 on. {_OWN}")
    return max(1, min(positions, int(min(stated, _LONGEST_UNSAID))))


def _length(kind: str, text_config: Mapping[str, Any], tokenizer: Any) -> int:
    room = _room(kind, text_config, tokenizer)
    return min(room, TRAINED_LENGTHS.get(kind, room))


def load_tokenizer(folder: Path) -> Any:
    """Load a directory's tokenizer with the library, without running Python code of the directory.

    Raises:
        ExportError: there is none, or the library cannot load it.
    """
    if not has_tokenizer([path.name for path in folder.iterdir()]):
        raise ExportError(f"There is no tokenizer in '{folder}'. {_OWN}")
    transformers = require("transformers", "export", PURPOSE)
    try:
        with quiet_libraries():
            return transformers.AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # various errors for missing files, packages and own code
        raise ExportError(f"Cannot load the tokenizer in '{folder}': {first_line(error)}. {_OWN}") from error


def write_library_tokenizer(
    folder: Path, context_length: int, destination: Path
) -> tuple[TokenizerSpec, Callable[[list[str]], npt.NDArray[np.int64]]]:
    """Write a directory's tokenizer as a ``tokenizer.json``; also return the library's own function from texts to ids.

    Args:
        folder: a directory of the transformers library.
        context_length: token ids per text.
        destination: the file to write.

    Raises:
        ExportError: the tokenizer has no form that the library ``tokenizers`` reads.
    """
    try:
        tokenizer = load_tokenizer(folder)
    except ExportError as error:
        raise DownloadError(str(error)) from error

    def reference(texts: list[str]) -> npt.NDArray[np.int64]:
        encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=context_length)
        return np.asarray(encoded["input_ids"], np.int64)

    clean: TextCleaning = "none"
    with quiet_libraries():
        reference(["a"])  # sets padding and truncation in the backend, which is then saved
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None and type(tokenizer).__name__ == "SiglipTokenizer":
            backend, clean = build_siglip_tokenizer(tokenizer), "siglip"
    if backend is None:
        raise ExportError(
            f"The tokenizer in '{folder}' ({type(tokenizer).__name__}) has no form that the library tokenizers reads. {_OWN}"
        )
    destination.write_text(backend.to_str(pretty=False), encoding="utf-8")
    spec = TokenizerSpec(
        kind="huggingface", clean=clean, context_length=context_length, pad_id=int(tokenizer.pad_token_id)
    )
    return spec, reference
