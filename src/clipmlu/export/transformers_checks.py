"""The gate of an export against the transformers library: its processor and its model's own forward, on the same images and texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipmlu.bundle.manifest import ParityRecord, Tower
from clipmlu.data.preprocess import Preprocessor
from clipmlu.data.tokenizer import Tokenizer
from clipmlu.export.checks import allowed_difference, open_tower, refuse_differences, run_graph
from clipmlu.export.loading import LoadedModel
from clipmlu.export.options import PURPOSE, ExportOptions
from clipmlu.export.quiet import quiet_libraries
from clipmlu.export.transformers_images import LibraryPixels, check_pixels, probe_images
from clipmlu.export.transformers_tokenizer import load_tokenizer
from clipmlu.graph.parity import compare_outputs
from clipmlu.host import require
from clipmlu.specs import TowerName
from clipmlu.steps import StartStep, no_steps

_Array = npt.NDArray[Any]
_IMAGES = 3
_TEXTS = ("a photo of a cat", "\u4e00\u5f20\u732b\u7684\u7167\u7247\u3002", "a", "a dog on a red sofa, " * 40)


def check_against_library(
    towers: dict[TowerName, Tower],
    folder: Path,
    source: Path,
    model: LoadedModel,
    tokenizer: Tokenizer,
    options: ExportOptions,
    on_step: StartStep = no_steps,
) -> tuple[ParityRecord, ...]:
    """Compare the exported graphs, with clipmlu's own pixels and tokens, with the library's model and processor.

    Args:
        towers: the exported graphs.
        folder: folder of their files.
        source: directory of the model.
        model: the loaded model.
        tokenizer: the bundle's tokenizer.
        options: the bounds.
        on_step: shows the comparison.

    Returns:
        One record for each output.

    Raises:
        ExportError: the pixels differ.
        ParityError: the results differ.
    """
    with on_step("checking pixels, tokens and results against transformers"):
        library = LibraryPixels(source)
        check_pixels(library, model.preprocess)
        images = probe_images(library, _IMAGES)
        feeds: dict[str, _Array] = {
            "pixel_values": Preprocessor(model.preprocess).batch(images),
            "input_ids": tokenizer(_TEXTS),
        }
        expected = _library_results(model, library.inputs(images), _text_inputs(source, tokenizer))
        records = [
            compare_outputs(
                name,
                output.name,
                expected[output.name],
                found[output.name],
                batch_size=len(found[output.name]),
                allowed=allowed_difference(name, model.logit_scale, options),
            )
            for name, tower in towers.items()
            for found in [_run(tower, folder, feeds)]
            for output in tower.outputs
        ]
    refuse_differences(records, options.min_cosine)
    return tuple(records)


def _text_inputs(source: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what the library's tokenizer makes of the texts, with its own mask."""
    library = load_tokenizer(source)
    with quiet_libraries():
        return dict(
            library(
                list(_TEXTS),
                padding="max_length",
                truncation=True,
                max_length=tokenizer.spec.context_length,
                return_tensors="pt",
            )
        )


def _library_results(model: LoadedModel, images: dict[str, Any], texts: dict[str, Any]) -> dict[str, _Array]:
    """Run the library's model as its users do: the embeddings that its forward returns have unit norm."""
    torch = require("torch", "export", PURPOSE)
    with quiet_libraries(), torch.no_grad():
        result = model.module.wrapped_model(**images, **texts)
    names = ("image_embeds", "text_embeds", "logits_per_image", "logits_per_text")
    arrays = {name: np.asarray(result[name].numpy(), np.float32) for name in names}
    for name in names[:2]:  # ALIGN's logits are of unit norm, too
        arrays[name] = arrays[name] / np.linalg.norm(arrays[name], axis=1, keepdims=True)
    return arrays


def _run(tower: Tower, folder: Path, feeds: dict[str, _Array]) -> dict[str, _Array]:
    label = "The exported graph"
    with open_tower(tower, folder, label) as session:
        return dict(run_graph(session, {each.name: feeds[each.name] for each in tower.inputs}, label))
