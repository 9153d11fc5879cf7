"""The torch modules to export: one per tower, or the fused one; with example inputs and names."""

from __future__ import annotations

import dataclasses
from typing import Any

from clipmlu.export.loading import LoadedModel
from clipmlu.export.options import PURPOSE
from clipmlu.host import require
from clipmlu.specs import TEXT_AXIS, Layout, TowerName

# Neither 0 nor 1, which torch.export makes constant, and different for the two inputs of the joint graph.
_EXAMPLE_IMAGES = 2
_EXAMPLE_TEXTS = 3

MODEL_ATTRIBUTE = "clip"
"""Attribute name of the model in the wrappers; module paths in a graph are shortened by it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerProgram:
    """One graph to export.

    Attributes:
        tower: name of the tower.
        module: a torch module; its forward takes ``inputs`` by position and returns ``outputs``.
        examples: one tensor for each input.
        inputs: names of the inputs.
        outputs: names of the outputs.
        batch_axes: name of the first axis of each input.
        output_shapes: expected shape of each output; names are those of the inputs' axes.
    """

    tower: TowerName
    module: Any
    examples: tuple[Any, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    batch_axes: tuple[str, ...]
    output_shapes: tuple[tuple[int | str, ...], ...]


def tower_programs(model: LoadedModel, layout: Layout, embedding_dim: int) -> tuple[TowerProgram, ...]:
    """Return the graphs of a layout.

    Args:
        model: the loaded model.
        layout: ``towers`` or ``joint``.
        embedding_dim: elements of an embedding.
    """
    images, texts = _example_inputs(model)
    wrappers = _wrapper_classes()
    if layout == "joint":
        axes = ("image_batch", TEXT_AXIS)
        joint = TowerProgram(
            tower="joint",
            module=wrappers["joint"](model.module).eval(),
            examples=(images, texts),
            inputs=("pixel_values", "input_ids"),
            outputs=("logits_per_image", "logits_per_text"),
            batch_axes=axes,
            output_shapes=(axes, axes[::-1]),
        )
        return (joint,)
    return (
        _tower("image", wrappers["image"](model.module), images, ("pixel_values", "image_embeds"), embedding_dim),
        _tower("text", wrappers["text"](model.module), texts, ("input_ids", "text_embeds"), embedding_dim),
    )


def _tower(tower: TowerName, module: Any, example: Any, names: tuple[str, str], embedding_dim: int) -> TowerProgram:
    return TowerProgram(
        tower=tower,
        module=module.eval(),
        examples=(example,),
        inputs=names[:1],
        outputs=names[1:],
        batch_axes=("batch",),
        output_shapes=(("batch", embedding_dim),),
    )


def measure_embedding_dim(model: LoadedModel) -> int:
    """Return the number of elements of an embedding, by embedding one text, which is cheaper than an image."""
    torch = require("torch", "export", PURPOSE)
    _, texts = _example_inputs(model)
    with torch.no_grad():
        return int(model.module.encode_text(texts[:1], normalize=True).shape[-1])


def _example_inputs(model: LoadedModel) -> tuple[Any, Any]:
    torch = require("torch", "export", PURPOSE)
    generator = torch.Generator().manual_seed(0)
    spec = model.preprocess
    images = torch.randn((_EXAMPLE_IMAGES, 3, spec.height, spec.width), generator=generator)
    texts = torch.randint(0, model.vocab_size, (_EXAMPLE_TEXTS, model.context_length), generator=generator)
    return images, texts


def _wrapper_classes() -> dict[TowerName, Any]:
    """Return the wrapper classes, defined in a function because their base class comes from torch."""
    torch = require("torch", "export", PURPOSE)

    class Wrapper(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self, model: Any) -> None:
            super().__init__()
            setattr(self, MODEL_ATTRIBUTE, model)

    class ImageTower(Wrapper):
        def forward(self, pixel_values: Any) -> Any:
            """Return unit-norm embeddings; normalize=True is F.normalize with its eps of 1e-12."""
            return self.clip.encode_image(pixel_values, normalize=True)

    class TextTower(Wrapper):
        def forward(self, input_ids: Any) -> Any:
            return self.clip.encode_text(input_ids, normalize=True)

    class JointTowers(Wrapper):
        def forward(self, pixel_values: Any, input_ids: Any) -> tuple[Any, Any]:
            """Return logits like open_clip's ``get_logits``, which CoCa lacks."""
            images = self.clip.encode_image(pixel_values, normalize=True)
            texts = self.clip.encode_text(input_ids, normalize=True)
            logits = self.clip.logit_scale.exp() * images @ texts.T
            if self.clip.logit_bias is not None:
                logits = logits + self.clip.logit_bias
            return logits, logits.T

    return {"image": ImageTower, "text": TextTower, "joint": JointTowers}
