"""Files that run, and would give wrong embeddings, endless work or a traceback, are refused in one line."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tokenizers

import foreign_onnx as foreign
import support
from clipmlu.api.importing import import_onnx
from clipmlu.bundle.directory import ExportedBundle
from clipmlu.errors import ClipmluError, ExportError, OptionError, ParityError
from clipmlu.importing.reading import read_graph


def imported(folder: Path, graphs: dict[str, onnx.ModelProto], **keywords: Any) -> ExportedBundle:
    paths = foreign.write(folder / "given", **graphs)
    return import_onnx(paths, folder / "out", on_note=lambda _line: None, **{**foreign.SHAPE, **keywords})


def image_tower(
    *nodes: onnx.NodeProto, pixels: str = "pixel_values", raw: str = "raw_images", **weights: Any
) -> onnx.ModelProto:
    """The tiny image tower with other nodes before its normalisation, or before its first node."""
    own = foreign.image_nodes(pixels)
    own[-1].input[0] = raw
    ordered = [*nodes, *own] if pixels != "pixel_values" else [*own[:-1], *nodes, own[-1]]
    result = ("image_embeds", foreign.FLOAT, ("batch", support.DIM))
    return foreign.model(ordered, [foreign.PIXELS], [result], foreign.constants("weight", **weights))


def mean_of_batch() -> dict[str, onnx.ModelProto]:
    """Each image less the mean of all images of the batch."""
    image = image_tower(
        foreign.node("ReduceMean", ["raw_images", "first"], "mean", keepdims=1),
        foreign.node("Sub", ["raw_images", "mean"], "centred"),
        foreign.node("Add", ["centred", "little"], "moved"),
        raw="moved",
        first=np.array([0], np.int64),
        little=np.float32(1e-3),
    )
    return {"image": image, "text": foreign.text_tower()}


def token_of_first_text() -> dict[str, onnx.ModelProto]:
    """``x[arange(1), ids.argmax(-1)]``, traced with one text and declared for any number: always a token of the first text."""
    nodes = [
        foreign.node("Gather", ["table", "input_ids"], "tokens"),
        foreign.node("ArgMax", ["input_ids"], "last", axis=1, keepdims=1),
        foreign.node("Mul", ["last", "zero"], "rows"),
        foreign.node("Concat", ["rows", "last"], "places", axis=1),
        foreign.node("GatherND", ["tokens", "places"], "raw_texts"),
        foreign.node("LpNormalization", ["raw_texts"], "text_embeds", axis=1, p=2),
    ]
    result = ("text_embeds", foreign.FLOAT, ("batch", support.DIM))
    text = foreign.model(nodes, [foreign.TOKENS], [result], foreign.constants("table", zero=np.array(0, np.int64)))
    return {"image": foreign.image_tower(), "text": text}


@pytest.mark.parametrize(("build", "tower"), [(mean_of_batch, "image"), (token_of_first_text, "text")])
def test_rows_of_any_batch_that_influence_each_other_are_refused(build: Any, tower: str, tmp_path: Path) -> None:
    with pytest.raises(
        ParityError, match=rf"imported {tower} graph .* at batch size 3: .* rows of a batch influence"
    ) as caught:
        imported(tmp_path, build())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_normalisation_inside_the_graph_is_noticed(tmp_path: Path) -> None:
    """Pixels of 0..255 that the graph itself divides: to assume CLIP's mean would normalise twice."""
    image = image_tower(
        foreign.node("Cast", ["pixel_values"], "floats", to=foreign.FLOAT),
        foreign.node("Div", ["floats", "levels"], "scaled"),
        pixels="scaled",
        levels=np.float32(255),
    )
    graphs = {"image": image, "text": foreign.text_tower()}
    with pytest.raises(
        OptionError, match=r"deviation of the pixels are missing, and the graph begins with the node '/scaled/Div'"
    ):
        imported(tmp_path, graphs, mean=None, std=None)
    bundle = imported(tmp_path, graphs, mean=(0, 0, 0), std=(1 / 255,) * 3)
    assert bundle.manifest.preprocess.std == pytest.approx((1 / 255,) * 3)


