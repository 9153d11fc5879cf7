"""Writing the bundle's ``tokenizer.json`` and its spec, compared with open_clip's own tokenizer."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from clipmlu.bundle.manifest import TOKENIZER_NAME
from clipmlu.data.tokenizer import START_OF_TEXT, Tokenizer, write_clip_tokenizer, write_stand_in_tokenizer
from clipmlu.errors import DownloadError, ExportError, first_line, reason_of
from clipmlu.export.catalog import open_clip_folder
from clipmlu.export.downloads import fetch_file, is_hub_reachable
from clipmlu.export.loading import LoadedModel
from clipmlu.export.options import PURPOSE, ExportOptions
from clipmlu.export.quiet import quiet_libraries
from clipmlu.export.source import Source, tokenizer_file
from clipmlu.export.transformers_tokenizer import write_library_tokenizer
from clipmlu.files.read import read_json, read_small_file
from clipmlu.host import require
from clipmlu.specs import TokenizerSpec

_LOG = logging.getLogger("clipmlu.export")

_BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"  # in open_clip's package
_CONFIG_FILE = "tokenizer_config.json"
_CLIPS_MODE = "clips"
_KNOWN_CLIP_KWARGS = frozenset({"clean", "context_length"})

_Reference = Callable[[list[str]], npt.NDArray[np.int64]]

PROBE_TEXTS = (
    "",
    " ",
    "a",
    "a photo of a cat",
    "a photo of a cat.",
    "A Photo Of A DOG!",
    "a red circle, and a blue square; (both) small",
    "itap of my 2 dogs' toys - they're old, aren't they?",
    "graffiti of the number 1234567890",
    "rock'n'roll isn't noise pollution",
    "tabs\tand\nnew lines\r\n and   runs of   spaces ",
    "hello_world snake_case CamelCase kebab-case",
    "&lt;b&gt;bold &amp;amp; italic&lt;/b&gt; &nbsp; &eacute;",
    "caf\u00e9 na\u00efve \u00fcber stra\u00dfe \u0130stanbul",
    "cafe\u0301 decomposed",
    "schÃ¶n mojibake â€œquotesâ€",
    "\u201ccurly\u201d \u2018quotes\u2019 \u2013 dashes \u2014 \u2026",
    "\u4e00\u5f20\u732b\u7684\u7167\u7247",
    "\u732b\u306e\u5199\u771f \u30ab\u30bf\u30ab\u30ca \uff76\uff80\uff76\uff85",
    "\uace0\uc591\uc774 \uc0ac\uc9c4",
    "\u0444\u043e\u0442\u043e \u043a\u043e\u0442\u0430",
    "\u0635\u0648\u0631\u0629 \u0642\u0637\u0629",
    "\u05ea\u05de\u05d5\u05e0\u05d4 \u05e9\u05dc \u05d7\u05ea\u05d5\u05dc",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u092c\u093f\u0932\u094d\u0932\u0940",
    "\u0e20\u0e32\u0e1e\u0e41\u0e21\u0e27",
    "\U0001f600\U0001f408 emoji \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f",
    "\uff26\uff55\uff4c\uff4c\uff57\uff49\uff44\uff54\uff48 \u2460 \u00bd \u00b2 \ufb01",
    "zero\u200bwidth soft\u00adhyphen non\u00a0breaking",
    "https://example.org/a?b=c&d=e#f user@example.org",
    "3.14 1,000,000 1e-5 50% $9.99 #tag @name ~ ^ | \\ /",
    "!!! ??? ... --- ___ *** +++ ===",
    "<start_of_text> injected <end_of_text>",
    "<|startoftext|> other <|endoftext|>",
    "[CLS] bert [SEP] [PAD] [MASK] [UNK]",
    "<s> roberta </s> <pad> <unk> <mask>",
    "x" * 300,
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "word " * 100,
    "\u00e9" * 120,
    "\U0001f408" * 90,
    "the quick brown fox jumps over the lazy dog " * 3,
    "a low resolution, black and white, pixelated photo of the hard to see 1990s airplane in a video game",
    "a bad photo of the Golden Retriever\u2019s tail",
    "CIFAR-100: aquarium fish / maple tree / pickup truck",
    "\x00control\x07characters\x1b",
    "\ufeffbyte order mark",
    "O'Brien & Sons' \"caf\u00e9\"",
    "\u1e9e\u0149\u01f0 case folding \u03a3\u03c3\u03c2",
    "1st 2nd 3rd 4th",
    "mixed \u4e2d\u6587 and English\u3002",
)
"""Texts for which the bundle's tokenizer must give the same ids as open_clip's."""


def write_tokenizer(source: Source, model: LoadedModel, destination: Path, options: ExportOptions) -> TokenizerSpec:
    """Write the model's tokenizer as a ``tokenizer.json``.

    Args:
        source: the source of the model.
        model: the loaded model.
        destination: the file to write.
        options: the user's own tokenizer; cache and network.

    Returns:
        The settings in addition to the file. If the weights are random and the model's own tokenizer is not available,
        a stand-in is written, ``stand_in`` is True, and a warning is logged.

    Raises:
        DownloadError: a trained model's tokenizer cannot be downloaded.
        ExportError: clipmlu does not support the tokenizer, or it does not fit the model.
    """
    if options.tokenizer is not None:
        spec = _copy_own(options.tokenizer, model, destination)
        return _check_ids(spec, model, destination)
    try:
        spec, reference = _write_model_tokenizer(source, model, destination, options)
        _check_equal(spec, reference, destination, source.format)
        return _check_ids(spec, model, destination)
    except (DownloadError, _TooFewIdsError) as error:
        if not source.random:
            raise
        _LOG.warning(
            "%s A stand-in tokenizer is used: its weights are random, so texts mean nothing to the model.", error
        )
        return _write_stand_in(model, destination)


class _TooFewIdsError(ExportError):
    """The tokenizer has ids that the model's token embedding lacks."""


