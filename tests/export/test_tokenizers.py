"""The bundle's tokenizer against open_clip's, and what happens where there is none."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from clipmlu.data.tokenizer import Tokenizer, write_stand_in_tokenizer
from clipmlu.errors import DownloadError, ExportError
from clipmlu.export import tokenizers as writing
from clipmlu.export.exporter import ExportOptions
from clipmlu.export.loading import LoadedModel
from clipmlu.export.quiet import quiet_libraries
from clipmlu.export.source import Source
from clipmlu.specs import ModelId, PreprocessSpec, TokenizerSpec

pytest.importorskip("open_clip", reason="needs the export extra (open_clip)", exc_type=ImportError)
pytestmark = pytest.mark.torch

_WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[BOS]",
    "[EOS]",
    "a",
    "photo",
    "of",
    "cat",
    "red",
    "circle",
    "##s",
    "the",
    ".",
]


def fake_model(*, vocab_size: int = 49408, pad_id: int = 0, **text_cfg: Any) -> LoadedModel:
    """All that the tokenizer's writer asks about a model."""
    return LoadedModel(
        module=None,
        config={"text_cfg": text_cfg},
        preprocess=PreprocessSpec(height=8, width=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        context_length=16,
        vocab_size=vocab_size,
        pad_id=pad_id,
        logit_scale=1.0,
        logit_bias=None,
        activation="gelu",
        weights_digest="",
    )


def source(directory: Path | None = None, *, seed: int | None = None) -> Source:
    return Source(identity=ModelId(name="x", random_seed=seed), directory=directory, name=None if directory else "x")


def write_bert(folder: Path) -> Path:
    """A directory with a small WordPiece tokenizer of transformers' kind."""
    folder.mkdir()
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: index for index, word in enumerate(_WORDS)}, unk_token="[UNK]")
    )
    inner.normalizer = tokenizers.normalizers.BertNormalizer()
    inner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    inner.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    inner.add_special_tokens(_WORDS[:6])
    inner.save(str(folder / "tokenizer.json"))
    roles = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "bos": "[BOS]", "eos": "[EOS]"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **{f"{role}_token": text for role, text in roles.items()}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def open_clip_ids(folder: Path, **kwargs: Any) -> Any:
    with quiet_libraries():
        from open_clip.tokenizer import HFTokenizer

        return HFTokenizer(str(folder), context_length=16, **kwargs)(list(writing.PROBE_TEXTS)).numpy()


def our_ids(path: Path, spec: TokenizerSpec) -> Any:
    return Tokenizer.load(path, spec)(list(writing.PROBE_TEXTS))


def test_clip_tokenizer_equals_open_clips(tmp_path: Path) -> None:
    import open_clip

    path = tmp_path / "tokenizer.json"
    spec = writing.write_tokenizer(source(), fake_model(), path, ExportOptions())
    assert (spec.kind, spec.clean, spec.stand_in) == ("clip_bpe", "lower", False)
    expected = open_clip.SimpleTokenizer(context_length=16)(list(writing.PROBE_TEXTS)).numpy()
    np.testing.assert_array_equal(our_ids(path, spec), expected)


def test_clip_tokenizer_of_another_bundle_may_be_given(tmp_path: Path) -> None:
    first = writing.write_tokenizer(source(), fake_model(), tmp_path / "tokenizer.json", ExportOptions())
    options = ExportOptions(tokenizer=tmp_path)
    assert writing.write_tokenizer(source(), fake_model(), tmp_path / "t.json", options) == first


def test_cleaning_of_the_configuration_is_kept(tmp_path: Path) -> None:
    model = fake_model(tokenizer_kwargs={"clean": "canonicalize"})
    assert writing.write_tokenizer(source(), model, tmp_path / "t.json", ExportOptions()).clean == "canonicalize"


def test_unknown_tokenizer_option_is_refused(tmp_path: Path) -> None:
    model = fake_model(tokenizer_kwargs={"reduction_mask": "simple"})
    with pytest.raises(ExportError, match=r"\['reduction_mask'\], which clipmlu does not know"):
        writing.write_tokenizer(source(), model, tmp_path / "t.json", ExportOptions())


@pytest.mark.parametrize(
    ("text_cfg", "expected"),
    [
        ({}, {"clean": "whitespace", "zero_id": None}),
        ({"tokenizer_kwargs": {"clean": "canonicalize"}}, {"clean": "canonicalize"}),
        ({"tokenizer_kwargs": {"strip_sep_token": True}}, {"zero_id": 3}),
        ({"tokenizer_mode": "clips"}, {"class_token_id": 2, "bos_id": 4, "eos_id": 5}),
    ],
)
@pytest.mark.parametrize("own", [False, True], ids=["from-model", "from-user"])
def test_hugging_face_tokenizer_equals_open_clips(
    own: bool, text_cfg: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    folder = write_bert(tmp_path / "model")
    path = tmp_path / "tokenizer.json"
    model = fake_model(hf_tokenizer_name="org/name", vocab_size=len(_WORDS), **text_cfg)
    if own:
        spec = writing.write_tokenizer(source(), model, path, ExportOptions(tokenizer=folder))
    else:
        spec = writing.write_tokenizer(source(folder), model, path, ExportOptions())
    assert spec.kind == "huggingface"
    assert {key: getattr(spec, key) for key in expected} == expected
    reference = open_clip_ids(
        folder, tokenizer_mode=text_cfg.get("tokenizer_mode"), **text_cfg.get("tokenizer_kwargs", {})
    )
    np.testing.assert_array_equal(our_ids(path, spec), reference)


def test_padding_on_the_left_is_kept(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "padding_side": "left"}))
    path = tmp_path / "tokenizer.json"
    model = fake_model(hf_tokenizer_name="org/name", vocab_size=len(_WORDS))
    spec = writing.write_tokenizer(source(folder), model, path, ExportOptions())
    assert our_ids(path, spec)[2][0] == 0
    np.testing.assert_array_equal(our_ids(path, spec), open_clip_ids(folder))


