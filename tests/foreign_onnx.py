"""ONNX files as other programs write them: the tiny model of ``support`` in their shapes, with its arithmetic in NumPy beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

import support
from clipmlu.data.tokenizer import write_stand_in_tokenizer

Array = npt.NDArray[Any]
Port = tuple[str, int, Sequence[int | str]]
END = 258  # of the stand-in tokenizer
IMAGE_WEIGHT, TOKEN_TABLE = support.weights()
FLOAT, INT64, INT32 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32
PIXELS: Port = ("pixel_values", FLOAT, ("batch", 3, support.SIDE, support.SIDE))
TOKENS: Port = ("input_ids", INT64, ("batch", support.CONTEXT))
SHAPE = {"image_size": support.SIDE, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
"""Keywords that every import of the tiny model needs beside its tokenizer."""


def node(op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, list(inputs), [output], name=f"/{output}/{op_type}", **attributes)


def image_nodes(pixels: str = "pixel_values", result: str = "image_embeds") -> list[onnx.NodeProto]:
    half = support.SIDE // 2
    return [
        node("AveragePool", [pixels], "pooled", kernel_shape=[half, half], strides=[half, half]),
        node("Flatten", ["pooled"], "flat"),
        node("MatMul", ["flat", "weight"], "raw_images"),
        node("LpNormalization", ["raw_images"], result, axis=1, p=2),
    ]


def text_nodes(tokens: str = "input_ids", result: str = "text_embeds", mask: str | None = None) -> list[onnx.NodeProto]:
    """Sum of the token embeddings, of those that the mask keeps."""
    nodes = [node("Gather", ["table", tokens], "tokens")]
    if mask is not None:
        nodes += [
            node("Cast", [mask], "float_mask", to=FLOAT),
            node("Unsqueeze", ["float_mask", "last"], "mask_column"),
            node("Mul", ["tokens", "mask_column"], "kept"),
        ]
    nodes += [
        node("ReduceSum", ["kept" if mask else "tokens", "one"], "raw_texts", keepdims=0),
        node("LpNormalization", ["raw_texts"], result, axis=1, p=2),
    ]
    return nodes


def constants(*names: str, **more: Array) -> dict[str, Array]:
    known: dict[str, Array] = {
        "weight": IMAGE_WEIGHT,
        "table": TOKEN_TABLE,
        "one": np.array([1], np.int64),
        "last": np.array([2], np.int64),
    }
    return {name: known[name] for name in names} | more


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    weights: Mapping[str, Array],
    opset: int = 18,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    given, results = ([helper.make_tensor_value_info(*port) for port in ports] for ports in (inputs, outputs))
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "foreign", given, results, stored)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=8, producer_name="pytorch", producer_version="1.13"
    )


def image_tower(*, batch: int | str = "batch", normalise: bool = True) -> onnx.ModelProto:
    nodes = image_nodes() if normalise else image_nodes()[:-1]
    port = ("pixel_values", FLOAT, (batch, 3, support.SIDE, support.SIDE))
    name = "image_embeds" if normalise else "raw_images"
    return model(nodes, [port], [(name, FLOAT, (batch, support.DIM))], constants("weight"))


def text_tower(*, ids: int = INT64) -> onnx.ModelProto:
    port = ("input_ids", ids, ("batch", support.CONTEXT))
    return model(text_nodes(), [port], [("text_embeds", FLOAT, ("batch", support.DIM))], constants("table", "one"))


def fused_of_the_sample(
    *, scale: float = 20.0, bias: float | None = None, softmax: bool = False, products: int = 1
) -> onnx.ModelProto:
    """``image``, ``text`` -> ``logits_per_image``, ``logits_per_text``, as OpenAI's forward computes them.

    With two products, as in its first version: the logits of texts are computed on their own.
    """
    nodes = [
        *image_nodes("image", "images"),
        *text_nodes("text", "texts"),
        node("Exp", ["log_scale"], "scale"),
        node("Mul", ["scale", "images"], "scaled"),
        node("Transpose", ["texts"], "columns", perm=[1, 0]),
        node("MatMul", ["scaled", "columns"], "products"),
        node("Identity", ["products"], "sums") if bias is None else node("Add", ["products", "bias"], "sums"),
        node("Softmax", ["sums"], "logits_per_image", axis=1)
        if softmax
        else node("Identity", ["sums"], "logits_per_image"),
    ]
    if products == 1:
        nodes += [node("Transpose", ["logits_per_image"], "logits_per_text", perm=[1, 0])]
    else:
        nodes += [
            node("Mul", ["texts", "scale"], "scaled_texts"),
            node("Gemm", ["scaled_texts", "images"], "logits_per_text", transB=1),
        ]
    weights = constants("weight", "table", "one", log_scale=np.array(np.log(scale), np.float32))
    weights |= {} if bias is None else {"bias": np.array([bias], np.float32)}
    return model(
        nodes,
        [("image", FLOAT, ("n", 3, support.SIDE, support.SIDE)), ("text", INT32, ("m", support.CONTEXT))],
        [("logits_per_image", FLOAT, ("n", "m")), ("logits_per_text", FLOAT, ("m", "n"))],
        weights,
    )


def fused_of_transformers(*, scale: float = 20.0) -> onnx.ModelProto:
    """The layout of Optimum's ``model.onnx`` for CLIPModel: an attention mask, any length, four outputs."""
    nodes = [
        *image_nodes(),
        *text_nodes(mask="attention_mask"),
        node("Transpose", ["image_embeds"], "columns", perm=[1, 0]),
        node("MatMul", ["text_embeds", "columns"], "products"),
        node("Mul", ["products", "scale"], "logits_per_text"),
        node("Transpose", ["logits_per_text"], "logits_per_image", perm=[1, 0]),
    ]
    length = ("text_batch_size", "sequence_length")
    return model(
        nodes,
        [
            ("input_ids", INT64, length),
            ("pixel_values", FLOAT, ("image_batch_size", "num_channels", "height", "width")),
            ("attention_mask", INT64, length),
        ],
        [
            ("logits_per_image", FLOAT, ("image_batch_size", "text_batch_size")),
            ("logits_per_text", FLOAT, ("text_batch_size", "image_batch_size")),
            ("text_embeds", FLOAT, ("text_batch_size", support.DIM)),
            ("image_embeds", FLOAT, ("image_batch_size", support.DIM)),
        ],
        constants("weight", "table", "one", "last", scale=np.array(scale, np.float32)),
    )