def _write_model_tokenizer(
    source: Source, model: LoadedModel, destination: Path, options: ExportOptions
) -> tuple[TokenizerSpec, _Reference | None]:
    """Write the tokenizer that the model's library uses for it; also return the library's own, or None if it cannot run."""
    if source.format == "transformers" and source.directory is not None:
        return write_library_tokenizer(source.directory, model.context_length, destination)
    text_cfg = model.config["text_cfg"]
    kwargs = dict(text_cfg.get("tokenizer_kwargs") or {})
    if text_cfg.get("hf_tokenizer_name"):
        return _write_hugging_face(source, model, kwargs, destination, options)
    return _write_clip(model, kwargs, destination)


def _write_clip(model: LoadedModel, kwargs: dict[str, Any], destination: Path) -> tuple[TokenizerSpec, _Reference]:
    unknown = sorted(set(kwargs) - _KNOWN_CLIP_KWARGS)
    if unknown:
        raise ExportError(
            f"The model's tokenizer has the options {unknown}, which clipmlu does not know. Give one as --tokenizer PATH."
        )
    folder = open_clip_folder()
    write_clip_tokenizer(folder / _BPE_FILE, destination)
    clean = kwargs.get("clean", "lower")
    spec = TokenizerSpec(kind="clip_bpe", clean=clean, context_length=model.context_length)
    open_clip = require("open_clip", "export", PURPOSE)
    reference = open_clip.SimpleTokenizer(context_length=model.context_length, clean=clean)
    return spec, lambda texts: np.asarray(reference(texts).numpy())


def _write_hugging_face(
    source: Source, model: LoadedModel, kwargs: dict[str, Any], destination: Path, options: ExportOptions
) -> tuple[TokenizerSpec, _Reference | None]:
    text_cfg = model.config["text_cfg"]
    # open_clip reads the tokenizer of a local model from its directory, whatever name the configuration has.
    location = str(source.directory) if source.directory is not None else text_cfg["hf_tokenizer_name"]
    location = _locate(location, options)
    require("transformers", "export", "The model's tokenizer")
    make_tokenizer = functools.partial(
        require("open_clip.tokenizer", "export", PURPOSE).HFTokenizer,
        location,
        context_length=model.context_length,
        cache_dir=None if options.cache_dir is None else str(options.cache_dir),
        tokenizer_mode=text_cfg.get("tokenizer_mode"),
        local_files_only=Path(location).is_dir(),
        **kwargs,
    )
    try:
        with quiet_libraries():
            reference = make_tokenizer()
            reference([PROBE_TEXTS[3]])  # sets padding and truncation in its backend, which is then saved
    except Exception as error:  # transformers raises various errors for an unsupported directory
        if source.directory is None or not (source.directory / TOKENIZER_NAME).is_file():
            raise DownloadError(
                f"Cannot load the tokenizer '{location}': {first_line(error)}. Give one as --tokenizer PATH."
            ) from error
        # open_clip itself cannot use this model then, but the file is sufficient.
        _LOG.debug("open_clip cannot load the tokenizer in '%s': %s", location, error)
        return _copy_own(source.directory, model, destination), None
    _save_backend(reference.tokenizer, destination)
    return _spec_from_reference(reference, model, kwargs), lambda texts: np.asarray(reference(texts).numpy())


