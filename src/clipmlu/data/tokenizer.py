"""Tokenization of texts without torch, equal to open_clip's ``SimpleTokenizer`` and ``HFTokenizer``, and to transformers.

The ``regex`` module splits texts for CLIP's own tokenizer, as in the reference, and ``byte_pairs`` merges each piece. Tokenizers of
other forms need the library ``tokenizers``, which the extra of that name installs.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import html
import itertools
import json
import re
import string
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any, Protocol

import ftfy
import numpy as np
import numpy.typing as npt
import regex

from clipmlu.arguments import as_texts
from clipmlu.data.byte_pairs import WORD_END, BytePairs, TokenizerFile, byte_symbols
from clipmlu.errors import BundleCorruptError, InputError, first_line, reason_of
from clipmlu.files.read import decode_json, read_small_file
from clipmlu.host import require
from clipmlu.specs import TokenizerSpec

# open_clip's names of the two special tokens; OpenAI's are <|startoftext|> and <|endoftext|>.
START_OF_TEXT = "<start_of_text>"
END_OF_TEXT = "<end_of_text>"

# CLIP's split pattern, from https://github.com/openai/CLIP/blob/main/clip/simple_tokenizer.py with open_clip's special
# tokens.
_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CLIP_SPLIT = f"{START_OF_TEXT}|{END_OF_TEXT}|{_SPLIT}"
_CLIP_PATTERN = regex.compile(_CLIP_SPLIT, regex.IGNORECASE)
_PATTERN = regex.compile(_SPLIT)
_SPECIAL_SPLIT = rf"<\|startoftext\|>|<\|endoftext\|>|{_SPLIT}"
"""The split pattern of CLIP's tokenizer in transformers since version 5."""
_SPECIAL_PATTERN = regex.compile(_SPECIAL_SPLIT)

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_NORMALISED = {
    "type": "Sequence",
    "normalizers": [
        {"type": "NFC"},
        {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
        {"type": "Lowercase"},
    ],
}
"""How the demo model's tokenizer and CLIP's in transformers normalise."""


def _clip_sequence(pattern: str, byte_level: dict[str, Any]) -> dict[str, Any]:
    """Return the value of ``pre_tokenizer`` that splits a text by a pattern, and makes bytes of the pieces."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}
    return {"type": "Sequence", "pretokenizers": [split, byte_level]}


_MANY_MARKS = regex.compile(r"[^\p{ccc=0}]{100,}")


def _ordered(text: str) -> str:
    """Put long runs of combining marks into canonical order; the text stays equivalent, with the same normal forms.

    Python does it as part of a normal form too, but in quadratic time, and no other thread runs meanwhile.
    """
    ordered: str = _MANY_MARKS.sub(lambda run: _ordered_run(run[0]), text)
    return ordered


def _ordered_run(run: str) -> str:
    parts = itertools.groupby(run, lambda mark: unicodedata.combining(mark) > 0)  # not 0 in all versions of Unicode
    return "".join("".join(sorted(part, key=unicodedata.combining) if moves else part) for moves, part in parts)


def _normalise(text: str) -> str:
    """Normalise a text as ``_NORMALISED``, but for white space, which the split pattern removes.

    The library converts each character by itself, without Python's rule for a sigma at a word's end. Its tables are of another
    Unicode version: it does not order combining marks that Unicode 10 and later brought.
    """
    return unicodedata.normalize("NFC", _ordered(text)).replace("\u03a3", "\u03c3").lower()


# 49,152 entries, minus 256 bytes, minus two entries that CLIP's authors reserved for the special tokens.
_CLIP_MERGES = 49152 - 256 - 2

_BATCH = 1024  # an encoding holds tokens, offsets and ids: some kilobytes per text

_SENTENCEPIECE_SPACE = "\u2581"
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Tokenizer:
    """Converts texts to rows of token ids as a ``TokenizerSpec`` defines; create one with ``Tokenizer.load``.

    Attributes:
        spec: cleaning, context length, padding and the special cases.
    """

    def __init__(self, spec: TokenizerSpec, encode: _Rows) -> None:
        self.spec = spec
        self._encode = encode
        self._clean = CLEANERS[spec.clean]
        if spec.clean == "siglip":
            self._clean = functools.partial(clean_siglip, specials=frozenset(encode.specials))

    @classmethod
    def load(cls, path: str | Path, spec: TokenizerSpec) -> Tokenizer:
        """Read a ``tokenizer.json``.

        For kind ``huggingface`` the sides of padding and truncation are those of the file's ``padding`` and
        ``truncation``
        sections, or right if these are missing; the spec defines all other settings of the two.

        Args:
            path: the file; for kind ``clip_bpe`` as written by ``write_clip_tokenizer``.
            spec: settings in addition to the file.

        Raises:
            MissingDependencyError: it needs the library ``tokenizers``, which is not installed.
            BundleCorruptError: the file is missing, cannot be parsed, lacks data that the spec's kind needs,
                contradicts itself,
                or adds more special tokens than the context length.
        """
        with _named_errors(path):
            content = read_small_file(path)
            file = decode_json(content, TokenizerFile)
            if spec.kind == "clip_bpe":
                return cls(spec, _ClipRows(file.byte_pairs(), spec, path))
        own = _ByteRows.of(file, spec)
        if own is not None:
            own.check_room(path)
            return cls(spec, own)
        tokenizers = require("tokenizers", "tokenizers", f"The tokenizer '{path}'")
        with _named_errors(path):
            inner = tokenizers.Tokenizer.from_buffer(content)
        _check_template(inner, path)
        rows = _PaddedRows(inner, spec, path) if spec.class_token_id is None else _ClipsRows(inner, spec, path)
        with contextlib.suppress(InputError):  # the empty text may be unknown; the error is raised later, on use
            list(rows([""]))
        return cls(spec, rows)

    @functools.cached_property
    def largest_id(self) -> int:
        """Largest id of all tokens, including those that only the spec defines."""
        spec = self.spec
        named = (spec.pad_id, spec.zero_id, spec.class_token_id, spec.bos_id, spec.eos_id)
        return max([self._encode.largest_id, *(each for each in named if each is not None)])

    def __call__(self, texts: str | Sequence[str]) -> npt.NDArray[np.int64]:
        """Tokenize one text or several.

        Args:
            texts: N strings, N may be 0, strings may be empty. A single string is a batch of one.

        Returns:
            int64, shape (N, context_length), padded with ``pad_id``; a text that is too long is truncated, but keeps
            its
            end token. The caller owns the array.

        Raises:
            InputError: the tokenizer cannot represent a text.
            BundleCorruptError: the tokenizer's file contradicts itself; only this text shows it.
            OptionError: ``texts`` is neither a string nor a list of strings.
        """
        batch = as_texts(texts, "texts")
        ids = np.full((len(batch), self.spec.context_length), self.spec.pad_id, dtype=np.int64)
        for start in range(0, len(batch), _BATCH):
            for offset, row in enumerate(self._encode([self._clean(text) for text in batch[start : start + _BATCH]])):
                ids[start + offset, : len(row)] = row
        return ids

    def count_truncated(self, texts: Sequence[str]) -> int:
        """Return how many of the texts are longer than the context, so that their rows lack tokens.

        Raises:
            InputError, BundleCorruptError: as for a call.
        """
        starts = range(0, len(texts), _BATCH)
        return sum(
            self._encode.count_truncated([self._clean(text) for text in texts[start : start + _BATCH]])
            for start in starts
        )


def clean_lower(text: str) -> str:
    """Repair the text, collapse white space, and convert it to lower case (open_clip ``lower``)."""
    return clean_whitespace(text).lower()


def clean_whitespace(text: str) -> str:
    """Repair the text and collapse white space (open_clip ``whitespace``)."""
    return " ".join(_repair(text).split())


def clean_canonicalize(text: str) -> str:
    """Repair the text, remove ASCII punctuation, convert it to lower case and collapse white space (``canonicalize``).

    The rule is that of big_vision, which trained SigLIP; an underscore becomes a space.
    """
    return " ".join(_repair(text).replace("_", " ").translate(_NO_PUNCTUATION).lower().split())


def clean_siglip(text: str, specials: Set[str] = frozenset()) -> str:
    """Make a text canonical as the ``SiglipTokenizer`` of transformers does, without repairing it.

    Lower case, no ASCII punctuation, single spaces; special tokens stay, and are no part of the text before or after them. A
    SentencePiece space stands before the text.

    Args:
        text: any text.
        specials: special tokens.
    """
    marked = _SENTENCEPIECE_SPACE + text.replace(_SENTENCEPIECE_SPACE, " ")
    if not specials:
        return _canonical_part(marked)
    parts = re.split(f"({'|'.join(map(re.escape, sorted(specials, key=len, reverse=True)))})", marked)
    return "".join(part if part in specials else _canonical_part(part) for part in parts)


def _canonical_part(text: str) -> str:
    return re.sub(r"\s+", " ", text.lower().translate(_NO_PUNCTUATION)).strip()


def _unchanged(text: str) -> str:
    return text


CLEANERS: dict[str, Callable[[str], str]] = {
    "lower": clean_lower,
    "whitespace": clean_whitespace,
    "canonicalize": clean_canonicalize,
    "siglip": clean_siglip,
    "none": _unchanged,
}


def write_clip_tokenizer(bpe_vocab_gz: Path, destination: Path) -> None:
    """Write CLIP's tokenizer as a complete ``tokenizer.json``.

    The ``tokenizers`` and ``transformers`` libraries can read the file; they then normalise like their own CLIP
    tokenizer
    (NFC, white space, lower case, without ftfy). Ids and special tokens are open_clip's.

    Args:
        bpe_vocab_gz: open_clip's ``bpe_simple_vocab_16e6.txt.gz``.
        destination: file to write; an existing file is overwritten.

    Raises:
        InputError: the vocabulary cannot be read or has too few merges.
    """
    merges = _read_merges(bpe_vocab_gz)
    symbols = byte_symbols()
    tokens = [*symbols, *(symbol + WORD_END for symbol in symbols), *("".join(pair) for pair in merges)]
    vocab = {token: index for index, token in enumerate([*tokens, START_OF_TEXT, END_OF_TEXT])}
    _write_tokenizer(
        destination,
        added=[(vocab[token], token) for token in (START_OF_TEXT, END_OF_TEXT)],
        normalizer=_NORMALISED,
        pre_tokenizer=_clip_sequence(_CLIP_SPLIT, {**_BYTE_LEVEL, "use_regex": True}),
        post_processor={
            "type": "RobertaProcessing",
            "sep": [END_OF_TEXT, vocab[END_OF_TEXT]],
            "cls": [START_OF_TEXT, vocab[START_OF_TEXT]],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        decoder={
            "type": "Sequence",
            "decoders": [_DECODER, {"type": "Replace", "pattern": {"String": WORD_END}, "content": " "}],
        },
        model={"continuing_subword_prefix": "", "end_of_word_suffix": WORD_END, "unk_token": END_OF_TEXT},
        vocab=vocab,
        merges=merges,
    )


def write_stand_in_tokenizer(destination: Path, vocab_size: int) -> None:
    """Write a byte-level ``tokenizer.json`` for a model with random weights whose own tokenizer is not available.

    Each UTF-8 byte is a token (ids 2 to 257) between ``<sot>`` (1) and ``<eot>`` (258); ``<pad>`` is 0. The end token
    has the
    highest id because open_clip's text towers may look for the maximum of a row.

    Args:
        destination: file to write; an existing file is overwritten.
        vocab_size: entries of the model's token embedding; every id is below it.

    Raises:
        ValueError: ``vocab_size`` is below 259.
    """
    tokens = ["<pad>", "<sot>", *byte_symbols(), "<eot>"]
    if vocab_size < len(tokens):
        raise ValueError(f"A stand-in tokenizer needs {len(tokens)} ids; the vocabulary has {vocab_size}.")
    vocab = {token: index for index, token in enumerate(tokens)}
    first, last = ({"id": token, "ids": [vocab[token]], "tokens": [token]} for token in ("<sot>", "<eot>"))
    text = {"Sequence": {"id": "A", "type_id": 0}}
    _write_tokenizer(
        destination,
        added=[(vocab[token], token) for token in ("<pad>", "<sot>", "<eot>")],
        normalizer=None,
        pre_tokenizer=_BYTE_LEVEL,
        post_processor={
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<sot>", "type_id": 0}},
                text,
                {"SpecialToken": {"id": "<eot>", "type_id": 0}},
            ],
            "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<eot>": last, "<sot>": first},
        },
        decoder=_DECODER,
        model={},
        vocab=vocab,
        merges=[],
    )


_DECODER = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def _write_tokenizer(
    destination: Path,
    *,
    added: Sequence[tuple[int, str]],
    model: dict[str, Any],
    vocab: dict[str, int],
    merges: Sequence[tuple[str, str]],
    **parts: dict[str, Any] | None,
) -> None:
    """Write a file of the library ``tokenizers``, as the library itself would."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    defaults = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    options = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token_id, "content": token, **plain} for token_id, token in added],
        **parts,
        "model": {"type": "BPE", **defaults, **options, **model, "vocab": vocab, "merges": merges},
    }
    destination.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


