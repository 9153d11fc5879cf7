"""Finds the tensors of a graph that can be smoothed, with the weights before and after each."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from clipmlu.graph.index import GraphIndex, attributes_of
from clipmlu.graph.quantisation.derived import smoothed
from clipmlu.graph.quantisation.parameters import Array
from clipmlu.graph.roles import Operator, Role
from clipmlu.graph.shapes import Shape, infer_shapes
from clipmlu.specs import SMOOTHED_ROLES

_LINEAR = {"MatMul", "Gemm", "Conv"}
_MOVES = {"Transpose", "Reshape", "Split", "Slice", "Squeeze", "Unsqueeze", "Gather", "Identity", "Flatten"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """One weight that smoothing changes.

    Attributes:
        node: the node that uses it.
        position: index of the node's input.
        axis: the axis of the weight that holds the channels.
        channels: int64; for each entry along ``axis``, the channel whose factor applies, or -1 for none.
    """

    node: str
    position: int
    axis: int
    channels: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
    """A tensor whose channels can be smoothed.

    Attributes:
        tensor: its name after smoothing; the channels are its last axis.
        source: its name before; another one if smoothing adds a Mul, because no weight can take the division.
        role: role of the operators that use it.
        channels: number of channels.
        divided: weights that produce the channels; they are divided by the factors. Empty if smoothing adds a Mul.
        multiplied: weights that the channels are multiplied with; they are multiplied by the factors.
    """

    tensor: str
    source: str
    role: Role
    channels: int
    divided: tuple[Share, ...]
    multiplied: tuple[Share, ...]

    def only_slows(self, in_float: Collection[str]) -> bool:
        """Return whether smoothing adds a Mul although all operators that use the tensor stay in float."""
        return self.tensor != self.source and all(share.node in in_float for share in self.multiplied)


def find_sites(model: onnx.ModelProto, operators: Sequence[Operator]) -> list[Site]:
    """Find all tensors of a lowered graph that can be smoothed: after LayerNorms, after attentions, inside MLPs.

    Args:
        model: the graph.
        operators: its operators, see ``find_operators``.
    """
    finder = _Finder(model, operators)
    sites = [site for node in model.graph.node if (site := finder.behind_affine(node)) is not None]
    sites += [site for operator in operators if (site := finder.behind_values(operator)) is not None]
    hidden = dict.fromkeys(operator.inputs[0] for operator in operators if operator.role == "mlp_out")
    sites += [site for tensor in hidden if (site := finder.behind_nonlinearity(tensor)) is not None]
    return sites


class _Finder:
    def __init__(self, model: onnx.ModelProto, operators: Sequence[Operator]) -> None:
        self._model = model
        self._index = GraphIndex(model)
        self._shapes = infer_shapes(model)
        self._operators = {operator.node: operator for operator in operators}

    def behind_affine(self, node: onnx.NodeProto) -> Site | None:
        """Return the result of ``x * gain`` or ``x * gain + offset`` if only linear layers use it, else None."""
        gain = self._channel_weight(node, "Mul")
        if gain is None:
            return None
        divided = [gain]
        tensor = node.output[0]
        consumers = self._index.consumers[tensor]
        if len(consumers) == 1 and (offset := self._channel_weight(consumers[0][0], "Add")) is not None:
            divided.append(offset)
            tensor = consumers[0][0].output[0]
        found = self._linear_consumers(tensor)
        channels = len(gain.channels)
        if not found or any(
            len(share.channels) != channels or len(d.channels) != channels for share in found for d in divided
        ):
            return None
        roles = {self._operators[share.node].role for share in found if share.node in self._operators}
        if len(roles) != 1 or (role := roles.pop()) not in SMOOTHED_ROLES:
            return None
        return Site(
            tensor=tensor, source=tensor, role=role, channels=channels, divided=tuple(divided), multiplied=tuple(found)
        )

    def behind_values(self, operator: Operator) -> Site | None:
        """Return attention's result if each of its channels is a mean of one channel of the values, else None."""
        if operator.role != "attention_values":
            return None
        product = self._index.nodes[operator.node]
        path_out, end = self._single_path(product.output[0])
        if end is None:
            return None
        found = self._linear_consumers(path_out, last_only=True)
        made = self._value_projection(product)
        if len(found) != 1 or made is None:
            return None
        (met,) = found
        target = self._operators.get(met.node)
        if target is None or target.role not in ("attention_output", "pooling"):
            return None
        shares, start = made
        columns = self._trace(start, product.input[1], shares[0])
        rows = self._trace_heads(product.output[0], path_out, columns)
        if rows is None or len(rows) != len(met.channels):
            return None
        # Row j of the output projection is multiplied with column rows[j] of the value projection.
        channels = np.full(len(shares[0].channels), -1, np.int64)
        channels[rows] = np.arange(len(rows))
        divided = tuple(dataclasses.replace(share, channels=channels) for share in shares)
        return Site(
            tensor=path_out,
            source=path_out,
            role=target.role,
            channels=len(rows),
            divided=divided,
            multiplied=(met,),
        )

    def behind_nonlinearity(self, tensor: str) -> Site | None:
        """Return the input of an MLP's second layers if nothing else uses it, else None."""
        found = self._linear_consumers(tensor)
        roles = {self._operators[share.node].role for share in found if share.node in self._operators}
        if roles != {"mlp_out"} or len({len(share.channels) for share in found}) != 1:
            return None
        return Site(
            tensor=smoothed(tensor),
            source=tensor,
            role="mlp_out",
            channels=len(found[0].channels),
            divided=(),
            multiplied=tuple(found),
        )

    def _channel_weight(self, node: onnx.NodeProto, op_type: str) -> Share | None:
        """Return the weight of an elementwise node with one entry for each entry of the last axis."""
        if node.op_type != op_type or len(node.input) != 2:
            return None
        for position, name in enumerate(node.input):
            weight = self._index.weights.get(name)
            if (
                weight is not None
                and weight.dims
                and all(size == 1 for size in weight.dims[:-1])
                and weight.dims[-1] > 1
            ):
                count = weight.dims[-1]
                return Share(node=node.name, position=position, axis=len(weight.dims) - 1, channels=np.arange(count))
        return None

    def _linear_consumers(self, tensor: str, *, last_only: bool = False) -> list[Share]:
        """Return the weights that multiply the channels of ``tensor``; empty if not only linear layers use it."""
        rank = self._rank(tensor)
        found: list[Share] = []
        seen = {tensor}
        waiting = deque([(tensor, rank - 1 if rank else -1)])
        while waiting:
            name, axis = waiting.popleft()
            if name in self._index.outputs or axis < 0:
                return []
            for node, position in self._index.consumers[name]:
                if node.op_type in _LINEAR:
                    share = self._met(node, position, axis)
                    if share is None:
                        return []
                    found.append(share)
                    continue
                after = -1 if last_only else self._axis_after(node, position, axis)
                if after < 0 or len(node.output) != 1:
                    return []
                if node.output[0] not in seen:
                    seen.add(node.output[0])
                    waiting.append((node.output[0], after))
        return found

    def _met(self, node: onnx.NodeProto, position: int, axis: int) -> Share | None:
        """Return the weight of a linear layer whose input has its channels along ``axis``."""
        weight = self._index.weights.get(node.input[1])
        attributes = attributes_of(node)
        rank = self._rank(node.input[0])
        if position != 0 or weight is None or not rank:
            return None
        if node.op_type == "Conv":
            meets, inner = axis == 1 and attributes.get("group", 1) == 1, 1
        else:
            meets = axis == rank - 1 and not attributes.get("transA", 0) and len(weight.dims) == 2
            inner = 1 if attributes.get("transB", 0) else 0
        if not meets:
            return None
        return Share(node=node.name, position=1, axis=inner, channels=np.arange(weight.dims[inner]))

    def _axis_after(self, node: onnx.NodeProto, position: int, axis: int) -> int:
        """Return the axis of the channels after a node that only moves rows, or -1 if it mixes or drops channels."""
        if position != 0:
            return -1
        attributes = attributes_of(node)
        before, after = self._rank(node.input[0]), self._rank(node.output[0])
        if not before or not after:
            return -1
        if node.op_type == "Transpose":
            return int(list(attributes["perm"]).index(axis))
        if node.op_type == "Identity":
            return axis
        if node.op_type == "Gather":
            taken = attributes.get("axis", 0) % before
            return -1 if taken == axis else axis + (after - before if taken < axis else 0)
        if axis != before - 1:
            return -1
        kept = self._size(node.input[0], axis) == self._size(node.output[0], after - 1) is not None
        moved = node.op_type in ("Reshape", "GatherND", "Slice", "Squeeze", "Unsqueeze", "ReduceMean", "Flatten")
        if node.op_type == "ReduceMean" and axis in [each % before for each in attributes.get("axes", range(before))]:
            return -1
        return after - 1 if moved and kept else -1

    def _single_path(self, tensor: str) -> tuple[str, onnx.NodeProto | None]:
        """Follow single consumers through nodes that only move values; return the last tensor and the next node."""
        while True:
            consumers = self._index.consumers[tensor]
            if len(consumers) != 1 or tensor in self._index.outputs:
                return tensor, None
            node, position = consumers[0]
            fixed = all(name in self._index.weights for name in node.input[1:] if name)
            if node.op_type not in _MOVES or position != 0 or len(node.output) != 1 or not fixed:
                return tensor, node
            tensor = node.output[0]

    def _value_projection(self, product: onnx.NodeProto) -> tuple[list[Share], str] | None:
        """Return weight and bias of the linear layer that produces the values, and its result; None if there is none."""
        tensor = product.input[1]
        while (node := self._index.producers.get(tensor)) is not None and node.op_type in _MOVES:
            alone = len(self._index.consumers[tensor]) == 1 and tensor not in self._index.outputs
            if not alone or any(name not in self._index.weights for name in node.input[1:] if name):
                return None
            tensor = node.input[0]
        start, shares = tensor, []
        if node is not None and node.op_type == "Add" and (bias := self._channel_weight(node, "Add")) is not None:
            shares.append(bias)
            node = self._index.producers.get(node.input[1 - bias.position])
        if node is None or node.op_type not in ("MatMul", "Gemm"):
            return None
        weight = self._index.weights.get(node.input[1])
        if weight is None or len(weight.dims) != 2:
            return None
        attributes = attributes_of(node)
        outer = 0 if attributes.get("transB", 0) else 1
        count = weight.dims[outer]
        shares.insert(0, Share(node=node.name, position=1, axis=outer, channels=np.arange(count)))
        if len(node.input) > 2:
            bias_weight = self._index.weights.get(node.input[2])
            if bias_weight is None or list(bias_weight.dims) != [count]:
                return None
            shares.append(Share(node=node.name, position=2, axis=0, channels=np.arange(count)))
        return shares, start

    def _trace(self, start: str, end: str, share: Share) -> Array | None:
        """Return, with the shape of the values (heads, tokens, width), the column of the projection of each element."""
        shape = self._known_shape(start)
        if shape is None:
            return None
        ids = np.broadcast_to(np.arange(len(share.channels), dtype=np.float32), shape)
        return self._run(start, end, np.ascontiguousarray(ids))

    def _trace_heads(self, start: str, end: str, columns: Array | None) -> npt.NDArray[np.int64] | None:
        """Return the column of the value projection for each input channel of the output projection."""
        if columns is None or columns.ndim < 2:
            return None
        per_head = columns[..., :1, :]
        if not np.array_equal(np.broadcast_to(per_head, columns.shape), columns):
            return None  # a channel must not differ between tokens
        shape = self._known_shape(start)
        if shape is None or shape[-1] != columns.shape[-1]:
            return None
        try:
            ids = np.ascontiguousarray(np.broadcast_to(per_head, shape))
        except ValueError:
            return None
        moved = self._run(start, end, ids)
        if moved is None:
            return None
        rows = moved.reshape(-1, moved.shape[-1])
        found = rows[0].astype(np.int64)
        distinct = len(set(found.tolist())) == len(found)
        return found if distinct and np.array_equal(np.broadcast_to(rows[:1], rows.shape), rows) else None

    def _run(self, start: str, end: str, values: Array) -> Array | None:
        """Compute one tensor from another with given values; None if a shape is not known well enough."""
        if start == end:
            return values
        nodes: list[onnx.NodeProto] = []
        tensor = end
        while tensor != start:
            node = self._index.producers[tensor]
            nodes.append(node)
            tensor = node.input[0]
        needed = {name for node in nodes for name in node.input[1:] if name}
        graph = helper.make_graph(
            nodes[::-1],
            "path",
            [helper.make_tensor_value_info(start, onnx.TensorProto.FLOAT, values.shape)],
            [helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, None)],
            [self._index.weights[name] for name in needed],
        )
        model = helper.make_model(graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        from onnx.reference import ReferenceEvaluator

        try:
            (result,) = ReferenceEvaluator(model).run(None, {start: values})
        except (ValueError, RuntimeError, IndexError, TypeError):
            return None  # its shape is not fully known: this site is not smoothed
        return np.asarray(result)

    def _rank(self, tensor: str) -> int:
        return len(self._shape(tensor))

    def _size(self, tensor: str, axis: int) -> int | None:
        size = self._shape(tensor)[axis]
        return size if size > 0 else None

    def _known_shape(self, tensor: str) -> Shape | None:
        """Return the shape for one row of the batch."""
        return tuple(size if size > 0 else 1 for size in self._shape(tensor)) or None

    def _shape(self, tensor: str) -> Shape:
        """Return the shape, with -1 for a size that may vary; empty if it is not known."""
        found = self._shapes.get(tensor)
        return () if found is None or found.shape is None else found.shape