def test_file_that_open_clip_cannot_pad_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_stand_in_tokenizer(folder / "tokenizer.json", 300)
    path = tmp_path / "tokenizer.json"
    model = fake_model(hf_tokenizer_name="own", vocab_size=300)
    spec = writing.write_tokenizer(source(folder), model, path, ExportOptions())
    assert not spec.stand_in
    assert path.read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_tokenizer_that_differs_from_open_clips_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_bert(tmp_path / "model")
    monkeypatch.setattr(writing, "_save_backend", lambda _tokenizer, path: write_stand_in_tokenizer(path, 300))
    model = fake_model(hf_tokenizer_name="org/name", vocab_size=300)
    with pytest.raises(ExportError, match=r"differs from that of open_clip on '': 1 258 0 .* instead of 2 3 0 0"):
        writing.write_tokenizer(source(folder), model, tmp_path / "t.json", ExportOptions())


def test_unreachable_tokenizer_of_a_trained_model_is_an_error(tmp_path: Path) -> None:
    model = fake_model(hf_tokenizer_name="org/name")
    options = ExportOptions(offline=True, cache_dir=tmp_path)
    with pytest.raises(
        DownloadError, match=r"'org/name/tokenizer.json' is not in the cache .* give one as --tokenizer PATH"
    ):
        writing.write_tokenizer(source(), model, tmp_path / "t.json", options)


def test_unreachable_tokenizer_of_a_random_model_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = fake_model(hf_tokenizer_name="org/name", vocab_size=400, pad_id=1)
    options = ExportOptions(offline=True, cache_dir=tmp_path, random_weights=True)
    with caplog.at_level(logging.WARNING, logger="clipmlu.export"):
        spec = writing.write_tokenizer(source(seed=0), model, tmp_path / "t.json", options)
    assert spec.stand_in
    assert spec.pad_id == 1
    assert "'org/name/tokenizer.json' is not in the cache" in caplog.text
    assert "A stand-in tokenizer is used" in caplog.text
    assert our_ids(tmp_path / "t.json", spec).max() < 400


def test_tokenizer_beyond_the_token_embedding_is_refused(tmp_path: Path) -> None:
    model = fake_model(vocab_size=1000)
    with pytest.raises(ExportError, match="has the id 49407, but the model's token embedding ends at 999"):
        writing.write_tokenizer(source(), model, tmp_path / "t.json", ExportOptions())
    assert writing.write_tokenizer(
        source(seed=0), model, tmp_path / "t.json", ExportOptions(random_weights=True)
    ).stand_in


def test_vocabulary_too_small_for_any_stand_in_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"No stand-in tokenizer fits the model: .*--tokenizer PATH"):
        writing.write_tokenizer(source(seed=0), fake_model(vocab_size=100), tmp_path / "t.json", ExportOptions())


def test_broken_own_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ExportError, match=r"Cannot read the tokenizer '.*tokenizer.json'"):
        writing.write_tokenizer(source(), fake_model(), tmp_path / "t.json", ExportOptions(tokenizer=tmp_path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "truncated"),
        (b"[1]", "Expected `object`, got `array`"),
        (b"\xff", "malformed"),
        (b'{"a":' * 5000, "nested too deeply"),
        (None, "it is a pipe or a device"),
    ],
)
def test_damaged_names_of_special_tokens_are_an_error(content: bytes | None, words: str, tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "bert")
    config = folder / "tokenizer_config.json"
    config.unlink()
    if content is None:
        os.mkfifo(config)
    else:
        config.write_bytes(content)
    with pytest.raises(ExportError, match=rf"Cannot read '.*tokenizer_config\.json'.*{words}"):
        writing.write_tokenizer(source(), fake_model(), tmp_path / "t.json", ExportOptions(tokenizer=folder))


def test_special_token_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "bert")
    (folder / "tokenizer_config.json").write_text('{"pad_token": {"content": 7}}')
    model = fake_model(hf_tokenizer_name="org/bert")
    with pytest.raises(ExportError, match="gives 'pad_token' as 7; expected a token's text"):
        writing.write_tokenizer(source(), model, tmp_path / "t.json", ExportOptions(tokenizer=folder))