class _Rows(Protocol):
    """Encodes cleaned texts."""

    @property
    def largest_id(self) -> int:
        """Largest id of the file's tokens."""

    @property
    def specials(self) -> Iterable[str]:
        """Texts of the added tokens."""

    def __call__(self, texts: list[str]) -> Iterable[list[int]]:
        """Return the row of each text."""

    def count_truncated(self, texts: list[str]) -> int:
        """Return the number of texts whose rows lack tokens."""


class _OwnRows:
    """Rows that are made without the library ``tokenizers``."""

    def __init__(self, pairs: BytePairs, spec: TokenizerSpec) -> None:
        self._pairs = pairs
        self._length = spec.context_length

    @functools.cached_property
    def largest_id(self) -> int:
        return max(*self._pairs.vocab.values(), *self._pairs.added.values(), 0)

    @property
    def specials(self) -> Iterable[str]:
        return self._pairs.added

    def _whole_row(self, text: str) -> list[int]:
        raise NotImplementedError

    def count_truncated(self, texts: list[str]) -> int:
        return sum(len(self._whole_row(text)) > self._length for text in texts)


class _ClipRows(_OwnRows):
    """Rows of open_clip's ``SimpleTokenizer``."""

    def __init__(self, pairs: BytePairs | None, spec: TokenizerSpec, path: str | Path) -> None:
        known = {} if pairs is None else {**pairs.vocab, **pairs.added}
        if pairs is None or not known.keys() >= {START_OF_TEXT, END_OF_TEXT}:
            raise BundleCorruptError(
                f"The tokenizer '{path}' is not CLIP's: expected a BPE model with '{START_OF_TEXT}' and '{END_OF_TEXT}'."
            )
        super().__init__(pairs, spec)
        self._start, self._end = (known[token] for token in (START_OF_TEXT, END_OF_TEXT))

    def __call__(self, texts: list[str]) -> Iterable[list[int]]:
        for row in map(self._whole_row, texts):
            if len(row) > self._length:
                del row[self._length :]
                row[-1] = self._end
            yield row

    def _whole_row(self, text: str) -> list[int]:
        encode = self._pairs.encode
        row = [self._start]
        for piece in _CLIP_PATTERN.findall(text):
            # Only these spellings are special in the reference; the pattern also matches others, which are merged as words.
            if piece == START_OF_TEXT:
                row.append(self._start)
            elif piece == END_OF_TEXT:
                row.append(self._end)
            else:
                row.extend(encode(piece))
        row.append(self._end)
        return row