def scale_of_many_nodes(op_type: str, count: int, operands: int) -> onnx.ModelProto:
    """A fused graph whose logit scale, 20, is the result of a chain of nodes, each of which takes the one before."""
    graph = foreign.fused_of_the_sample(scale=20.0 if op_type == "Identity" else np.e)
    names = ["scale", *(f"step{number}" for number in range(count))]
    chain = [foreign.node(op_type, [old] * operands, new) for old, new in itertools.pairwise(names)]
    nodes = list(graph.graph.node)
    place = next(index for index, node in enumerate(nodes) if node.op_type == "Exp") + 1
    nodes[place].input[0] = names[-1]
    del graph.graph.node[:]
    graph.graph.node.extend([*nodes[:place], *chain, *nodes[place:]])
    return graph


@pytest.mark.parametrize(
    ("op_type", "count", "operands", "scale"), [("Identity", 1500, 1, 20.0), ("Max", 60, 2, float(np.e))]
)
def test_a_logit_scale_of_many_nodes_is_computed_once(
    op_type: str, count: int, operands: int, scale: float, tmp_path: Path
) -> None:
    """Neither is the recursion too deep, nor does a node with two equal inputs double the work."""
    bundle = imported(tmp_path, {"clip": scale_of_many_nodes(op_type, count, operands)})
    assert bundle.manifest.logit_scale == pytest.approx(scale, rel=1e-6)


def with_context(length: int) -> onnx.ModelProto:
    text = foreign.text_tower()
    text.graph.input[0].type.tensor_type.shape.dim[1].dim_value = length
    return text


@pytest.mark.parametrize(
    ("changes", "keywords", "message"),
    [
        ({"image": foreign.image_tower(batch=10**9)}, {}, "fixed batch of 1,000,000,000 images of 8 x 8"),
        ({"text": with_context(10**9)}, {}, "context length is 1000000000; expected 65536 at most"),
        ({}, {"pad_id": 2**40}, "pad id is 1099511627776"),
        ({}, {"std": (0.0, 1.0, 1.0)}, r"images cannot be prepared so: standard deviation is \[0.0, 1.0, 1.0\]"),
    ],
    ids=["batch", "context", "padding", "deviation"],
)
def test_numbers_that_no_memory_holds_are_refused(
    changes: dict[str, onnx.ModelProto], keywords: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ClipmluError, match=message) as caught:
        imported(tmp_path, {"image": foreign.image_tower(), "text": foreign.text_tower()} | changes, **keywords)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_beyond_the_embedding_is_noted(tmp_path: Path) -> None:
    """The usual texts have embeddings, and others would have none."""
    paths = foreign.write(tmp_path / "given", image=foreign.image_tower(), text=foreign.text_tower())
    file = str(tmp_path / "given" / "tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_file(file)
    tokenizer.add_tokens([f"word{number}" for number in range(support.VOCAB)])
    tokenizer.save(file)
    notes: list[str] = []
    import_onnx(paths, tmp_path / "out", on_note=notes.append, **foreign.SHAPE)
    last = tokenizer.get_vocab_size() - 1
    assert any(f"has the id {last}, but the token embedding" in note and "ends at 299" in note for note in notes)


def test_a_name_that_is_no_text_is_damage(tmp_path: Path) -> None:
    """Protobuf gives such a name as bytes, with which no comparison of texts works."""
    paths = foreign.write(tmp_path / "given", image=foreign.image_tower(), text=foreign.text_tower())
    content = paths[0].read_bytes()
    paths[0].write_bytes(content.replace(b"AveragePool", b"Averag\xffPool"))
    with pytest.raises(ExportError, match=r"is damaged: the name b'\S+' is no UTF-8 text") as caught:
        import_onnx(paths, tmp_path / "out", on_note=lambda _line: None, **foreign.SHAPE)
    assert "\n" not in str(caught.value)


def test_external_weights_without_a_length_are_as_long_as_their_shape(tmp_path: Path) -> None:
    """The file goes on for 1 TB, of which no more than the weight is read."""
    image = foreign.image_tower()
    weight = image.graph.initializer[0]
    foreign.write(tmp_path / "given")
    with (tmp_path / "given" / "weights.bin").open("wb") as stream:
        stream.write(weight.raw_data)
        stream.truncate(1 << 40)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")
    path = tmp_path / "given" / "image.onnx"
    path.write_bytes(image.SerializeToString())
    assert read_graph(path).model.graph.initializer[0].raw_data == foreign.IMAGE_WEIGHT.tobytes()
