"""Making the towers of a bundle of the graphs that were read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx

from clipmlu.bundle.manifest import Tower
from clipmlu.errors import ExportError
from clipmlu.export.graph import read_tower
from clipmlu.graph.index import save_model
from clipmlu.graph.shapes import get_shape, set_shape
from clipmlu.importing.canonical import has_halves, name_nodes, to_canonical_opset, to_float32
from clipmlu.importing.fixed_batch import free_batch
from clipmlu.importing.interface import (
    GraphInputs,
    choose_output,
    compute_text_inputs,
    cut,
    find_inputs,
    normalise_output,
    set_interface,
)
from clipmlu.importing.options import ImportOptions
from clipmlu.importing.reading import GraphFile
from clipmlu.importing.reference import Feeds, Reference
from clipmlu.importing.split import Split, split_graph
from clipmlu.specs import PreprocessSpec, TokenizerSpec, TowerName

TOWERS: tuple[TowerName, ...] = ("image", "text")
INPUTS = {"image": "pixel_values", "text": "input_ids"}
OUTPUTS = {"image": "image_embeds", "text": "text_embeds"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceTower:
    """A tower in a given file.

    Attributes:
        name: ``image`` or ``text``.
        file: the file.
        inputs: all inputs of the file.
        embedding: the tensor of embeddings.
        halves: whether the file has 16-bit floats.
    """

    name: TowerName
    file: GraphFile
    inputs: GraphInputs
    embedding: str
    halves: bool

    @property
    def batch(self) -> int | None:
        """The only number of rows that the file takes, or None for any."""
        value = self.inputs.pixels if self.name == "image" else self.inputs.tokens
        assert value is not None
        shape = get_shape(value)
        return None if shape is None or shape[0] < 0 else shape[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceModel:
    """The towers in the given files.

    Attributes:
        image: the image tower.
        text: the text tower.
        split: the parts of a fused graph, or None for two files.
    """

    image: SourceTower
    text: SourceTower
    split: Split | None = None

    @property
    def towers(self) -> tuple[SourceTower, SourceTower]:
        """Both towers."""
        return self.image, self.text


def find_towers(files: list[GraphFile], options: ImportOptions) -> SourceModel:
    """Find the towers in one fused graph, or in two graphs in any order.

    Raises:
        ExportError: a graph is not understood, or a tower is missing.
    """
    found = [(file, find_inputs(file.model, str(file))) for file in files]
    if len(found) == 1:
        return _fused(*found[0], options)
    for file, inputs in found:
        if inputs.both:
            raise ExportError(f"{file} takes images and texts; expected one tower in each of two files. Give it alone.")
    images = [each for each in found if each[1].pixels is not None]
    texts = [each for each in found if each[1].tokens is not None]
    if len(images) != 1:
        raise ExportError(
            f"{files[0]} and '{files[1].path}' both take {'images' if images else 'texts'}; expected one of each."
        )
    image, text = (
        _tower(name, file, inputs, choose_output(file.model, name, wanted, str(file)))
        for name, (file, inputs), wanted in zip(
            TOWERS, (images[0], texts[0]), (options.image_output, options.text_output), strict=True
        )
    )
    return SourceModel(image=image, text=text)


def _fused(file: GraphFile, inputs: GraphInputs, options: ImportOptions) -> SourceModel:
    if not inputs.both:
        missing = "texts" if inputs.tokens is None else "images"
        raise ExportError(
            f"{file} takes no {missing}: it is one tower. Give both: clipmlu import IMAGE.onnx TEXT.onnx."
        )
    split = split_graph(file.model, inputs, (options.image_output, options.text_output), str(file))
    image, text = (
        _tower(name, file, inputs, embedding) for name, embedding in zip(TOWERS, (split.image, split.text), strict=True)
    )
    return SourceModel(image=image, text=text, split=split)


def _tower(name: TowerName, file: GraphFile, inputs: GraphInputs, embedding: str) -> SourceTower:
    return SourceTower(name=name, file=file, inputs=inputs, embedding=embedding, halves=has_halves(file.model))


def build_tower(
    source: SourceTower,
    preprocess: PreprocessSpec,
    tokenizer: TokenizerSpec,
    *,
    pad_ends: bool,
    unit_norm: bool,
    dim: int,
) -> onnx.ModelProto:
    """Return a tower as a bundle has it: one input and one output with the usual names, float32, any batch.

    Args:
        source: the tower in its file, which is not changed.
        preprocess: the image size.
        tokenizer: context length and padding.
        pad_ends: whether the id of padding also ends a text.
        unit_norm: whether its embeddings have unit norm already.
        dim: elements of an embedding.

    Raises:
        ExportError: the graph cannot be converted.
    """
    model = cut(source.file.model, source.embedding)
    if source.halves:
        to_float32(model)
    model = to_canonical_opset(model, str(source.file))
    name_nodes(model)
    sizes: tuple[int, ...] = (3, preprocess.height, preprocess.width)
    if source.name == "text":
        sizes = (tokenizer.context_length,)
        compute_text_inputs(model, source.inputs, tokenizer.pad_id, pad_ends=pad_ends, length=sizes[0])
    if source.batch is not None:
        set_shape(model.graph.input[0], (source.batch, *sizes))
        free_batch(model, source.batch, str(source.file))
    if not unit_norm:
        normalise_output(model)
    set_interface(model, INPUTS[source.name], OUTPUTS[source.name], sizes, dim)
    name_nodes(model)
    return model


def write_tower(model: onnx.ModelProto, name: TowerName, folder: Path) -> Tower:
    """Write a tower into the folder of a bundle, and return it as read back."""
    path = folder / f"{name}.onnx"
    save_model(model, path)
    return read_tower(path)


def open_reference(source: SourceTower, results: tuple[str, ...], folder: Path) -> Reference:
    """Return the file of a tower in ONNX Runtime."""
    return Reference(source.file.model, source.inputs, results, folder, str(source.file))


def rows_of(reference: Reference, source: SourceTower, feeds: Feeds) -> tuple[int, bool]:
    """Return the elements of an embedding in the given file, and whether embeddings have unit norm.

    Raises:
        ExportError: the result is no embedding, or not finite.
    """
    rows = reference.embed(source.embedding, source.name, feeds)
    count = len(feeds.pixels if source.name == "image" else feeds.tokens)
    if rows.ndim != 2 or rows.shape[0] != count:
        raise ExportError(
            f"{source.file} gives '{source.embedding}' with the shape {list(rows.shape)} for {count} rows; expected "
            f"one embedding for each. Name another output: --{source.name}-output."
        )
    if not np.isfinite(rows).all():
        raise ExportError(
            f"{source.file} itself gives values in '{source.embedding}' that are not finite. Check its weights."
        )
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    tolerance = 5e-3 if source.halves else 1e-5
    return rows.shape[1], bool(np.abs(norms - 1.0).max() < tolerance)