class _ByteRows(_OwnRows):
    """Rows of a byte-level file whose texts are split as CLIP's, or not at all."""

    def __init__(
        self,
        file: TokenizerFile,
        pairs: BytePairs,
        spec: TokenizerSpec,
        sides: tuple[list[int], list[int]],
        words: _Splitter,
    ) -> None:
        super().__init__(pairs, spec)
        self._before, self._after = sides
        self._zero_id = spec.zero_id
        self._normalise = _unchanged if file.normalizer is None else _normalise
        given = {token.content: token.id for token in file.added_tokens if not token.normalized}
        normalised = {self._normalise(token.content): token.id for token in file.added_tokens if token.normalized}
        self._words = words
        self._added = [(added, _any_of(added)) for added in (given, normalised)]

    @classmethod
    def of(cls, file: TokenizerFile, spec: TokenizerSpec) -> _ByteRows | None:
        """Return the rows for a file, or None if only the library can make them."""
        sides = file.surrounding_ids()
        words = next((splitter for known, splitter in _SPLITTERS if file.pre_tokenizer == known), None)
        is_known = file.normalizer is None or (file.normalizer == _NORMALISED and words is not _whole)
        later = [_normalise(token.content) for token in file.added_tokens if token.normalized]
        are_plain = len(set(later)) == len(later) and not any(regex.search(r"\s", content) for content in later)
        if sides is None or words is None or spec.class_token_id is not None or not (is_known and are_plain):
            return None
        if not file.is_on_the_right:
            return None
        try:
            pairs = file.byte_pairs()
        except ValueError:  # the library says what is wrong with it, or knows what to do
            return None
        return None if pairs is None else cls(file, pairs, spec, sides, words)

    def check_room(self, path: str | Path) -> None:
        """Check that the context has room for the special tokens.

        Raises:
            BundleCorruptError: it has not.
        """
        _check_room(len(self._before) + len(self._after), self._length, path)

    def __call__(self, texts: list[str]) -> Iterable[list[int]]:
        room = self._length - len(self._before) - len(self._after)
        for text in texts:
            row = [*self._before, *self._ids(text)[:room], *self._after]
            yield row if self._zero_id is None else [0 if each == self._zero_id else each for each in row]

    def _whole_row(self, text: str) -> list[int]:
        return [*self._before, *self._ids(text), *self._after]

    def _ids(self, text: str) -> list[int]:
        (given, plain), (normalised, later) = self._added
        encode = self._pairs.encode
        ids: list[int] = []
        for part in plain.split(text):
            if part in given:
                ids.append(given[part])
                continue
            for piece in later.split(self._normalise(part)):
                if piece in normalised:
                    ids.append(normalised[piece])
                else:
                    for word in self._words(piece):
                        ids.extend(encode(word))
        return ids