def _locate(name: str, options: ExportOptions) -> str:
    """Return a local directory if the network cannot be used, else the hub's name as given.

    Without a network transformers would try several files several times, and ask for a ``config.json`` that is not
    needed;
    with the cache's own directory it does neither.

    Raises:
        DownloadError: the tokenizer is neither on this machine nor downloadable.
    """
    if Path(name).is_dir():
        return name
    hint = "It is the model's tokenizer: give one as --tokenizer PATH (a tokenizer.json, or a directory with one)."
    names = [TOKENIZER_NAME, _CONFIG_FILE]
    file = fetch_file(name, names, cache_dir=options.cache_dir, offline=options.offline, hint=hint)
    return str(file.parent) if options.offline or not is_hub_reachable(name, file.name) else name


def _save_backend(tokenizer: Any, destination: Path) -> None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportError(
            f"The model's tokenizer ({type(tokenizer).__name__}) has no fast form. Give one as --tokenizer PATH."
        )
    destination.write_text(backend.to_str(pretty=False), encoding="utf-8")


def _spec_from_reference(reference: Any, model: LoadedModel, kwargs: dict[str, Any]) -> TokenizerSpec:
    tokenizer = reference.tokenizer
    clips = reference.tokenizer_mode == _CLIPS_MODE
    return TokenizerSpec(
        kind="huggingface",
        clean=kwargs.get("clean", "whitespace"),
        context_length=model.context_length,
        pad_id=tokenizer.pad_token_id or 0,
        zero_id=tokenizer.sep_token_id if reference.strip_sep_token else None,
        class_token_id=tokenizer.cls_token_id if clips else None,
        bos_id=tokenizer.bos_token_id if clips else None,
        eos_id=tokenizer.eos_token_id if clips else None,
    )


def _copy_own(path: str | os.PathLike[str], model: LoadedModel, destination: Path) -> TokenizerSpec:
    """Copy a ``tokenizer.json`` unchanged; missing settings come from the files beside it, then from the model."""
    file = tokenizer_file(path)
    shutil.copyfile(file, destination)
    tokens = SpecialTokens(file)
    text_cfg = model.config["text_cfg"]
    kwargs = text_cfg.get("tokenizer_kwargs") or {}
    clips = text_cfg.get("tokenizer_mode") == _CLIPS_MODE
    is_clip = not text_cfg.get("hf_tokenizer_name")
    return TokenizerSpec(
        # The tokenizer.json of another bundle: clip_bpe splits its texts.
        kind="clip_bpe" if is_clip and tokens.has(START_OF_TEXT) else "huggingface",
        clean=kwargs.get("clean", "lower" if is_clip else "whitespace"),
        context_length=model.context_length,
        pad_id=model.pad_id if is_clip else tokens.pad_id(model.pad_id),
        zero_id=tokens.find("sep_token") if kwargs.get("strip_sep_token") else None,
        class_token_id=tokens.find("cls_token") if clips else None,
        bos_id=tokens.find("bos_token") if clips else None,
        eos_id=tokens.find("eos_token") if clips else None,
    )