def embed_masked(tokens: npt.NDArray[np.int64], mask: npt.NDArray[np.bool_]) -> Array:
    """The text tower with a mask in NumPy, float64 inside."""
    sums = (TOKEN_TABLE.astype(np.float64)[tokens] * mask[:, :, None]).sum(axis=1)
    return np.asarray(sums / np.linalg.norm(sums, axis=1, keepdims=True))


def to_halves(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with all floats of 16 bits."""
    for weight in graph.graph.initializer:
        if weight.data_type == FLOAT:
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), weight.name))
    for value in [*graph.graph.input, *graph.graph.output]:
        if value.type.tensor_type.elem_type == FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for each in graph.graph.node:
        for attribute in each.attribute:
            if attribute.name == "to" and attribute.i == FLOAT:
                attribute.i = TensorProto.FLOAT16
    return graph


def write(folder: Path, **graphs: onnx.ModelProto) -> list[Path]:
    """Write graphs as ``NAME.onnx``, and the tokenizer beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_stand_in_tokenizer(folder / "tokenizer.json", support.VOCAB)
    (folder / "tokenizer_config.json").write_text('{"pad_token": "<pad>", "model_max_length": 32}')
    for name, graph in graphs.items():
        onnx.save(graph, str(folder / f"{name}.onnx"))
    return [folder / f"{name}.onnx" for name in graphs]


def fixed_image_tower(batch: int, seed: int = 0) -> onnx.ModelProto:
    """A vision transformer of one block with the forms that torch's tracing leaves: the batch is a number in every Reshape."""
    width, heads, patches = 8, 2, 4
    length, each = patches + 1, width // heads
    half = support.SIDE // 2
    generator = np.random.default_rng(seed)

    def drawn(*shape: int) -> Array:
        return generator.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[-1]))

    class_token = np.tile(drawn(1, 1, width), (batch, 1, 1))
    weights = {
        "patch": drawn(width, 3, half, half), "class": class_token, "place": drawn(length, width),
        "wq": drawn(width, width), "wk": drawn(width, width), "wv": drawn(width, width),
        "wo": drawn(width, width), "bo": drawn(width), "head": drawn(width, support.DIM), "zero": np.array(0, np.int64),
    }  # fmt: skip
    shapes = {
        "flat": [batch, width, patches], "heads": [length, batch * heads, each],
        "rows": [length * batch, width], "back": [length, batch, width],
    }  # fmt: skip
    weights |= {f"to_{name}": np.array(sizes, np.int64) for name, sizes in shapes.items()}
    nodes = [
        node("Conv", ["pixel_values", "patch"], "patches", strides=[half, half]),
        node("Reshape", ["patches", "to_flat"], "columns"),
        node("Transpose", ["columns"], "tokens", perm=[0, 2, 1]),
        node("Concat", ["class", "tokens"], "joined", axis=1),
        node("Add", ["joined", "place"], "placed"),
        node("Transpose", ["placed"], "x", perm=[1, 0, 2]),
    ]
    for name in "qkv":
        nodes += [
            node("MatMul", ["x", f"w{name}"], name),
            node("Reshape", [name, "to_heads"], f"{name}_heads"),
            node("Transpose", [f"{name}_heads"], f"{name}_first", perm=[1, 2, 0] if name == "k" else [1, 0, 2]),
        ]
    nodes += [
        node("MatMul", ["q_first", "k_first"], "scores"),
        node("Softmax", ["scores"], "shares", axis=2),
        node("MatMul", ["shares", "v_first"], "mixed"),
        node("Transpose", ["mixed"], "turned", perm=[1, 0, 2]),
        node("Reshape", ["turned", "to_rows"], "flattened"),
        node("Gemm", ["flattened", "wo", "bo"], "projected"),
        node("Reshape", ["projected", "to_back"], "restored"),
        node("Add", ["restored", "x"], "sum"),
        node("Gather", ["sum", "zero"], "first", axis=0),
        node("MatMul", ["first", "head"], "image_embeds"),
    ]
    port = ("pixel_values", FLOAT, (batch, 3, support.SIDE, support.SIDE))
    return model(nodes, [port], [("image_embeds", FLOAT, (batch, support.DIM))], weights)


