"""Tokenizing against open_clip's SimpleTokenizer and HFTokenizer."""

from __future__ import annotations

import copy
import functools
import json
import random
import sys
import time
import tracemalloc
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from clipmlu.data.byte_pairs import BytePairs, TokenizerFile
from clipmlu.data.tokenizer import (
    CLEANERS,
    END_OF_TEXT,
    START_OF_TEXT,
    Tokenizer,
    _ByteRows,
    _normalise,
    _PaddedRows,
    clean_canonicalize,
    clean_lower,
    clean_whitespace,
    write_clip_tokenizer,
    write_stand_in_tokenizer,
)
from clipmlu.errors import BundleCorruptError, InputError, MissingDependencyError, OptionError
from clipmlu.specs import TokenizerSpec

SPECIAL = [
    START_OF_TEXT,
    END_OF_TEXT,
    "<START_OF_TEXT>",
    "<End_Of_Text>",
    "<ſtart_of_text>",
    "<end_of_teXt>",
    "<end_of_",
]
SPECIAL += [
    "<|startoftext|>",
    "<|endoftext|>",
    "!<end_of_text>!",
    "<end_of_text><end_of_text>",
    "</w>",
    "Ġ",
    "Ġthe</w>",
]
ENTITIES = [
    "&amp;",
    "&amp;amp;",
    "&lt;b&gt;",
    "&eacute;",
    "&#39;",
    "&#x1F600;",
    "&#xD800;",
    "&nbsp;",
    "&quot",
    "&",
    "&;",
]
ENTITIES += ["&amp;lt;", "&#0;", "&#150;", "&notit;", "&LT;", "&AMP;#39;", "&#99999999;", "&zwj;", "&NewLine;"]
CONTRACTIONS = [
    "it's",
    "IT'S",
    "it'ſ",
    "we'Re",
    "I'LL",
    "you'vE",
    "i'M",
    "he'D",
    "don'T",
    "rock'n'roll",
    "it’s",
    "'ſ",
    "''s",
]
MOJIBAKE = [
    "Ã©tÃ©",
    "â€œquotedâ€\x9d",
    "schÃ¶n",
    "Ð¿Ñ€Ð¸",
    "ðŸ˜€",
    "L&AMP;AMP;ATILDE;&AMP;AMP;SUP3;PEZ",
    "ＦＵＬＬ",
    "ﬁne",
    "\x85",
    "ä½ å¥½",
]
EMOJI = ["😀", "👩‍👩‍👧‍👦", "👍🏽", "🇪🇸", "🏳️‍🌈", "❤️", "1️⃣", "🧑🏿‍🚀", "\u200d", "\ufe0f"]
WORDS = [
    "a photo of a",
    "dog",
    "Zürich",
    "naïve",
    "ΣΊΣΥΦΟΣ",
    "İstanbul",
    "ß",
    "ǅ",
    "Привет",
    "مرحبا",
    "हिन्दी",
    "日本語",
    "한국어",
    "ไทย",
]
WORDS += [
    "e\u0301",
    "a\u0323\u0307",
    "\u0301",
    "x" * 40,
    "antidisestablishmentarianism",
    "_",
    "__a__",
    "C++",
    "#tag",
    "a.b,c;d",
    "١٢٣",
]
WORDS += [
    "²³",
    "½",
    "Ⅷ",
    "๓",
    "𝟘𝟙",
    "〇",
    "12345",
    "3.14",
    "$5",
    "\U0001e943",
    "Ω",
    "K",
    "ſ",
    "\ufffd",
    "…",
    "—",
    "\u00ad",
]
SPACES = [
    " ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    "\u00a0",
    "\u2003",
    "\u3000",
    "\u2028",
    "\x1c",
    "\x1f",
    "\x0b",
    "\u200b",
    "\ufeff",
    "",
]
SURROGATES = ["\ud800", "\udfff", "\ud83d\ude00", "\ude00\ud83d"]
CONTROLS = ["\x00", "\x1b[31m", "\x07", "\x7f", "\x80", "\x9f", "\ufff9", "\U000e0041", "\ufdd0", "\U0010ffff"]
GROUPS = [SPECIAL, ENTITIES, CONTRACTIONS, MOJIBAKE, EMOJI, WORDS, WORDS, SPACES, SURROGATES, CONTROLS]
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789'.,-!?<>_&;#"
# What a plane's first code points hold: the Basic Multilingual Plane, its scripts, symbols, ideographs, private use.
PLANES = [(0x80, 0x2FF), (0x300, 0x36F), (0x370, 0x1FFF), (0x2000, 0x2FFF), (0x3000, 0x9FFF), (0xA000, 0xFFFF)]
PLANES += [(0x10000, 0x1FFFF), (0x1F300, 0x1FAFF), (0x20000, 0x323AF), (0xE0000, 0xE01EF), (0xF0000, 0x10FFFF)]


