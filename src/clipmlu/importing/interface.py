"""The inputs and outputs of an imported graph: which is what, and giving them the names and types of a bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from clipmlu.errors import ExportError, wrong_choice
from clipmlu.graph.index import used_nodes
from clipmlu.graph.shapes import get_shape

Array = npt.NDArray[Any]

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_INTEGERS = (TensorProto.INT64, TensorProto.INT32)
_EMBEDDINGS = ("embeds", "features", "embeddings", "embedding")
_SHARED_NAMES = ("sentence_embedding", "embeddings", "embedding", "pooler_output", "pooled_output")
_ARITHMETIC = ("Add", "Sub", "Mul", "Div")
_LEAST_NORM = 1e-12  # of torch.nn.functional.normalize


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphInputs:
    """The inputs of a graph by their meaning; None for those that it does not have.

    Attributes:
        pixels: normalised images, float, (N, 3, H, W).
        tokens: token ids, integers, (N, L).
        mask: 1 for each token of a text and 0 for padding, (N, L).
        token_types: number of the sentence of each token, (N, L).
        positions: number of each token in its row, (N, L) or (1, L).
    """

    pixels: onnx.ValueInfoProto | None = None
    tokens: onnx.ValueInfoProto | None = None
    mask: onnx.ValueInfoProto | None = None
    token_types: onnx.ValueInfoProto | None = None
    positions: onnx.ValueInfoProto | None = None

    @property
    def both(self) -> bool:
        """Whether the graph takes images and texts."""
        return self.pixels is not None and self.tokens is not None


def find_inputs(model: onnx.ModelProto, where: str) -> GraphInputs:
    """Find the meaning of a graph's inputs by type, number of axes and, among several of integers, name.

    Raises:
        ExportError: an input is none of those that are known, or there are two of a kind.
    """
    found: dict[str, onnx.ValueInfoProto] = {}
    for value in model.graph.input:
        kind = _kind(value)
        if kind is None or kind in found:
            raise ExportError(
                f"{where} has the input {_described(value)}, which is not understood; expected pixels (N, 3, H, W), token ids "
                "(N, L), an attention mask, token types and positions, one of each at most."
            )
        found[kind] = value
    inputs = GraphInputs(**found)
    if inputs.pixels is None and inputs.tokens is None:
        names = ", ".join(value.name for value in model.graph.input) or "none"
        raise ExportError(f"{where} has the inputs {names}; expected pixels (N, 3, H, W), token ids (N, L), or both.")
    return inputs


def _kind(value: onnx.ValueInfoProto) -> str | None:
    kind, shape, name = value.type.tensor_type.elem_type, get_shape(value), value.name.lower()
    rank = None if shape is None else len(shape)
    if kind in _FLOATS and rank in (4, None) and (shape is None or shape[1] in (3, -1)):
        return "pixels"
    if rank not in (2, None):
        return None
    if "mask" in name:
        return "mask"
    if kind not in _INTEGERS:
        return None
    if "token_type" in name or "segment" in name:
        return "token_types"
    return "positions" if "position" in name else "tokens"


def _described(value: onnx.ValueInfoProto) -> str:
    dtype = TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    sizes = [dim.dim_param or dim.dim_value or "?" for dim in value.type.tensor_type.shape.dim]
    return f"'{value.name}' ({dtype} {sizes})"


def count_tokens(model: onnx.ModelProto, tokens: str) -> int | None:
    """Return the number of token ids that a text tower has embeddings for, or None if it looks them up in another way."""
    weights = {weight.name: weight for weight in model.graph.initializer}
    same = {tokens}
    for node in model.graph.node:
        if node.op_type in ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze") and node.input[0] in same:
            same.update(node.output)
        elif node.op_type == "Gather" and node.input[1] in same and node.input[0] in weights:
            return int(weights[node.input[0]].dims[0])
    return None


def first_arithmetic(model: onnx.ModelProto, pixels: str) -> onnx.NodeProto | None:
    """Return a node that adds a weight to the pixels themselves or multiplies them by one, as a normalisation does; or None."""
    weights = {weight.name for weight in model.graph.initializer}
    weights.update(name for node in model.graph.node if node.op_type == "Constant" for name in node.output)
    same = {pixels}
    nodes: Sequence[onnx.NodeProto] = model.graph.node
    for node in nodes:
        if node.op_type in ("Cast", "Identity") and node.input[0] in same:
            same.update(node.output)
        elif node.op_type in _ARITHMETIC and same.intersection(node.input) and weights.intersection(node.input):
            return node
    return None


def choose_output(model: onnx.ModelProto, tower: str, wanted: str | None, where: str) -> str:
    """Return the name of the output that is the embedding of a tower.

    Args:
        model: the graph.
        tower: ``image`` or ``text``.
        wanted: the user's name of the output, or None.
        where: the graph, for messages.

    Raises:
        ExportError: there is no such output, or no or more than one that can be the embedding.
    """
    if wanted is not None:
        return checked_output(model, tower, wanted, where)
    fitting = [value.name for value in model.graph.output if _can_be_embedding(value)]
    own = [f"{tower}_{ending}" for ending in _EMBEDDINGS]
    best = [name for name in (*own, *_SHARED_NAMES) if name in fitting] if len(fitting) > 1 else fitting
    if not best:
        said = ", ".join(map(_described, model.graph.output))
        wants = "one of them is the embedding: give its name as" if fitting else "none is an embedding (N, D). See"
        raise ExportError(f"{where} has the outputs {said}; {wants} --{tower}-output.")
    return best[0]


def checked_output(model: onnx.ModelProto, tower: str, wanted: str, where: str) -> str:
    """Return the user's name of the output that is the embedding of a tower.

    Raises:
        ExportError: there is no such output.
    """
    names = [value.name for value in model.graph.output]
    if wanted not in names:
        raise ExportError(f"{where} has other outputs: {wrong_choice(f'{tower} output', wanted, names)}.")
    return wanted


def _can_be_embedding(value: onnx.ValueInfoProto) -> bool:
    shape = get_shape(value)
    return value.type.tensor_type.elem_type in _FLOATS and (shape is None or len(shape) == 2)


def cut(model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """Return the part of a graph that computes one tensor, as a copy with that output alone."""
    nodes = used_nodes(list(model.graph.node), {output})
    used = {name for node in nodes for name in node.input} | {output}
    inputs = [value for value in model.graph.input if value.name in used]
    weights = [weight for weight in model.graph.initializer if weight.name in used]
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, model.graph.name or "graph", inputs, [result], weights)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def rename_tensor(model: onnx.ModelProto, old: str, new: str) -> None:
    """Rename a tensor in place; another tensor of the new name gets another one."""
    if old == new:
        return
    graph = model.graph
    names = {weight.name for weight in graph.initializer} | {value.name for value in graph.input}
    names.update(name for node in graph.node for name in node.output)
    if new in names:
        free = f"{new}/inner"
        while free in names:
            free = f"{free}_"
        rename_tensor(model, new, free)
    for node in graph.node:
        for fields in (node.input, node.output):
            for position, name in enumerate(fields):
                if name == old:
                    fields[position] = new
    for value in [*graph.input, *graph.output, *graph.initializer]:
        if value.name == old:
            value.name = new


def set_interface(model: onnx.ModelProto, source: str, result: str, sizes: Sequence[int], dim: int) -> None:
    """Name the only input and output as in a bundle, and declare their types and shapes, in place.

    Args:
        model: a tower with one input and one output.
        source: new name of the input: ``pixel_values`` or ``input_ids``.
        result: new name of the output.
        sizes: axes of the input without the batch.
        dim: elements of the embedding.
    """
    graph = model.graph
    rename_tensor(model, graph.input[0].name, source)
    rename_tensor(model, graph.output[0].name, result)
    kind = TensorProto.FLOAT if source == "pixel_values" else TensorProto.INT64
    graph.input[0].CopyFrom(helper.make_tensor_value_info(source, kind, ["batch", *sizes]))
    graph.output[0].CopyFrom(helper.make_tensor_value_info(result, TensorProto.FLOAT, ["batch", dim]))


def compute_text_inputs(
    model: onnx.ModelProto, inputs: GraphInputs, pad_id: int, *, pad_ends: bool, length: int
) -> None:
    """Change a text tower to take int64 token ids alone, in place: the other inputs are computed from them.

    Args:
        model: the tower.
        inputs: its inputs.
        pad_id: id of padding.
        pad_ends: the same id ends a text as well, so that its first occurrence belongs to the text.
        length: ids of a row.
    """
    assert inputs.tokens is not None
    tokens = inputs.tokens.name
    steps = _Prefix(model)
    if inputs.mask is not None:
        kept = steps.up_to_first(tokens, pad_id, length) if pad_ends else steps.other_than(tokens, pad_id)
        steps.finish("Cast", [kept], inputs.mask.name, to=inputs.mask.type.tensor_type.elem_type)
    if inputs.token_types is not None:
        kind = inputs.token_types.type.tensor_type.elem_type
        zero = steps.constant(np.zeros((), np.int64))
        steps.finish("Cast", [steps.add("Mul", [tokens, zero])], inputs.token_types.name, to=kind)
    if inputs.positions is not None:
        kind = inputs.positions.type.tensor_type.elem_type
        row = steps.constant(np.arange(length, dtype=np.int64)[None])
        if get_shape(inputs.positions) not in (None, (1, length)):
            zeros = steps.add("Mul", [tokens, steps.constant(np.zeros((), np.int64))])
            row = steps.add("Add", [zeros, row])
        steps.finish("Cast", [row], inputs.positions.name, to=kind)
    if inputs.tokens.type.tensor_type.elem_type != TensorProto.INT64:
        # The graph's own nodes get 32 bits; those above were made for the 64 bits of the new input.
        narrow = f"{tokens}/int32"
        for node in model.graph.node:
            for position, name in enumerate(node.input):
                if name == tokens:
                    node.input[position] = narrow
        steps.finish("Cast", [tokens], narrow, to=TensorProto.INT32)
    steps.insert()
    del model.graph.input[:]
    model.graph.input.append(helper.make_tensor_value_info(tokens, TensorProto.INT64, ["batch", length]))


def normalise_output(model: onnx.ModelProto) -> None:
    """Append the division of the embedding by its norm, in place, with the least norm of torch's ``normalize``."""
    raw = model.graph.output[0].name
    prefix = "normalise"
    weights: dict[str, Array] = {"axes": np.array([-1], np.int64), "least": np.array(_LEAST_NORM, np.float32)}
    for label, values in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(values, f"{prefix}:{label}"))
    model.graph.node.extend(
        [
            helper.make_node(
                "ReduceL2", [raw, f"{prefix}:axes"], [f"{prefix}/ReduceL2"], f"{prefix}/ReduceL2", keepdims=1
            ),
            helper.make_node("Max", [f"{prefix}/ReduceL2", f"{prefix}:least"], [f"{prefix}/Max"], f"{prefix}/Max"),
            helper.make_node("Div", [raw, f"{prefix}/Max"], [f"{prefix}/Div"], f"{prefix}/Div"),
        ]
    )
    model.graph.output[0].name = f"{prefix}/Div"


