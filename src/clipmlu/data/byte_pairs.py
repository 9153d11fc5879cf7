"""Byte-pair encoding of words, equal to the library ``tokenizers``, for files of the form that CLIP's tokenizer has.

The text towers of OpenAI's and open_clip's own CLIP models, and of the demo model, need no other tokenizer, so a bundle of them runs
without the library.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from clipmlu.errors import InputError
from clipmlu.specs import NaturalInt

WORD_END = "</w>"
_CACHED_WORDS = 1 << 16
_LONGEST_CACHED = 32  # characters; a text can be one word, so that words of any length could take all memory
_PLACE_BITS = 40  # more than the length of any text
_PLACES = 1 << _PLACE_BITS
_PLAIN_MODEL: dict[str, tuple[object, ...]] = {
    "type": ("BPE",),
    "dropout": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, "", WORD_END),
    "fuse_unk": (False,),
    "byte_fallback": (False,),
    "ignore_merges": (False,),
}
"""Maps an option of a byte-pair model to the values that this module computes; the first is the default."""


def byte_symbols() -> list[str]:
    """Return the 256 characters of GPT-2's byte-level alphabet, in the order of CLIP's vocabulary.

    Printable Latin-1 characters represent themselves; the other 68 bytes are represented by the characters from U+0100.
    """
    return [chr(code) for code in [*_PRINTABLE, *range(0x100, 0x100 + 256 - len(_PRINTABLE))]]


_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTES = [*_PRINTABLE, *(byte for byte in range(256) if byte not in set(_PRINTABLE))]
"""The bytes that ``byte_symbols`` represents."""


class BytePairs:
    """Converts words to token ids; safe in several threads.

    Attributes:
        vocab: maps a token to its id, without added tokens.
        added: maps the text of an added token to its id.
    """

    def __init__(
        self, vocab: Mapping[str, int], merges: Iterable[Sequence[str]], suffix: str, added: Mapping[str, int]
    ) -> None:
        """Create the tables.

        Args:
            vocab: maps a token to its id.
            merges: pairs of tokens that become one, the first ones first.
            suffix: end of a word's last token.
            added: maps the text of an added token to its id.

        Raises:
            ValueError: a token is missing in the vocabulary.
        """
        self.vocab, self.added = vocab, added
        symbols = dict(zip(_BYTES, byte_symbols(), strict=True))
        try:
            self._first = [vocab[symbols[byte]] for byte in range(256)]
            self._last = [vocab[symbols[byte] + suffix] for byte in range(256)]
            self._size = 1 + max(vocab.values())
            self._ranks: dict[int, int] = {}  # of a pair: the left id times the size, plus the right one
            self._merged: list[int] = []  # the id that the pair of each rank becomes
            for rank, (left, right) in enumerate(merges):
                self._ranks[vocab[left] * self._size + vocab[right]] = rank
                self._merged.append(vocab[left + right])
        except KeyError as error:
            raise ValueError(f"the token '{error.args[0]}' is not in the vocabulary") from error
        self._encode_short = functools.lru_cache(_CACHED_WORDS)(self._encode)

    def encode(self, word: str) -> tuple[int, ...]:
        """Return the ids of a word, any text that is not empty.

        Raises:
            InputError: it holds half a surrogate pair.
        """
        return self._encode_short(word) if len(word) <= _LONGEST_CACHED else self._encode(word)

    def _encode(self, word: str) -> tuple[int, ...]:
        try:
            content = word.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"The tokenizer cannot encode one of 1 texts: {error}.") from error
        ids = [*map(self._first.__getitem__, content[:-1]), self._last[content[-1]]]
        return tuple(self._merge(ids) if len(ids) > 1 else ids)

    def _merge(self, ids: list[int]) -> list[int]:
        """Merge pairs, of the lowest rank first and from the left; the time is that of sorting."""
        rank_of, merged_of, size = self._ranks.get, self._merged, self._size
        waiting = [  # ranks with places, as one number each, of which comparisons are fast
            rank << _PLACE_BITS | place
            for place in range(len(ids) - 1)
            if (rank := rank_of(ids[place] * size + ids[place + 1])) is not None
        ]
        heapq.heapify(waiting)
        end = len(ids)
        before, after = list(range(-1, end - 1)), list(range(1, end + 1))
        while waiting:
            rank, place = divmod(heapq.heappop(waiting), _PLACES)
            right = after[place]
            if ids[place] < 0 or right == end:
                continue
            if rank_of(ids[place] * size + ids[right]) != rank:  # what stood here has been merged otherwise
                continue
            merged = merged_of[rank]
            ids[place], ids[right] = merged, -1
            behind = after[place] = after[right]
            if behind < end:
                before[behind] = place
                if (found := rank_of(merged * size + ids[behind])) is not None:
                    heapq.heappush(waiting, found << _PLACE_BITS | place)
            ahead = before[place]
            if ahead >= 0 and (found := rank_of(ids[ahead] * size + merged)) is not None:
                heapq.heappush(waiting, found << _PLACE_BITS | ahead)
        return [each for each in ids if each >= 0]


class AddedToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token that is looked for in a text before it is split.

    Attributes:
        normalized: whether it is looked for after the text has been normalised, instead of before.
    """

    id: NaturalInt
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether exactly its text is looked for."""
        return not (self.single_word or self.lstrip or self.rstrip)


class TokenizerFile(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a ``tokenizer.json`` of the library ``tokenizers``, as far as this module looks at it."""

    model: dict[str, Any]
    added_tokens: tuple[AddedToken, ...] = ()
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None
    truncation: dict[str, Any] | None = None
    padding: dict[str, Any] | None = None

    def byte_pairs(self) -> BytePairs | None:
        """Return the model and the added tokens; None if they have options or ids that this module does not compute.

        Raises:
            ValueError: a token is missing in the vocabulary, or the file has another form.
        """
        model = self.model
        plain = all(model.get(name, values[0]) in values for name, values in _PLAIN_MODEL.items())
        if not plain or not all(token.is_plain for token in self.added_tokens):
            return None
        vocab = msgspec.convert(model.get("vocab"), dict[str, NaturalInt])
        pairs = msgspec.convert(model.get("merges"), list[str | tuple[str, str]])
        merges = msgspec.convert(
            [each.split(" ") if isinstance(each, str) else each for each in pairs], list[tuple[str, str]]
        )
        added = {token.content: token.id for token in self.added_tokens}
        new = [number for text, number in added.items() if text not in vocab]
        known = all(vocab[text] == number for text, number in added.items() if text in vocab)
        if "" in added or not known or new != list(range(len(vocab), len(vocab) + len(new))):
            return None  # the library would ignore tokens, or give them other ids
        return BytePairs(vocab, merges, model.get("end_of_word_suffix") or "", added)

    def surrounding_ids(self) -> tuple[list[int], list[int]] | None:
        """Return the ids that the file's template puts before and after a text; None if it is no such template."""
        found = self.post_processor
        if found is None:
            return [], []
        sides: tuple[list[int], list[int]] = [], []
        try:
            if found["type"] == "RobertaProcessing":
                first, last = (msgspec.convert(found[side], tuple[str, NaturalInt])[1] for side in ("cls", "sep"))
                return [first], [last]
            if found["type"] != "TemplateProcessing":
                return None
            (place,) = (number for number, piece in enumerate(found["single"]) if "Sequence" in piece)
            for number, piece in enumerate(found["single"]):
                if number != place:
                    ids = found["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
                    sides[number > place].extend(msgspec.convert(ids, list[NaturalInt]))
        except (KeyError, TypeError, ValueError):  # the library says what is wrong with it
            return None
        return sides

    @property
    def is_on_the_right(self) -> bool:
        """Whether texts are truncated and padded on their right, as far as the file says."""
        return all(each is None or each.get("direction") == "Right" for each in (self.truncation, self.padding))