def fixed_text_tower(batch: int, pooling: str) -> onnx.ModelProto:
    """Token embeddings, of which that of the largest id is the text's, in two forms of x[arange(batch), position]."""
    rows = np.arange(batch, dtype=np.int64)
    place = np.random.default_rng(1).standard_normal((support.CONTEXT, support.DIM), np.float32)
    nodes = [node("Gather", ["table", "input_ids"], "tokens"), node("Add", ["tokens", "place"], "placed")]
    weights = constants("table", place=place)
    if pooling == "Gather":
        weights |= {
            "flat": np.array([batch * support.CONTEXT, support.DIM], np.int64),
            "offsets": rows * support.CONTEXT,
        }
        nodes += [
            node("ArgMax", ["input_ids"], "position", axis=1, keepdims=0),
            node("Add", ["position", "offsets"], "index"),
            node("Reshape", ["placed", "flat"], "all_rows"),
            node("Gather", ["all_rows", "index"], "text_embeds", axis=0),
        ]
    else:
        weights |= {"rows": rows[:, None]}
        nodes += [
            node("ArgMax", ["input_ids"], "position", axis=1, keepdims=1),
            node("Concat", ["rows", "position"], "index", axis=1),
            node("GatherND", ["placed", "index"], "text_embeds"),
        ]
    port = ("input_ids", INT64, (batch, support.CONTEXT))
    return model(nodes, [port], [("text_embeds", FLOAT, (batch, support.DIM))], weights)
