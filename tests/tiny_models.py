"""Tiny models in open_clip's directory format, one of each architecture of the export list, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clipmlu.data.tokenizer import write_stand_in_tokenizer
from clipmlu.export.exporter import ExportOptions

VOCAB = 300
EMBED_DIM = 24
CONTEXT = 12

_VIT = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
_TEXT = {
    "context_length": CONTEXT,
    "vocab_size": VOCAB,
    "width": 32,
    "heads": 2,
    "layers": 2,
    "hf_tokenizer_name": "own",
}
_BPE_TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
_SIGLIP_TEXT = {
    **_TEXT,
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
    "act_kwargs": {"approximate": "tanh"},
}
_HF_TEXT = {
    "hf_model_name": "text-tower",
    "hf_tokenizer_name": "own",
    "context_length": CONTEXT,
    "hf_proj_type": "mlp",
    "hf_pooler_type": "mean_pooler",
}

CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {"vision_cfg": _VIT, "text_cfg": _TEXT},
    "quick-gelu": {"quick_gelu": True, "vision_cfg": {**_VIT, "layers": 1}, "text_cfg": _BPE_TEXT},
    "siglip": {
        "custom_text": True,
        "init_logit_bias": -10.0,
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": _SIGLIP_TEXT,
        "embed_dim": 64,
    },
    "resnet": {
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64, "patch_size": None},
        "text_cfg": _TEXT,
    },
    "convnext": {
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear"},
        "text_cfg": _TEXT,
    },
    "hf-text": {"vision_cfg": _VIT, "text_cfg": _HF_TEXT},
}

_BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    """A model directory without weights."""
    folder.mkdir(parents=True)
    content = {
        "model_cfg": {"embed_dim": EMBED_DIM, **config},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    if config["text_cfg"].get("hf_tokenizer_name"):
        write_stand_in_tokenizer(folder / "tokenizer.json", VOCAB)
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "sep_token": "<eot>"})
        )
    if config["text_cfg"].get("hf_model_name"):
        (folder / "text-tower").mkdir()
        (folder / "text-tower" / "config.json").write_text(json.dumps(_BERT))
    return folder


def write_model(folder: Path, config: dict[str, Any]) -> Path:
    """A model directory with weights that are larger than the initial ones, so that differences show."""
    import torch
    from safetensors.torch import save_file

    from clipmlu.export.loading import load_model
    from clipmlu.export.quiet import quiet_libraries
    from clipmlu.export.source import resolve_source

    write_config(folder, config)
    options = ExportOptions(random_weights=True, seed=7)
    with quiet_libraries():
        model = load_model(resolve_source(f"local-dir:{folder}", options), options).module
    generator = torch.Generator().manual_seed(1)
    state = {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator) if name != "logit_scale" else tensor
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }
    rest = {name: tensor for name, tensor in model.state_dict().items() if name not in state}
    variances = {name: tensor.abs() for name, tensor in state.items() if name.endswith("running_var")}
    save_file({**state, **rest, **variances}, str(folder / "open_clip_model.safetensors"))
    return folder