class _Prefix:
    """Nodes to insert before all others of a graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._nodes: list[onnx.NodeProto] = []

    def _name(self, op_type: str) -> str:
        return f"text_inputs/{op_type}_{len(self._nodes)}"

    def add(self, op_type: str, inputs: Iterable[str], **attributes: Any) -> str:
        return self.finish(op_type, inputs, self._name(op_type), **attributes)

    def finish(self, op_type: str, inputs: Iterable[str], result: str, **attributes: Any) -> str:
        """Add a node whose result has a given name."""
        self._nodes.append(helper.make_node(op_type, list(inputs), [result], self._name(op_type), **attributes))
        return result

    def constant(self, values: Array) -> str:
        name = f"{self._name('constant')}_{len(self._model.graph.initializer)}"
        self._model.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def other_than(self, tokens: str, pad_id: int) -> str:
        """Return which tokens are not padding, as booleans."""
        return self.add("Not", [self.add("Equal", [tokens, self.constant(np.array(pad_id, np.int64))])])

    def up_to_first(self, tokens: str, pad_id: int, length: int) -> str:
        """Return which tokens are at or before the first of padding, as booleans."""
        same = self.add("Equal", [tokens, self.constant(np.array(pad_id, np.int64))])
        number = self.add("Cast", [same], to=TensorProto.INT32)
        first = self.add("ArgMax", [number], axis=1, keepdims=1)
        row = self.constant(np.arange(length, dtype=np.int64)[None])
        return self.add("Not", [self.add("Greater", [row, first])])

    def insert(self) -> None:
        graph = self._model.graph
        body = list(graph.node)
        graph.ClearField("node")
        graph.node.extend([*self._nodes, *body])