def random_text(rng: random.Random) -> str:
    """Zero to eight parts: odd pieces of the lists above, words, digits of any script, code points of any plane."""
    parts = []
    for _ in range(rng.randrange(9)):
        kind = rng.random()
        if kind < 0.45:
            parts.append(rng.choice(rng.choice(GROUPS)))
        elif kind < 0.75:
            parts.append("".join(rng.choices(LETTERS, k=rng.randrange(1, 12))))
        elif kind < 0.98:
            low, high = rng.choice(PLANES)
            parts.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randrange(1, 4))))
        else:
            parts.append("".join(rng.choices(LETTERS + " ", k=rng.randrange(100, 600))))  # longer than any context
        parts.append(rng.choice(SPACES))
    return "".join(parts)


def random_texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [random_text(rng) for _ in range(count)]


def clip_spec(**fields: Any) -> TokenizerSpec:
    return TokenizerSpec(**{"kind": "clip_bpe", "clean": "lower", "context_length": 77, **fields})


def hf_spec(**fields: Any) -> TokenizerSpec:
    return TokenizerSpec(**{"kind": "huggingface", "clean": "whitespace", "context_length": 24, **fields})


@pytest.fixture(scope="session")
def reference() -> Any:
    """The module ``open_clip.tokenizer``."""
    pytest.importorskip("open_clip", reason="needs the export extra", exc_type=ImportError)
    import open_clip.tokenizer

    return open_clip.tokenizer


@pytest.fixture(scope="session")
def clip_file(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "tokenizer.json"
    write_clip_tokenizer(Path(reference.default_bpe()), path)
    return path


@pytest.fixture(scope="session")
def clip_reference(reference: Any) -> Any:
    """open_clip's tokenizer of CLIP, whose making takes longer than most of what it is asked."""
    return reference.SimpleTokenizer()


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    write_stand_in_tokenizer(tmp_path / "tokenizer.json", 259)
    return tmp_path / "tokenizer.json"


def assert_same_rows(texts: list[str], ours: np.ndarray, expected: np.ndarray) -> None:
    assert ours.shape == expected.shape
    different = np.flatnonzero((ours != expected).any(axis=1))
    shown = [(ascii(texts[index]), ours[index].tolist(), expected[index].tolist()) for index in different[:3]]
    assert not shown, f"{len(different)} of {len(texts)} rows differ, such as {shown}"


# CLIP's own tokenizer


@pytest.mark.torch
@pytest.mark.parametrize(
    "count",
    [1000, pytest.param(20_000, marks=pytest.mark.slow), pytest.param(100_000, marks=pytest.mark.full_size)],
)
def test_many_thousand_odd_texts_get_open_clips_ids(clip_reference: Any, clip_file: Path, count: int) -> None:
    texts = random_texts(count, seed=0)
    expected = clip_reference(texts).numpy()
    assert_same_rows(texts, Tokenizer.load(clip_file, clip_spec())(texts), expected)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("clean", "context_length"),
    [
        *(("lower", length) for length in (1, 2, 3, 16, 77)),
        *((clean, length) for clean in ("whitespace", "canonicalize") for length in (3, 77)),
    ],
)
def test_every_cleaning_and_context_length_equals_open_clip(
    clean: str, context_length: int, reference: Any, clip_reference: Any, clip_file: Path
) -> None:
    texts = random_texts(200, seed=context_length)
    texts += [text for group in GROUPS for text in group]
    texts += ["", " ", "\n\t", "dog " * 200, "x" * 500]
    theirs = copy.copy(clip_reference)
    theirs.clean_fn = reference.get_clean_fn(clean)  # all that its keyword ``clean`` does
    expected = theirs(texts, context_length=context_length).numpy()
    ours = Tokenizer.load(clip_file, clip_spec(clean=clean, context_length=context_length))
    assert_same_rows(texts, ours(texts), expected)


@pytest.mark.torch
def test_every_letter_and_digit_equals_open_clip(clip_reference: Any, clip_file: Path) -> None:
    """One text for each block of 32 code points, so that no Unicode table of another library shows.

    Of a row of blocks that hold nothing but letters without a case, as of ideographs, the first, the last and each tenth.
    """

    def categories(start: int) -> set[str]:
        return {unicodedata.category(chr(code)) for code in range(start, start + 32) if not 0xD800 <= code < 0xE000}

    texts = []
    for start in range(0, 0x32400, 32):
        inside = start > 0 and {"Lo"} == categories(start - 32) == categories(start) == categories(start + 32)
        if {category[0] for category in categories(start)} & set("LNM") and (not inside or start % 320 == 0):
            block = [chr(code) for code in range(start, start + 32) if not 0xD800 <= code < 0xE000]
            texts.append("a".join(block))
    expected = clip_reference(texts, context_length=200).numpy()
    assert_same_rows(texts, Tokenizer.load(clip_file, clip_spec(context_length=200))(texts), expected)


