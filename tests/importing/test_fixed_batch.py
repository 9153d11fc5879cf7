"""A fixed batch becomes dynamic: each row is what ONNX's own evaluator computes with the given file at its own batch size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

import foreign_onnx as foreign
import support
from clipmlu.api.importing import import_onnx
from clipmlu.bundle.directory import ExportedBundle
from clipmlu.errors import ExportError, ParityError
from clipmlu.host import import_onnxruntime

Array = npt.NDArray[Any]


def imported(folder: Path, **graphs: onnx.ModelProto) -> ExportedBundle:
    paths = foreign.write(folder / "given", **graphs)
    return import_onnx(paths, folder / "out", on_note=lambda _line: None, **foreign.SHAPE)


def run(path: Path, array: Array) -> Array:
    session = import_onnxruntime().InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: array})[0])


def in_pieces(graph: onnx.ModelProto, array: Array, batch: int) -> Array:
    evaluator = ReferenceEvaluator(graph)
    name = graph.graph.input[0].name
    pieces = [evaluator.run(None, {name: array[start : start + batch]})[0] for start in range(0, len(array), batch)]
    rows = np.concatenate(pieces).astype(np.float64)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


@pytest.mark.parametrize("pooling", ["Gather", "GatherND"])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_each_row_is_computed_as_at_the_own_batch_size(tmp_path: Path, batch: int, pooling: str) -> None:
    image, text = foreign.fixed_image_tower(batch), foreign.fixed_text_tower(batch, pooling)
    bundle = imported(tmp_path, image=image, text=text)
    generator = np.random.default_rng(2)
    images = generator.standard_normal((6, 3, support.SIDE, support.SIDE), np.float32)
    tokens = generator.permuted(np.tile(np.arange(support.CONTEXT), (6, 1)), axis=1) + 2
    expected = {"image": in_pieces(image, images, batch), "text": in_pieces(text, tokens, batch)}
    given: dict[Any, Array] = {"image": images, "text": tokens}
    for tower, array in given.items():
        assert bundle.tower(tower).inputs[0].shape[0] == "batch"
        for count in (1, 2, 6):
            found = run(bundle.tower_path(tower), array[:count])
            assert np.abs(found - expected[tower][:count]).max() < 1e-6


def test_both_batches_of_a_fused_graph_are_freed(tmp_path: Path) -> None:
    graph = foreign.fused_of_the_sample(bias=1.5)
    for ports, sizes in ((graph.graph.input, (1, 4)), (graph.graph.output, (1, 4))):
        for port, size in zip(ports, sizes, strict=True):
            port.type.tensor_type.shape.dim[0].dim_value = size
    for port, size in zip(graph.graph.output, (4, 1), strict=True):
        port.type.tensor_type.shape.dim[1].dim_value = size
    bundle = imported(tmp_path, clip=graph)
    images = np.random.default_rng(2).standard_normal((5, 3, support.SIDE, support.SIDE), np.float32)
    assert np.abs(run(bundle.tower_path("image"), images) - support.embed_images(images)).max() < 1e-6
    assert (bundle.manifest.logit_scale, bundle.manifest.logit_bias) == (pytest.approx(20.0), 1.5)


def test_rows_that_differ_are_refused_with_the_node(tmp_path: Path) -> None:
    """A constant with another value for each image of the batch: there is none for more images."""
    image = foreign.fixed_image_tower(2)
    for weight in image.graph.initializer:
        if weight.name == "class":
            weight.CopyFrom(
                onnx.numpy_helper.from_array(np.random.default_rng(5).standard_normal((2, 1, 8), np.float32), "class")
            )
    message = r"fixed batch of 2, and the node '/joined/Concat' \(operator Concat\) prevents another one"
    with pytest.raises(ExportError, match=message):
        imported(tmp_path, image=image, text=foreign.text_tower())


def test_a_graph_that_mixes_the_images_of_a_batch_is_refused(tmp_path: Path) -> None:
    """The mean over the batch: every batch computes something else, which the comparison sees."""
    image = foreign.image_tower(batch=2)
    nodes = list(image.graph.node)
    mixing = [
        foreign.node("ReduceMean", ["raw_images", "none"], "mean", keepdims=1),
        foreign.node("Sub", ["raw_images", "mean"], "centred"),
    ]
    nodes[-1].input[0] = "centred"
    image.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0], np.int64), "none"))
    del image.graph.node[:]
    image.graph.node.extend([*nodes[:-1], *mixing, nodes[-1]])
    with pytest.raises(ParityError, match=r"at batch size 1: .* has a fixed batch of 2; export it again") as caught:
        imported(tmp_path, image=image, text=foreign.text_tower())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