class SpecialTokens:
    """Ids of a tokenizer's special tokens, by their roles in ``tokenizer_config.json`` beside it.

    Raises:
        MissingDependencyError: the library ``tokenizers`` is not installed.
        ExportError: a file cannot be read.
    """

    def __init__(self, file: Path) -> None:
        tokenizers = require("tokenizers", "tokenizers", "Reading another program's tokenizer")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(read_small_file(file))
        except Exception as error:  # the library raises plain Exception for all errors
            raise ExportError(f"Cannot read the tokenizer '{file}': {reason_of(error)}.") from error
        self._config = file.with_name(_CONFIG_FILE)
        try:
            self._roles = read_json(self._config, dict[str, Any])
        except FileNotFoundError:
            self._roles = {}
        except (OSError, msgspec.DecodeError) as error:
            raise ExportError(
                f"Cannot read '{self._config}', which names the tokenizer's special tokens: {reason_of(error)}. "
                "Get the file again, or move it away if the tokenizer needs no names."
            ) from error

    @property
    def count(self) -> int:
        """Number of tokens."""
        return int(self._tokenizer.get_vocab_size())

    def has(self, token: str) -> bool:
        """Return whether the tokenizer has a token of this text."""
        return self._tokenizer.token_to_id(token) is not None

    def find(self, role: str) -> int | None:
        """Return the id of the token with a role, such as ``sep_token``; None if there is none."""
        token = self._roles.get(role)
        content = token.get("content") if isinstance(token, dict) else token
        if content is not None and not isinstance(content, str):
            raise ExportError(f"'{self._config}' gives '{role}' as {content!r}; expected a token's text.")
        return None if content is None else self._tokenizer.token_to_id(content)

    def pad_id(self, default: int) -> int:
        """Return the id of padding."""
        padding = self._tokenizer.padding
        if padding is not None:
            return int(padding["pad_id"])
        found = self.find("pad_token")
        return default if found is None else found


def _write_stand_in(model: LoadedModel, destination: Path) -> TokenizerSpec:
    try:
        write_stand_in_tokenizer(destination, model.vocab_size)
    except ValueError as error:
        raise ExportError(f"No stand-in tokenizer fits the model: {error} Give one as --tokenizer PATH.") from error
    return TokenizerSpec(
        kind="huggingface",
        clean="whitespace",
        context_length=model.context_length,
        pad_id=model.pad_id,
        stand_in=True,
    )


def _check_equal(spec: TokenizerSpec, reference: _Reference | None, path: Path, library: str) -> None:
    if reference is None:
        return
    ours = Tokenizer.load(path, spec)
    for text, expected in zip(PROBE_TEXTS, reference(list(PROBE_TEXTS)), strict=True):
        found = ours(text)[0]
        if not np.array_equal(found, expected):
            raise ExportError(
                f"The tokenizer written for the model differs from that of {library} on {text[:40]!r}: "
                f"{_start(found)} instead of {_start(expected)}."
            )


def _check_ids(spec: TokenizerSpec, model: LoadedModel, path: Path) -> TokenizerSpec:
    """Raise if the tokenizer has ids beyond the token embedding: the text tower would fail, but only for some texts."""
    tokenizer = Tokenizer.load(path, spec)
    largest = max(int(tokenizer(list(PROBE_TEXTS)).max()), tokenizer.largest_id if spec.kind == "clip_bpe" else 0)
    if largest >= model.vocab_size:
        raise _TooFewIdsError(
            f"The tokenizer has the id {largest}, but the model's token embedding ends at {model.vocab_size - 1}."
        )
    return spec


def _start(ids: npt.NDArray[np.int64]) -> str:
    return " ".join(map(str, ids[:12].tolist())) + (" ..." if len(ids) > 12 else "")


@dataclasses.dataclass(frozen=True)
class TokenSampler:
    """Draws rows of token ids of realistic texts: short, padded, full and empty ones.

    Attributes:
        tokenizer: the bundle's tokenizer.
    """

    tokenizer: Tokenizer

    def draw(self, rows: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
        """Return rows of ids, int64, shape (rows, context_length): alternately prompts and random words."""
        prompts = PROBE_TEXTS[3:]
        texts = []
        for row in range(rows):
            letters = generator.integers(ord("a"), ord("z") + 1, size=int(generator.integers(1, 200)))
            spaced = "".join(chr(each) if each % 5 else " " for each in letters)
            texts.append(spaced if row % 2 else prompts[int(generator.integers(len(prompts)))])
        return self.tokenizer(texts)