@pytest.mark.torch
def test_cleaning_functions_equal_open_clip(reference: Any) -> None:
    for text in random_texts(300, seed=5):
        for name in ("lower", "whitespace", "canonicalize"):
            assert CLEANERS[name](text) == reference.get_clean_fn(name)(text), (name, ascii(text))


@pytest.mark.torch
def test_printable_ascii_needs_no_repair(reference: Any) -> None:
    rng = random.Random(1)
    printable = [chr(code) for code in range(32, 127) if chr(code) != "&"]
    for _ in range(500):
        text = "".join(rng.choices(printable, k=rng.randrange(30)))
        assert clean_whitespace(text) == reference.get_clean_fn("whitespace")(text)


@pytest.mark.torch
def test_ids_are_open_clips_for_the_whole_vocabulary(clip_reference: Any, clip_file: Path) -> None:
    ours = tokenizers.Tokenizer.from_file(str(clip_file))
    assert ours.get_vocab() == clip_reference.encoder


@pytest.mark.torch
def test_special_tokens_in_a_text_become_their_ids(clip_file: Path) -> None:
    tokenize = Tokenizer.load(clip_file, clip_spec(context_length=6))
    assert tokenize("a <end_of_text> <START_OF_TEXT>")[0].tolist() == [49406, 320, 49407, 49406, 49407, 0]


@pytest.mark.torch
def test_tokenizer_file_works_by_itself_in_other_programs(clip_reference: Any, clip_file: Path) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(clip_file))
    simple = clip_reference
    for text in ("A photo of a dog.", "it's  12 Cafés, isn't it?", "日本語 и русский", f"x {END_OF_TEXT} y", ""):
        expected = [simple.sot_token_id, *simple.encode(text), simple.eot_token_id]
        assert tokenizer.encode(text).ids == expected, text
    assert tokenizer.decode(tokenizer.encode("A photo of a café.").ids) == "a photo of a café . "


@pytest.mark.torch
def test_cache_that_is_full_starts_again(clip_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = random_texts(100, seed=8)
    expected = Tokenizer.load(clip_file, clip_spec())(texts)
    monkeypatch.setattr("clipmlu.data.byte_pairs._CACHED_WORDS", 10)
    np.testing.assert_array_equal(Tokenizer.load(clip_file, clip_spec())(texts), expected)


@pytest.mark.torch
def test_pad_id_fills_the_rest(clip_file: Path) -> None:
    assert Tokenizer.load(clip_file, clip_spec(context_length=5, pad_id=9))("dog").tolist() == [
        [49406, 1929, 49407, 9, 9]
    ]


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08 not gzip", b"plain text"])
def test_vocabulary_that_is_no_gzip_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bpe.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"bpe\.gz"):
        write_clip_tokenizer(tmp_path / "bpe.gz", tmp_path / "tokenizer.json")


def test_other_tokenizers_are_not_taken_for_clips(stand_in: Path) -> None:
    with pytest.raises(BundleCorruptError, match="is not CLIP's: expected a BPE model with '<start_of_text>'"):
        Tokenizer.load(stand_in, clip_spec())


# Any other fast tokenizer


def train_text() -> list[str]:
    return [clean_lower(text) for text in random_texts(150, seed=3)] + [
        "a photo of a dog",
        "a bad photo of the cat",
    ] * 20


def write_t5_like(folder: Path, padding_side: str = "right") -> None:
    """A SentencePiece unigram tokenizer as T5's and SigLIP's: metaspace, closing ``</s>``, padding with ``<pad>``."""
    from transformers import PreTrainedTokenizerFast

    inner = tokenizers.Tokenizer(models.Unigram())
    inner.normalizer = normalizers.NFKC()
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=900, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    inner.train_from_iterator(train_text(), trainer)
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side=padding_side
    ).save_pretrained(folder)