def _whole(text: str) -> list[str]:
    return [text] if text else []


def _special_words(text: str) -> Iterator[str]:
    for piece in _SPECIAL_PATTERN.findall(text):
        yield from _PATTERN.findall(piece) if piece.startswith("<|") else (piece,)


_Splitter = Callable[[str], Iterable[str]]
_AGAIN = ({**_BYTE_LEVEL, "use_regex": True}, {key: value for key, value in _BYTE_LEVEL.items() if key != "use_regex"})
"""These split each piece by GPT-2's pattern, which CLIP's pieces match as a whole."""
_SPLITTERS: list[tuple[dict[str, Any], _Splitter]] = [
    (_BYTE_LEVEL, _whole),
    *((_clip_sequence(_SPLIT, last), _PATTERN.findall) for last in (_BYTE_LEVEL, *_AGAIN)),
    *((_clip_sequence(_SPECIAL_SPLIT, last), _special_words) for last in _AGAIN),
]
"""The known values of ``pre_tokenizer``, and what splits a text into words as they say."""


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that splits a text at each of some texts, the longest first, and keeps them."""
    longest_first = "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))
    return re.compile(f"({longest_first or '(?!)'})")


class _LibraryRows:
    """Rows that the library ``tokenizers`` makes."""

    def __init__(self, inner: Any, path: str | Path) -> None:
        self._inner = inner
        self._path = path

    @functools.cached_property
    def largest_id(self) -> int:
        known: dict[str, int] = self._inner.get_vocab(with_added_tokens=True)
        return max(known.values())

    @property
    def specials(self) -> Iterable[str]:
        return [token.content for token in self._inner.get_added_tokens_decoder().values()]


class _PaddedRows(_LibraryRows):
    """Rows of open_clip's ``HFTokenizer`` in its standard mode."""

    def __init__(self, inner: Any, spec: TokenizerSpec, path: str | Path) -> None:
        super().__init__(inner, path)
        _check_room(inner.num_special_tokens_to_add(False), spec.context_length, path)
        truncation, padding = inner.truncation or {}, inner.padding or {}
        inner.enable_truncation(spec.context_length, direction=truncation.get("direction", "right"))
        inner.enable_padding(
            length=spec.context_length, pad_id=spec.pad_id, direction=padding.get("direction", "right")
        )
        self._zero_id = spec.zero_id

    def __call__(self, texts: list[str]) -> Iterable[list[int]]:
        rows = _encode_batch(self._inner, self._path, texts, add_special_tokens=True)
        if self._zero_id is None:
            return rows
        return [[0 if token_id == self._zero_id else token_id for token_id in row] for row in rows]

    def count_truncated(self, texts: list[str]) -> int:
        with _one_line_errors(self._path, len(texts)):
            return sum(bool(each.overflowing) for each in self._inner.encode_batch(texts, add_special_tokens=True))


