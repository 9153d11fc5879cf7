"""Wrapping a model of the transformers library so that the exporter takes it like one of open_clip: pixels and token ids in."""

from __future__ import annotations

import math
from typing import Any

from clipmlu.export.options import PURPOSE
from clipmlu.export.transformers_tokenizer import TextInputs
from clipmlu.host import require
from clipmlu.specs import PreprocessSpec

_POSITIONS_AFTER_PADDING = ("altclip",)
"""Kinds whose positions count from the padding id + 1 on, as RoBERTa's."""


def wrap_towers(model: Any, kind: str, texts: TextInputs, preprocess: PreprocessSpec) -> Any:
    """Return a torch module with ``encode_image``, ``encode_text``, ``logit_scale`` and ``logit_bias``.

    Args:
        model: the library's model, in evaluation mode.
        kind: its ``model_type``.
        texts: what the text tower gets beside the token ids.
        preprocess: size of the images.
    """
    torch = require("torch", "export", PURPOSE)
    images = _patch_tower(model, preprocess) if kind == "siglip2" else model.get_image_features
    text_arguments = _constant_arguments(kind, texts)
    mask = _mask_matrix(texts)

    class Towers(torch.nn.Module):  # type: ignore[name-defined, misc]
        """The model's own submodules by their own names, so that nodes of the graphs are named after them."""

        def __init__(self) -> None:
            super().__init__()
            for name, child in model.named_children():
                self.add_module(name, child)
            self.logit_scale = torch.nn.Parameter(_logit_scale(model), requires_grad=False)
            bias = getattr(model, "logit_bias", None)
            self.logit_bias = None if bias is None else torch.nn.Parameter(bias.detach(), requires_grad=False)
            if mask is not None:
                self.register_buffer("mask_matrix", mask, persistent=False)
            for name, value in text_arguments.items():
                self.register_buffer(name, value, persistent=False)
            if kind == "siglip2":
                self.patches = images
            # Not as a submodule, which would give every weight two names.
            self.__dict__["wrapped_model"] = model

        def encode_image(self, pixel_values: Any, normalize: bool = False) -> Any:
            return _unit(_features(images(pixel_values)), normalize)

        def encode_text(self, input_ids: Any, normalize: bool = False) -> Any:
            arguments = {name: getattr(self, name) for name in text_arguments}
            if mask is not None:
                arguments["attention_mask"] = self.attention_mask(input_ids)
            return _unit(_features(model.get_text_features(input_ids=input_ids, **arguments)), normalize)

        def attention_mask(self, input_ids: Any) -> Any:
            """Return 1 for every position that is not padding after the text, shape (texts, positions)."""
            counts = torch.matmul((input_ids != texts.pad_id).float(), self.mask_matrix)
            if texts.ends_with_padding:  # the end token of an empty text
                counts = counts + torch.eye(1, texts.context_length)
            return (counts > 0).long()

    return Towers()


def _features(result: Any) -> Any:
    """Return the embeddings, which are a field of the result from transformers 5 on."""
    return getattr(result, "pooler_output", result)


def _unit(features: Any, normalize: bool) -> Any:
    torch = require("torch", "export", PURPOSE)
    return torch.nn.functional.normalize(features, dim=-1) if normalize else features


def _logit_scale(model: Any) -> Any:
    """Return the logarithm of the logit scale; ALIGN holds the temperature, by which it divides."""
    if hasattr(model, "temperature"):
        return -model.temperature.detach().log()
    return model.logit_scale.detach()


def _constant_arguments(kind: str, texts: TextInputs) -> dict[str, Any]:
    """Return the arguments that are the same for all texts: positions, which the model would count in the ids.

    They differ for a text with a literal padding token only.
    """
    if kind not in _POSITIONS_AFTER_PADDING:
        return {}
    torch = require("torch", "export", PURPOSE)
    first = texts.pad_id + 1
    return {"position_ids": torch.arange(first, first + texts.context_length)[None]}


def _mask_matrix(texts: TextInputs) -> Any:
    """Return a matrix whose product with "is not padding" is positive up to the last token of a text, or None without a mask.

    A position belongs to the text if a token that is not padding stands there or later. So a padding token inside a text
    counts as text, as in the tokenizer's mask. If the end token is the padding, the first one after the text counts too.
    """
    if not texts.masked:
        return None
    torch = require("torch", "export", PURPOSE)
    size = texts.context_length
    return torch.ones(size, size).tril(1 if texts.ends_with_padding else 0)


def _patch_tower(model: Any, preprocess: PreprocessSpec) -> Any:
    """Return SigLIP 2's image tower for one size of square images, whose patches a convolution cuts.

    The library takes patches with their place and a mask; for one size the positions are constant and there is no mask.
    """
    torch = require("torch", "export", PURPOSE)
    tower = model.vision_model
    embeddings, size = tower.embeddings, tower.embeddings.patch_size
    side = preprocess.height // size

    class PatchTower(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            linear = embeddings.patch_embedding
            width = linear.out_features
            self.convolution = torch.nn.Conv2d(3, width, kernel_size=size, stride=size)
            # A row of a patch holds the colours of its pixels, row by row.
            weight = linear.weight.reshape(width, size, size, 3).permute(0, 3, 1, 2)
            self.convolution.load_state_dict({"weight": weight.contiguous(), "bias": linear.bias})
            grid = math.isqrt(embeddings.position_embedding.num_embeddings)
            table = embeddings.position_embedding.weight.reshape(grid, grid, width)
            shapes = torch.tensor([[side, side]])
            positions = embeddings.resize_positional_embeddings(table, shapes, max_length=side * side)
            self.register_buffer("positions", positions.detach(), persistent=False)
            self.requires_grad_(False)

        def forward(self, pixel_values: Any) -> Any:
            hidden = self.convolution(pixel_values).flatten(2).transpose(1, 2) + self.positions
            hidden = tower.encoder(inputs_embeds=hidden, attention_mask=None).last_hidden_state
            return tower.head(tower.post_layernorm(hidden))

    return PatchTower()
