"""Tiny models of the transformers library with random weights, one directory for each class, as ``save_pretrained`` writes it."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers

with contextlib.suppress(ImportError):
    import transformers

CHINESE = "\u4e00\u5f20\u732b\u72d7\u7ea2\u8272\u7684\u7167\u7247\u9e1f\u3002"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIDE = 32
DIM = 24
CONTEXT = 16

_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
}
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": CONTEXT,
}
_NO_SPECIALS = {"bos_token_id": None, "eos_token_id": None}
_CLIP_IMAGES = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
_SQUASHED = {"size": {"height": SIDE, "width": SIDE}}


def _clip_tokenizer() -> Any:
    """All bytes, each with and without the end of a word, and a few merges."""
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    merges = [("a", "t</w>"), ("c", "at</w>"), ("d", "o"), ("do", "g</w>"), ("p", "h"), ("ph", "o")]
    tokens = [*alphabet, *(f"{each}</w>" for each in alphabet), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT)


def _bert_tokenizer() -> Any:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{each}" for each in LETTERS), *CHINESE]
    tokens += ["cat", "dog", "photo", ".", ",", "!"]
    return transformers.BertTokenizer(vocab={token: index for index, token in enumerate(tokens)}, model_max_length=512)


def _xlm_tokenizer() -> Any:
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -3.0), ("\u2581photo", -4.0)]
    pieces += [(each, -5.0) for each in LETTERS + CHINESE + ".,!'"] + [("<mask>", 0.0)]
    return transformers.XLMRobertaTokenizer(vocab=pieces, model_max_length=512)


def _siglip_tokenizer(folder: Path) -> Any:
    """A SentencePiece model with the settings of SigLIP's: unigrams, NFKC, </s> as the end and as the padding."""
    import sentencepiece

    folder = Path(tempfile.mkdtemp(dir=folder.parent))
    text = folder / "text.txt"
    words = [
        "a photo of a cat",
        "a photo of a dog on a red sofa",
        "two birds, an aeroplane and a frog",
        *LETTERS,
        *CHINESE,
    ]
    text.write_text("\n".join(words * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "trained"),
        vocab_size=90,
        model_type="unigram",
        pad_id=-1,
        bos_id=-1,
        eos_id=1,
        unk_id=2,
        user_defined_symbols="<blank>",
        normalization_rule_name="nmt_nfkc",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return transformers.SiglipTokenizer(vocab_file=str(folder / "trained.model"), model_max_length=CONTEXT)


def _siglip2_tokenizer() -> Any:
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *LETTERS, *CHINESE]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)] + ["at", "cat"]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [("a", "t"), ("c", "at")]
    return transformers.Siglip2Tokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT, padding_side="right")


def _clip(kind: str = "CLIP") -> tuple[Any, Any, Any]:
    tokenizer = _clip_tokenizer()
    text = {**_TEXT, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "projection_dim": DIM}
    config = transformers.CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=DIM)
    return transformers.CLIPModel(config), transformers.CLIPImageProcessor(**_CLIP_IMAGES), tokenizer


def _metaclip2() -> tuple[Any, Any, Any]:
    tokenizer = _xlm_tokenizer()
    text = {
        **_TEXT,
        "vocab_size": len(tokenizer),
        "eos_token_id": 2,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "hidden_act": "gelu",
    }
    config = transformers.MetaClip2Config(text_config=text, vision_config=_VISION, projection_dim=DIM)
    return transformers.MetaClip2Model(config), transformers.CLIPImageProcessor(**_CLIP_IMAGES), tokenizer


def _chinese_clip() -> tuple[Any, Any, Any]:
    tokenizer = _bert_tokenizer()
    text = {**_TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
    config = transformers.ChineseCLIPConfig(text_config=text, vision_config=_VISION, projection_dim=DIM)
    images = transformers.ChineseCLIPImageProcessor(do_center_crop=False, **_SQUASHED)
    return transformers.ChineseCLIPModel(config), images, tokenizer


def _altclip() -> tuple[Any, Any, Any]:
    tokenizer = _xlm_tokenizer()
    text = {
        **_TEXT,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CONTEXT + 2,
        "project_dim": 20,
        "pad_token_id": 1,
    }
    config = transformers.AltCLIPConfig(text_config=text, vision_config=_VISION, projection_dim=DIM)
    return transformers.AltCLIPModel(config), transformers.CLIPImageProcessor(**_CLIP_IMAGES), tokenizer


def _siglip(folder: Path) -> tuple[Any, Any, Any]:
    tokenizer = _siglip_tokenizer(folder)
    text = {**_TEXT, "vocab_size": len(tokenizer), "projection_size": 32, **_NO_SPECIALS}
    config = transformers.SiglipConfig(text_config=text, vision_config=_VISION)
    return transformers.SiglipModel(config), transformers.SiglipImageProcessor(**_SQUASHED), tokenizer


def _siglip2() -> tuple[Any, Any, Any]:
    tokenizer = _siglip2_tokenizer()
    text = {**_TEXT, "vocab_size": len(tokenizer), "projection_size": 32, **_NO_SPECIALS}
    vision = {**{name: value for name, value in _VISION.items() if name != "image_size"}, "num_patches": 16}
    config = transformers.Siglip2Config(text_config=text, vision_config=vision)
    return (
        transformers.Siglip2Model(config),
        transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16),
        tokenizer,
    )


def _align() -> tuple[Any, Any, Any]:
    tokenizer = _bert_tokenizer()
    text = {**_TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
    vision = {
        "image_size": SIDE,
        "in_channels": [32, 8],
        "out_channels": [8, DIM],
        "kernel_sizes": [3, 3],
        "strides": [2, 1],
        "num_block_repeats": [1, 1],
        "expand_ratios": [1, 2],
        "hidden_dim": DIM,
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
    }
    config = transformers.AlignConfig(text_config=text, vision_config=vision, projection_dim=DIM)
    images = transformers.EfficientNetImageProcessor(
        size={"height": SIDE + 8, "width": SIDE + 8},
        crop_size={"height": SIDE, "width": SIDE},
        do_center_crop=True,
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        do_normalize=False,
        include_top=False,
        resample=2,
    )
    return transformers.AlignModel(config), images, tokenizer


MAKERS: dict[str, Callable[[Path], tuple[Any, Any, Any]]] = {
    "clip": lambda _: _clip(),
    "chinese_clip": lambda _: _chinese_clip(),
    "siglip": _siglip,
    "siglip2": lambda _: _siglip2(),
    "metaclip_2": lambda _: _metaclip2(),
    "altclip": lambda _: _altclip(),
    "align": lambda _: _align(),
}


def write_transformers_model(folder: Path, kind: str) -> Path:
    """Write a model with weights that are larger than the initial ones, so that differences show."""
    import torch

    folder.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model, images, tokenizer = MAKERS[kind](folder)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 0 and "logit" not in name:
                    parameter.add_(0.05 * torch.randn(parameter.shape))
            if kind.startswith("siglip"):
                model.logit_scale.fill_(2.5)
                model.logit_bias.fill_(-3.0)
    model.eval().save_pretrained(folder)
    images.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def edit_json(path: Path, **changes: object) -> None:
    """Replace top-level entries of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