def write_bert_like(folder: Path) -> None:
    """A WordPiece tokenizer as BERT's: ``[CLS] text [SEP]``; it names bos and eos too, for mode ``clips``."""
    from transformers import PreTrainedTokenizerFast

    inner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[BOS]", "[EOS]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=800, special_tokens=specials, show_progress=False)
    inner.train_from_iterator(train_text(), trainer)
    inner.post_processor = processors.BertProcessing(("[SEP]", 5), ("[CLS]", 4))
    names = ("pad_token", "bos_token", "eos_token", "unk_token", "cls_token", "sep_token")
    named = dict(zip(names, specials, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=inner, **named).save_pretrained(folder)


HF_CASES: dict[str, tuple[Callable[[Path], None], dict[str, Any], dict[str, Any]]] = {
    "t5": (write_t5_like, {}, {}),
    "siglip": (write_t5_like, {"clean": "canonicalize"}, {"clean": "canonicalize"}),
    "bert": (write_bert_like, {"strip_sep_token": True}, {"zero_id": 5}),
    "bert with separator": (write_bert_like, {"clean": "lower"}, {"clean": "lower"}),
    "clips": (write_bert_like, {"tokenizer_mode": "clips"}, {"bos_id": 1, "eos_id": 2, "class_token_id": 4}),
}


@pytest.mark.torch
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in ("siglip", "bert") else pytest.mark.slow) for case in HF_CASES]
)
def test_huggingface_kind_equals_open_clip(case: str, reference: Any, tmp_path: Path) -> None:
    write, options, fields = HF_CASES[case]
    write(tmp_path)
    texts = ["", " ", "a photo of a dog", "a photo of a " * 60, "[SEP] </s> <pad> [CLS]", *random_texts(200, seed=4)]
    theirs = reference.HFTokenizer(str(tmp_path), **options)
    for context_length in (3, 4, 24, 64):
        spec = hf_spec(context_length=context_length, pad_id=theirs.tokenizer.pad_token_id, **fields)
        expected = theirs(texts, context_length=context_length).numpy()
        assert_same_rows(texts, Tokenizer.load(tmp_path / "tokenizer.json", spec)(texts), expected)


@pytest.mark.torch
def test_sides_of_padding_and_truncation_come_from_the_file(reference: Any, tmp_path: Path) -> None:
    write_t5_like(tmp_path, padding_side="left")
    theirs = reference.HFTokenizer(str(tmp_path), context_length=8)
    theirs.tokenizer.truncation_side = "left"
    texts = ["dog", "a photo of a dog and of a cat that is longer"]
    expected = theirs(texts).numpy()
    theirs.tokenizer.backend_tokenizer.save(str(tmp_path / "after.json"))  # holds the sides once it has been used
    assert expected[0][0] == 0
    assert_same_rows(texts, Tokenizer.load(tmp_path / "after.json", hf_spec(context_length=8))(texts), expected)


def test_stand_in_ids_are_bytes_between_its_special_tokens(stand_in: Path) -> None:
    tokenize = Tokenizer.load(stand_in, hf_spec(context_length=8))
    ids = tokenize(["é!", "", "x" * 50])
    assert ids.dtype == np.int64
    assert ids[:, 0].tolist() == [1, 1, 1]
    assert ids[0].tolist()[4:] == [258, 0, 0, 0]
    assert ids[1].tolist() == [1, 258, 0, 0, 0, 0, 0, 0]
    assert ids[2, -1] == 258


def test_stand_in_never_leaves_its_vocabulary(stand_in: Path) -> None:
    ids = Tokenizer.load(stand_in, hf_spec(context_length=200))(random_texts(300, seed=6))
    assert ids.min() == 0
    assert ids.max() == 258