class _ClipsRows(_LibraryRows):
    """Rows of open_clip's ``HFTokenizer`` in mode ``clips``: bos, text, eos, padding, and the class token last."""

    def __init__(self, inner: Any, spec: TokenizerSpec, path: str | Path) -> None:
        super().__init__(inner, path)
        inner.no_truncation()
        inner.no_padding()
        self._spec = spec

    def __call__(self, texts: list[str]) -> Iterable[list[int]]:
        spec = self._spec
        assert spec.bos_id is not None, "the spec checked it"
        assert spec.eos_id is not None, "the spec checked it"
        assert spec.class_token_id is not None, "what this class is chosen by"
        last = spec.context_length - 1
        for ids in _encode_batch(self._inner, self._path, texts, add_special_tokens=False):
            row = [spec.bos_id, *ids[: last - 2], spec.eos_id][:last]
            yield [*row, *[spec.pad_id] * (last - len(row)), spec.class_token_id]

    def count_truncated(self, texts: list[str]) -> int:
        room = self._spec.context_length - 3  # beside the tokens of beginning, end and class
        return sum(len(ids) > room for ids in _encode_batch(self._inner, self._path, texts, add_special_tokens=False))


def _check_room(special_count: int, context_length: int, path: str | Path) -> None:
    if special_count > context_length:
        raise BundleCorruptError(
            f"The tokenizer '{path}' adds {special_count} special tokens to a text; the context has room for "
            f"{context_length}. Make the bundle again."
        )


