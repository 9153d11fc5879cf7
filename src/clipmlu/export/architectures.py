"""Identifying open_clip architectures by the shapes of weights, from configuration files and without building a model."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from clipmlu.export.catalog import model_names, read_config

_BLOCK = re.compile(r"^(visual\.)?transformer\.resblocks\.(\d+)\.")
_RESNET_BLOCK = re.compile(r"^visual\.layer([1-4])\.(\d+)\.")
_MOST_NAMES = 3


class _Shapes(NamedTuple):
    """Sizes that distinguish architectures."""

    embed_dim: int
    image_width: int
    image_layers: int | tuple[int, ...]
    patch: int
    positions: int
    text_width: int
    text_layers: int
    vocab: int
    context: int


def matching_architectures(state: Mapping[str, Any]) -> list[str]:
    """Return the names of open_clip's architectures with these shapes, at most three, in natural order.

    Args:
        state: tensors (any values with a ``shape``) by open_clip's names.
    """
    shapes = _shapes_of_state(state)
    if shapes is None:
        return []
    return [name for name, each in _known().items() if each == shapes][:_MOST_NAMES]


def describe_shapes(state: Mapping[str, Any]) -> str:
    """Describe the sizes of the weights as text."""
    facts = []
    if "visual.proj" in state:
        facts.append(f"embeddings of {state['visual.proj'].shape[-1]}")
    if "visual.conv1.weight" in state and state["visual.conv1.weight"].ndim == 4:
        width, _, patch, _ = state["visual.conv1.weight"].shape
        facts.append(f"an image tower of width {width} with patches of {patch}")
    if "token_embedding.weight" in state:
        rows, width = (*state["token_embedding.weight"].shape, 0)[:2]
        facts.append(f"a text tower of width {width} with {rows} tokens")
    return ", ".join(facts) or "other sizes"


def _shapes_of_state(state: Mapping[str, Any]) -> _Shapes | None:
    plain = {name.removeprefix("text."): tuple(tensor.shape) for name, tensor in state.items()}
    try:
        conv, tokens, positions = (
            plain[name] for name in ("visual.conv1.weight", "token_embedding.weight", "positional_embedding")
        )
        resnet = "visual.attnpool.positional_embedding" in plain
        grid = plain["visual.attnpool.positional_embedding" if resnet else "visual.positional_embedding"][0] - 1
        embed_dim = plain["visual.attnpool.c_proj.weight"][0] if resnet else plain["visual.proj"][-1]
        return _Shapes(
            embed_dim=embed_dim,
            image_width=conv[0] * 2 if resnet else conv[0],
            image_layers=_resnet_layers(plain) if resnet else _layers(plain, "visual."),
            patch=0 if resnet else conv[-1],
            positions=grid,
            text_width=tokens[1],
            text_layers=_layers(plain, None),
            vocab=tokens[0],
            context=positions[0],
        )
    except (KeyError, IndexError):  # a tower of another kind
        return None


def _layers(names: Iterable[str], part: str | None) -> int:
    found = (_BLOCK.match(name) for name in names)
    return len({match.group(2) for match in found if match and match.group(1) == part})


def _resnet_layers(names: Iterable[str]) -> tuple[int, ...]:
    blocks = {match.groups() for match in map(_RESNET_BLOCK.match, names) if match}
    return tuple(sum(stage == str(number) for stage, _ in blocks) for number in (1, 2, 3, 4))


@functools.cache
def _known() -> dict[str, _Shapes]:
    known = {name: _shapes_of_config(read_config(name)) for name in model_names()}
    return {name: shapes for name, shapes in known.items() if shapes is not None}


def _shapes_of_config(config: Mapping[str, Any]) -> _Shapes | None:
    """Return the sizes of a configuration; defaults are those of open_clip.model.CLIPVisionCfg and CLIPTextCfg."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" in vision or "hf_model_name" in text or "multimodal_cfg" in config:
        return None
    layers, size = vision.get("layers", 12), vision.get("image_size", 224)
    resnet = isinstance(layers, list)
    patch = 32 if resnet else vision.get("patch_size", 16)
    height, width = size if isinstance(size, list) else (size, size)
    return _Shapes(
        embed_dim=config["embed_dim"],
        image_width=vision.get("width", 64 if resnet else 768),
        image_layers=tuple(layers) if resnet else layers,
        patch=0 if resnet else patch,
        positions=(height // patch) * (width // patch),
        text_width=text.get("width", 512),
        text_layers=text.get("layers", 12),
        vocab=text.get("vocab_size", 49408),
        context=text.get("context_length", 77),
    )