def test_stand_in_needs_room_for_every_byte(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs 259 ids; the vocabulary has 258"):
        write_stand_in_tokenizer(tmp_path / "tokenizer.json", 258)


# Arguments


def test_one_text_is_a_batch_of_one_and_no_text_a_batch_of_none(stand_in: Path) -> None:
    tokenize = Tokenizer.load(stand_in, hf_spec())
    np.testing.assert_array_equal(tokenize("dog"), tokenize(["dog"]))
    assert tokenize([]).shape == (0, 24)
    assert tokenize(("a", "b")).shape == (2, 24)


def test_rows_do_not_depend_on_the_batch(stand_in: Path) -> None:
    tokenize = Tokenizer.load(stand_in, hf_spec())
    texts = random_texts(2100, seed=2)
    together = tokenize(texts)
    for index in (0, 1023, 1024, 2099):
        np.testing.assert_array_equal(together[index], tokenize(texts[index])[0])


@pytest.mark.parametrize("kind", ["clip", "stand-in", "class token"])
def test_texts_that_lose_tokens_are_counted(kind: str, stand_in: Path, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue("clip_file") if kind == "clip" else stand_in
    fields = {"class_token_id": 1, "bos_id": 1, "eos_id": 258} if kind == "class token" else {}
    fields["pad_id"] = 99999  # no token
    spec = clip_spec if kind == "clip" else hf_spec
    short, long = (Tokenizer.load(path, spec(context_length=length, **fields)) for length in (24, 3000))
    texts = [
        *random_texts(150, seed=9),
        "",
        *("x " * count for count in range(8, 26)),
        *("x" * count for count in range(18, 26)),
    ]
    expected = int(((long(texts) != 99999).sum(axis=1) > 24).sum())
    assert 30 < expected < len(texts)
    assert short.count_truncated(texts) == expected
    assert short.count_truncated([]) == 0


@pytest.mark.parametrize("texts", [[b"dog"], [None], ["a", 3], b"dog", [["a"]]])
def test_what_is_no_text_is_a_type_error(texts: Any, stand_in: Path) -> None:
    with pytest.raises(OptionError, match=r"^texts(\[\d\])? (is|are) .*; expected a text"):
        Tokenizer.load(stand_in, hf_spec())(texts)


def test_lone_surrogates_become_replacement_characters() -> None:
    assert clean_whitespace("a\ud800 \udfffb") == "a\ufffd \ufffdb"
    assert clean_canonicalize("\ud83d\ude00") == "😀"


def test_text_that_the_file_cannot_represent_is_an_input_error(tmp_path: Path) -> None:
    word_level = tokenizers.Tokenizer(models.WordLevel({"dog": 0}, unk_token="[UNK]"))
    word_level.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="cannot encode one of 1 texts"):
        Tokenizer.load(tmp_path / "tokenizer.json", hf_spec())("cat")


@pytest.mark.parametrize("content", [None, "", "{}", "[1, 2"])
def test_unreadable_tokenizer_file_is_named(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BundleCorruptError, match=r"Cannot read the tokenizer '.*tokenizer\.json'"):
        Tokenizer.load(path, clip_spec())


@pytest.mark.parametrize(
    ("make", "fields", "words"),
    [
        (hf_spec, {"class_token_id": 1}, "needs bos_id and eos_id"),
        (clip_spec, {"zero_id": 1}, "belong to kind 'huggingface'"),
    ],
)
def test_spec_that_contradicts_itself_is_refused(
    make: Callable[..., TokenizerSpec], fields: dict[str, int], words: str
) -> None:
    with pytest.raises(OptionError, match=words):
        make(**fields)


def test_context_without_room_for_the_special_tokens_is_refused(stand_in: Path) -> None:
    with pytest.raises(BundleCorruptError, match="adds 2 special tokens to a text; the context has room for 1"):
        Tokenizer.load(stand_in, hf_spec(context_length=1))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("fields", [{}, {"class_token_id": 1, "bos_id": 1, "eos_id": 258}])
def test_template_with_a_token_that_it_does_not_define_is_refused(
    nested: bool, fields: dict[str, int], stand_in: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(stand_in.read_text())
    del content["post_processor"]["special_tokens"]["<sot>"]
    if nested:
        content["post_processor"] = {"type": "Sequence", "processors": [content["post_processor"]]}
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(content))
    with pytest.raises(BundleCorruptError) as caught:
        Tokenizer.load(path, hf_spec(**fields))
    assert "damaged.json' puts '<sot>' around a text, which it does not define" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr().err == ""


class PanicException(BaseException):
    """What pyo3 raises where Rust code panics; its own class cannot be imported."""


class _PanickingTokenizer:
    """A tokenizer of the library that can be read, and panics at the first text."""

    truncation = padding = post_processor = None

    @staticmethod
    def from_buffer(_: bytes) -> _PanickingTokenizer:
        return _PanickingTokenizer()

    def num_special_tokens_to_add(self, _: bool) -> int:
        return 0

    def enable_truncation(self, *_: object, **__: object) -> None:
        pass

    enable_padding = enable_truncation

    def encode_batch_fast(self, *_: object, **__: object) -> None:
        raise PanicException("no entry found for key")


def test_panic_of_the_library_is_an_error_of_the_file(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ByteRows, "of", lambda *_: None)  # as for a file that only the library reads
    monkeypatch.setattr(tokenizers, "Tokenizer", _PanickingTokenizer)
    with pytest.raises(
        BundleCorruptError, match=r"tokenizer.json' is damaged: .*\(no entry found for key\)\. Make the"
    ):
        Tokenizer.load(stand_in, hf_spec())


# Byte pairs without the library


def library_ids(path: Path, words: list[str]) -> list[tuple[int, ...]]:
    """The ids of words as the library merges them, without what it does before and after."""
    inner = tokenizers.Tokenizer(tokenizers.Tokenizer.from_file(str(path)).model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return [tuple(inner.encode(word, add_special_tokens=False).ids) for word in words]


def read_pairs(path: Path) -> BytePairs:
    pairs = msgspec.json.decode(path.read_bytes(), type=TokenizerFile).byte_pairs()
    assert pairs is not None
    return pairs


def write_random_pairs(path: Path, rng: random.Random, suffix: str) -> None:
    """Merges that no training would give: of any ranks, in any order, some to the same token."""
    write_stand_in_tokenizer(path, 259)
    content = json.loads(path.read_text())
    vocab, letters = content["model"]["vocab"], list("abcd")
    for symbol in [symbol for symbol in vocab if len(symbol) == 1] if suffix else []:
        vocab[symbol + suffix] = len(vocab)
    tokens, merges = [*letters, *(letter + suffix for letter in letters if suffix)], []
    for _ in range(60):
        left, right = rng.choice([token for token in tokens if not suffix or suffix not in token]), rng.choice(tokens)
        if len(left + right) < 12 and (left, right) not in merges:
            merges.append((left, right))
            tokens.append(left + right)
            vocab.setdefault(left + right, len(vocab))
    rng.shuffle(merges)
    content["model"] |= {"vocab": vocab, "merges": merges, "end_of_word_suffix": suffix or None}
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("suffix", ["", "</w>"])
def test_merges_in_any_order_are_those_of_the_library(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    for seed in range(15):
        rng = random.Random(seed)
        write_random_pairs(path, rng, suffix)
        words = ["".join(rng.choices("abcd", k=rng.randrange(1, 30))) for _ in range(100)]
        assert list(map(read_pairs(path).encode, words)) == library_ids(path, words), seed


@pytest.mark.torch
@hypothesis.settings(max_examples=300, deadline=None, database=None, derandomize=True)
@hypothesis.given(words=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_any_word_has_the_ids_of_the_library(clip_file: Path, words: list[str]) -> None:
    pairs = _clip_pairs(clip_file)
    assert list(map(pairs.encode, words)) == _clip_library_ids(clip_file, tuple(words))


_clip_pairs = functools.cache(read_pairs)


@functools.cache
def _clip_library(path: Path) -> Any:
    inner = tokenizers.Tokenizer(tokenizers.Tokenizer.from_file(str(path)).model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return inner


def _clip_library_ids(path: Path, words: tuple[str, ...]) -> list[tuple[int, ...]]:
    return [tuple(_clip_library(path).encode(word, add_special_tokens=False).ids) for word in words]


@pytest.mark.torch
@pytest.mark.parametrize("letters", ["x", "ab", "abcdefghijklmnopqrstuvwxyz", "!?", "\u6f22\u5b57", "\U0001f600"])
def test_a_word_of_100_kilobytes_takes_no_time_of_its_square(letters: str, clip_file: Path) -> None:
    rng = random.Random(0)
    size = 100_000 // len(letters[0].encode())
    word = "".join(rng.choices(letters, k=size))
    encode = _clip_pairs(clip_file).encode
    start = time.process_time()
    ids = encode(word)
    seconds = time.process_time() - start
    assert ids == _clip_library_ids(clip_file, (word,))[0]
    assert seconds < 2  # 0.1 to 0.3 s; quadratic time would be minutes


def test_long_words_take_no_memory(stand_in: Path) -> None:
    encode = read_pairs(stand_in).encode
    tracemalloc.start()
    for number in range(10):
        assert len(encode(f"{number:03}" + "x" * 10_000)) == 10_003
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 200_000  # all of them take 900 kB


DEMO = Path(str(resources.files("clipmlu"))) / "assets" / "demo" / "tokenizer.json"


def by_library(path: Path, spec: TokenizerSpec) -> Tokenizer:
    return Tokenizer(spec, _PaddedRows(tokenizers.Tokenizer.from_file(str(path)), spec, path))


@pytest.mark.parametrize("clean", ["lower", "canonicalize", "whitespace", "siglip", "none"])
@pytest.mark.parametrize("length", [3, 30, 200])
def test_the_stand_in_and_the_demo_models_tokenizer_have_the_ids_of_the_library(
    clean: str, length: int, stand_in: Path
) -> None:
    texts = random_texts(300, seed=length) + [text for group in GROUPS for text in group]
    texts += [
        "<x> e&#x301;f &#x1100;&#x1161;",
        "<pad><start_of_text> x <end_of_text>",
        "<pad",
        "<sot><eot>a<pad>b<sot",
        "",
        " ",
    ]
    texts = [text.encode(errors="replace").decode() for text in texts]
    for path in (stand_in, *([DEMO] if clean in ("lower", "canonicalize") else [])):
        given = texts if path == stand_in else [_assigned(text) for text in texts]
        spec = hf_spec(clean=clean, context_length=length)
        ours, theirs = Tokenizer.load(path, spec), by_library(path, spec)
        assert isinstance(ours._encode, _ByteRows)
        assert_same_rows(given, ours(given), theirs(given))
        assert ours.count_truncated(given) == theirs.count_truncated(given)
        assert ours.largest_id == theirs.largest_id


@pytest.fixture(scope="session")
def transformers_file(clip_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP's tokenizer as transformers writes it."""
    transformers = pytest.importorskip("transformers", reason="needs the export extra", exc_type=ImportError)
    model = json.loads(clip_file.read_text())["model"]
    names = {START_OF_TEXT: "<|startoftext|>", END_OF_TEXT: "<|endoftext|>"}
    vocab = {names.get(token, token): number for token, number in model["vocab"].items()}
    made = transformers.CLIPTokenizer(vocab=vocab, merges=[tuple(pair) for pair in model["merges"]])
    path = tmp_path_factory.mktemp("transformers") / "tokenizer.json"
    path.write_text(made.backend_tokenizer.to_str(pretty=False))
    return path


def _as_older_transformers(file: dict[str, Any]) -> None:
    """As in https://huggingface.co/openai/clip-vit-base-patch32."""
    split, byte_level = file["pre_tokenizer"]["pretokenizers"]
    split["pattern"]["Regex"] = split["pattern"]["Regex"].removeprefix(r"<\|startoftext\|>|<\|endoftext\|>|")
    del byte_level["use_regex"]
    file["added_tokens"][0]["normalized"] = True
    file["model"]["merges"] = [" ".join(pair) for pair in file["model"]["merges"]]


def _with_another_token(file: dict[str, Any]) -> None:
    new = {**file["added_tokens"][0], "id": 49408, "content": "<\u00c4>", "special": False, "normalized": True}
    file["added_tokens"].append(new)


TRANSFORMERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "transformers 5": lambda _file: None,
    "older transformers": _as_older_transformers,
    "a normalised token of another program": _with_another_token,
}


@pytest.mark.torch
@pytest.mark.parametrize("form", TRANSFORMERS)
def test_clips_tokenizer_of_transformers_has_the_ids_of_the_library(
    form: str, transformers_file: Path, tmp_path: Path
) -> None:
    content, path = json.loads(transformers_file.read_text()), tmp_path / "tokenizer.json"
    TRANSFORMERS[form](content)
    path.write_text(json.dumps(content))
    texts = random_texts(2000, seed=21) + [text for group in GROUPS for text in group]
    texts += [
        "a <|startoftext|>b<|endoftext|>",
        "!<|STARTOFTEXT|>! <|StartOfText|>",
        "<|startoftext|>\u0338 <\u0338|endoftext|>",
        "\u039f\u0394\u039f\u03a3 \u03a3 \u0130 \u212b\u212a A\u030a 'LL 'S",
        "<\u00c4><A\u0308>x<\u00e4>",
        "",
    ]
    compose = normalizers.NFC().normalize_str  # of an older Unicode: it does not know some marks
    texts = [_assigned(text.encode(errors="replace").decode()) for text in texts]
    known = [text for text in texts if compose(text) == unicodedata.normalize("NFC", text)]
    assert len(known) > 0.98 * len(texts)
    spec = hf_spec(clean="none", context_length=77, pad_id=49407)
    ours, theirs = Tokenizer.load(path, spec), by_library(path, spec)
    assert isinstance(ours._encode, _ByteRows)
    assert_same_rows(known, ours(known), theirs(known))
    assert ours.count_truncated(known) == theirs.count_truncated(known)


@pytest.mark.parametrize("normalise", [CLEANERS["whitespace"], _normalise])
def test_many_combining_marks_take_no_time_of_their_square(normalise: Callable[[str], str]) -> None:
    rng = random.Random(0)
    marks = "".join(rng.choices("\u0301\u0316\u0345\u031b\u0334\u3099", k=30_000))
    text = f"a{marks[:150]}b{marks[:120]}\u0903{marks}"
    start = time.process_time()
    found = normalise(text)
    assert time.process_time() - start < 0.25  # 0.02 s; with Python's own order 0.5 s
    assert found == unicodedata.normalize("NFC", text)


def _assigned(text: str) -> str:
    """A text without the code points that Unicode 14 does not assign: the libraries' tables are of other versions."""
    return "".join(character for character in text if unicodedata.category(character) != "Cn")


def test_the_longest_of_several_added_tokens_is_taken(stand_in: Path) -> None:
    content = json.loads(stand_in.read_text())
    for number, text in enumerate(("<a", "<a>", "<a><b>", "b>"), 259):
        content["added_tokens"].append({**content["added_tokens"][0], "id": number, "content": text})
    stand_in.write_text(json.dumps(content))
    texts = ["<a><b>", "<a><a", "x<ab>", "<<a>b>", "<a><pad>"]
    tokenize = Tokenizer.load(stand_in, hf_spec())
    assert isinstance(tokenize._encode, _ByteRows)
    assert_same_rows(texts, tokenize(texts), by_library(stand_in, hf_spec())(texts))
    assert tokenize.largest_id == 262


@pytest.mark.slow
def test_every_assigned_character_is_split_as_the_library_splits_it() -> None:
    characters = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")]
    texts = [f"a{each}b {each}{each} 1{each}! {each}\u0301" for each in characters]
    spec = hf_spec(clean="lower", context_length=60)
    assert_same_rows(texts, Tokenizer.load(DEMO, spec)(texts), by_library(DEMO, spec)(texts))


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "normalizer": lambda file: file.update(normalizer={"type": "NFKC"}),
    "split": lambda file: file.update(pre_tokenizer={"type": "Whitespace"}),
    "prefix space": lambda file: file["pre_tokenizer"].update(add_prefix_space=True),
    "byte level with its own split": lambda file: file["pre_tokenizer"].update(use_regex=True),
    "dropout": lambda file: file["model"].update(dropout=0.1),
    "whole words": lambda file: file["model"].update(ignore_merges=True),
    "subword prefix": lambda file: file["model"].update(continuing_subword_prefix="##"),
    "other suffix": lambda file: file["model"].update(end_of_word_suffix="@@"),
    "added token of whole words": lambda file: file["added_tokens"][0].update(single_word=True),
    "added token that takes spaces": lambda file: file["added_tokens"][0].update(lstrip=True),
    "normalised added token with a space": lambda file: file["added_tokens"].append(
        {**file["added_tokens"][0], "id": 259, "content": "a b", "normalized": True}
    ),
    "normalised added tokens that become one": lambda file: file["added_tokens"].extend(
        {**file["added_tokens"][0], "id": 259 + number, "content": text, "normalized": True}
        for number, text in enumerate(("<A>", "<a>"))
    ),
    "white space that becomes a space": lambda file: file.update(normalizer=json.loads(DEMO.read_text())["normalizer"]),
    "no byte": lambda file: file["model"]["vocab"].pop("!"),
    "added token with an id after a gap": lambda file: file["added_tokens"].append(
        {**file["added_tokens"][0], "id": 300, "content": "<new>"}
    ),
    "left padding": lambda file: file.update(padding=_padding("Left")),
    "other template": lambda file: file.update(
        post_processor={"type": "BertProcessing", "sep": ["<eot>", 258], "cls": ["<sot>", 1]}
    ),
}


def _padding(direction: str) -> dict[str, Any]:
    pad = {"strategy": "BatchLongest", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
    return {"direction": direction, **pad}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_of_another_form_is_left_to_the_library(change: str, stand_in: Path) -> None:
    content = json.loads(stand_in.read_text())
    CHANGES[change](content)
    stand_in.write_text(json.dumps(content))
    assert isinstance(Tokenizer.load(stand_in, hf_spec())._encode, _PaddedRows)


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "an id that is no number": lambda file: file["post_processor"]["special_tokens"]["<sot>"].update(ids=["1"]),
    "merges that are no list": lambda file: file["model"].update(merges=None),
    "merges that are a text": lambda file: file["model"].update(merges=""),
    "a panic of the library": lambda file: file["model"].update(merges=["a b"], continuing_subword_prefix="longer"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_with_a_damaged_part_is_refused(damage: str, stand_in: Path) -> None:
    content = json.loads(stand_in.read_text())
    DAMAGES[damage](content)
    stand_in.write_text(json.dumps(content))
    with pytest.raises(BundleCorruptError, match=r"^Cannot read the tokenizer "):
        Tokenizer.load(stand_in, hf_spec())


def test_a_file_that_needs_the_library_names_the_extra(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.loads(stand_in.read_text())
    CHANGES["normalizer"](content)
    stand_in.write_text(json.dumps(content))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(
        MissingDependencyError, match=r"^The tokenizer '.*' needs 'tokenizers'.*clipmlu\[tokenizers\]'$"
    ):
        Tokenizer.load(stand_in, hf_spec())


@pytest.mark.parametrize("kind", ["clip", "stand-in"])
def test_files_are_as_the_library_writes_them(kind: str, stand_in: Path, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue("clip_file") if kind == "clip" else stand_in
    assert path.read_text() == tokenizers.Tokenizer.from_file(str(path)).to_str(pretty=False)


def test_half_a_surrogate_pair_that_no_cleaning_repairs_is_an_input_error(stand_in: Path) -> None:
    for tokenize in (Tokenizer.load(stand_in, hf_spec(clean="none")), by_library(stand_in, hf_spec(clean="none"))):
        with pytest.raises(InputError, match=r"^The tokenizer cannot encode one of 1 texts: "):
            tokenize("a\ud800b")


def test_threads_share_a_tokenizer(stand_in: Path) -> None:
    texts = random_texts(200, seed=12)
    tokenize = Tokenizer.load(stand_in, hf_spec())
    expected = by_library(stand_in, hf_spec())(texts)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(tokenize, [texts] * 16):
            np.testing.assert_array_equal(found, expected)