@contextlib.contextmanager
def _named_errors(path: str | Path) -> Iterator[None]:
    """Convert exceptions while a tokenizer is read to BundleCorruptError."""
    try:
        yield
    except BundleCorruptError:
        raise
    except BaseException as error:  # the library raises plain Exception for all errors
        if not isinstance(error, Exception) and not _is_panic(error):
            raise
        raise BundleCorruptError(
            f"Cannot read the tokenizer '{path}': {reason_of(error)}. Expected a tokenizer.json."
        ) from error


def _is_panic(error: BaseException) -> bool:
    """Whether an exception is pyo3's for a panic in Rust code, whose class cannot be imported."""
    return type(error).__name__ == "PanicException"


def _check_template(inner: Any, path: str | Path) -> None:
    """Raise if a template uses special tokens that it does not define: the library would panic and write to stderr."""
    state = inner.post_processor.__getstate__() if inner.post_processor is not None else b"{}"
    pending: list[dict[str, Any]] = [decode_json(state, dict[str, Any])]
    while pending:
        processor = pending.pop()
        pending += processor.get("processors", [])
        pieces = [*processor.get("single", []), *processor.get("pair", [])]
        used = {piece["SpecialToken"]["id"] for piece in pieces if "SpecialToken" in piece}
        for token in sorted(used - set(processor.get("special_tokens", {}))):
            raise BundleCorruptError(
                f"The template of the tokenizer '{path}' puts '{token}' around a text, which it does not define. "
                "Make the bundle again."
            )


def _encode_batch(inner: Any, path: str | Path, texts: list[str], *, add_special_tokens: bool) -> list[list[int]]:
    with _one_line_errors(path, len(texts)):
        return [encoding.ids for encoding in inner.encode_batch_fast(texts, add_special_tokens=add_special_tokens)]


@contextlib.contextmanager
def _one_line_errors(path: str | Path, count: int) -> Iterator[None]:
    """Convert the library's exceptions while it encodes ``count`` texts to InputError or BundleCorruptError."""
    try:
        yield
    except Exception as error:  # the library raises plain Exception, e.g. for a word model without an unknown token
        raise InputError(f"The tokenizer cannot encode one of {count} texts: {first_line(error)}.") from error
    except BaseException as error:
        if not _is_panic(error):
            raise
        raise BundleCorruptError(
            f"The tokenizer '{path}' is damaged: the tokenizers library fails with it ({first_line(error)}). "
            "Make the bundle again."
        ) from error


def _repair(text: str) -> str:
    """Repair wrong encodings and HTML entities (open_clip ``basic_clean``); lone surrogates become U+FFFD in ftfy."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return text.strip()  # ftfy and html would change nothing, and are 30 times as slow
    return html.unescape(html.unescape(ftfy.fix_text(_ordered(text)))).strip()


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read CLIP's vocabulary '{path}': {error}.") from error
    pairs = [tuple(line.split()) for line in lines[1 : _CLIP_MERGES + 1]]  # the first line is a version
    merges = [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
    if len(merges) != _CLIP_MERGES:
        raise InputError(f"'{path}' has {len(merges):,} merges; CLIP's vocabulary has {_CLIP_MERGES:,}.")
    return merges
