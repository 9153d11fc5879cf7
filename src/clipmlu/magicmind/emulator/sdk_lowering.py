"""Replaces the SDK's nodes, which a script adds to a network, by operators of ONNX (api 2.16).

``Network`` keeps such a node as a node of the domain ``magicmind`` with the SDK's inputs, so that scripts see what they
added; the build and shape inference work on a copy that ``lower`` changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from clipmlu.graph.quantisation.derived import ADDED
from clipmlu.graph.shapes import NodeEvaluator
from clipmlu.magicmind.emulator.settings import switches
from clipmlu.magicmind.emulator.status import Code, StatusError
from clipmlu.magicmind.emulator.types import Array

DOMAIN = "magicmind"
"""Domain of the SDK's nodes in a network's graph."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionNode:
    """A detection output node, which no operator of ONNX replaces.

    Attributes:
        proto: the node, with the values of its setters as attributes.
        features: names of its feature maps.
        anchors: widths and heights.
    """

    proto: onnx.NodeProto
    features: list[str]
    anchors: Array


def lower(model: onnx.ModelProto) -> list[DetectionNode]:
    """Replace the SDK's nodes of a model in place, and sort the nodes.

    Returns:
        The detection output nodes, which are removed.

    Raises:
        StatusError: a node's arguments are none that a public sample shows.
    """
    if not any(node.domain == DOMAIN for node in model.graph.node):
        return []
    lowering = _Lowering(model)
    for node in _sorted(model.graph):
        lowering.visit(node)
    model.graph.ClearField("node")
    model.graph.node.extend(lowering.nodes)
    read = {name for node in lowering.nodes for name in node.input} | {value.name for value in model.graph.output}
    model.graph.initializer.extend(weight for weight in lowering.made if weight.name in read)
    return lowering.detections


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes of a node; texts as ``str``."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        return value.decode() if isinstance(value, bytes) else value

    return {item.name: plain(helper.get_attribute_value(item)) for item in node.attribute}


def _sorted(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes so that each follows those that it reads: ``update_input`` may refer to later ones (CV)."""
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    waiting = [{makers[name] for name in node.input if name in makers} for node in graph.node]
    done: list[int] = []
    placed: set[int] = set()
    left = list(range(len(waiting)))
    while left:
        ready = []
        for index in left:
            if waiting[index] <= placed:
                ready.append(index)
                placed.add(index)
        if not ready:
            raise StatusError(Code.INVALID_ARGUMENT, f"node '{graph.node[left[0]].name}' depends on its own result")
        done += ready
        left = [index for index in left if index not in placed]
    return [graph.node[index] for index in done]


class _Lowering:
    """The new nodes of one graph; results of the SDK's nodes that depend on constants only are computed at once.

    Attributes:
        nodes: all nodes of the graph, in order.
        made: constants that the nodes may read.
        detections: the detection output nodes.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.made: list[onnx.TensorProto] = []
        self.detections: list[DetectionNode] = []
        self._model = model
        self._opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self._weights = {weight.name: weight for weight in model.graph.initializer}
        self._constants: dict[str, Array] = {}
        self._count, self._current = 0, ""
        self._handlers: dict[str, Callable[[onnx.NodeProto], None]] = {
            "Const": self._const,
            "Permute": self._permute,
            "Activation": self._activation,
            "Cast": self._cast,
            "Conv": self._conv,
            "Split": self._split,
            "Concat": self._concat,
            "Unsqueeze": self._unsqueeze,
            "Reduce": self._reduce,
            "Slice": self._slice,
            "Range": self._range,
            "Fill": self._fill,
            "Logic": self._logic,
            "DetectionOutput": self._detection_output,
        }

    def visit(self, node: onnx.NodeProto) -> None:
        """Add the operators for one node."""
        if node.domain != DOMAIN:
            self.nodes.append(node)
            return
        self._count, self._current = 0, node.name
        self._handlers[node.op_type](node)

    def _const(self, node: onnx.NodeProto) -> None:
        self._keep(node.output[0], numpy_helper.to_array(attributes_of(node)["value"]))

    def _permute(self, node: onnx.NodeProto) -> None:
        self._emit("Transpose", node.input[:1], node, perm=self._integers(node, 1, "the order of the axes"))

    def _activation(self, node: onnx.NodeProto) -> None:
        self._emit(attributes_of(node)["activation"], node.input, node)

    def _cast(self, node: onnx.NodeProto) -> None:
        self._emit("Cast", node.input, node, to=attributes_of(node)["to"])

    def _conv(self, node: onnx.NodeProto) -> None:
        """Convolve in NHWC with a filter of (outputs, height, width, inputs), the SDK's defaults."""
        given = attributes_of(node)
        if "padding_mode" not in given:
            raise _refused(node, "set_padding_mode() is needed: every public sample calls it")
        image = self._step("Transpose", node, node.input[0], perm=[0, 3, 1, 2])
        kernel = self._step("Transpose", node, node.input[1], perm=[0, 3, 1, 2])
        top, bottom, left, right = given.get("pad", (0, 0, 0, 0))
        result = f"{ADDED}{node.name}_result"
        conv = helper.make_node(
            "Conv",
            [image, kernel, *node.input[2:]],
            [result],
            name=node.name,
            strides=given.get("stride", (1, 1)),
            dilations=given.get("dilation", (1, 1)),
            pads=[top, left, bottom, right],
        )
        self.nodes.append(conv)
        self._append("Transpose", [result], node.output, f"{ADDED}{node.name}_end", perm=[0, 2, 3, 1])

    def _split(self, node: onnx.NodeProto) -> None:
        axis = self._integer(node, 1, "the axis")
        more = {"num_outputs": len(node.output)} if self._opset >= 18 else {}
        self._emit("Split", node.input[:1], node, axis=axis, **more)

    def _concat(self, node: onnx.NodeProto) -> None:
        axis = self._integer(node, 0, "the axis")
        self._emit("Concat", node.input[1:], node, axis=axis)

    def _unsqueeze(self, node: onnx.NodeProto) -> None:
        axes = self._axes(node, 1)
        if self._opset >= 13:
            self._emit("Unsqueeze", [node.input[0], self._number(node, axes)], node)
        else:
            self._emit("Unsqueeze", node.input[:1], node, axes=axes)

    def _reduce(self, node: onnx.NodeProto) -> None:
        """Reduce and keep the axes: the sample's slice takes the result as a list of one end (unknown 7.28)."""
        axes, kind = self._axes(node, 1), attributes_of(node)["reduce"]
        if self._opset >= 18:
            self._emit(kind, [node.input[0], self._number(node, axes)], node, keepdims=1)
        else:
            self._emit(kind, node.input[:1], node, axes=axes, keepdims=1)

    def _slice(self, node: onnx.NodeProto) -> None:
        axes = self._axes(node, 3)
        if any(self._integers(node, 1, "the begin")):
            raise _refused(
                node, "the only public sample begins at 0; whether the third argument is the end or the size"
            )
        end = self._flat(node, node.input[2])
        begin = self._number(node, [0] * len(axes))
        self._emit("Slice", [node.input[0], begin, end, self._number(node, axes)], node)

    def _range(self, node: onnx.NodeProto) -> None:
        self._need_opset(node, 11)
        self._emit("Range", [self._step("Squeeze", node, name) for name in node.input], node)

    def _fill(self, node: onnx.NodeProto) -> None:
        value = self._value(node.input[1])
        if value is None or value.size != 1:
            raise _refused(node, "the value must be one number from add_i_const_node")
        fill = numpy_helper.from_array(value.reshape(1), "value")
        self._emit("ConstantOfShape", [self._flat(node, node.input[0])], node, value=fill)

    def _logic(self, node: onnx.NodeProto) -> None:
        kind = attributes_of(node)["logic"]
        if kind == "LessOrEqual" and self._opset < 12:
            self._need_opset(node, 11)
            parts = [self._step(name, node, *node.input) for name in ("Less", "Equal")]
            self._emit("Or", parts, node)
        else:
            self._emit(kind, node.input, node)

    def _detection_output(self, node: onnx.NodeProto) -> None:
        anchors = self._value(node.input[-1])
        if anchors is None:
            raise _refused(node, "the anchors must come from add_i_const_node")
        self.detections.append(DetectionNode(proto=node, features=list(node.input[:-1]), anchors=anchors))

    def _emit(self, op_type: str, inputs: Sequence[str], node: onnx.NodeProto, **attributes: Any) -> None:
        """Add the operator that gives the results of an SDK node and has its name."""
        self._append(op_type, inputs, node.output, node.name, **attributes)

    def _step(self, op_type: str, node: onnx.NodeProto, *inputs: str, **attributes: Any) -> str:
        """Add an operator whose result only the SDK node's other operators read; return the result's name."""
        name = f"{ADDED}{node.name}_{self._count}"
        self._count += 1
        self._append(op_type, inputs, [name], name, **attributes)
        return name

    def _append(
        self, op_type: str, inputs: Sequence[str], outputs: Sequence[str], name: str, **attributes: Any
    ) -> None:
        made = helper.make_node(op_type, list(inputs), list(outputs), name=name, **attributes)
        values = {item: value for item in inputs if (value := self._value(item)) is not None}
        if len(values) < len(set(inputs)):
            self.nodes.append(made)
            return
        try:
            results = NodeEvaluator(made, self._model.opset_import, self._model.ir_version).run(values)
        except Exception as error:  # the reference implementation raises many types
            raise StatusError(
                Code.INVALID_ARGUMENT, f"node '{self._current}': {' '.join(str(error).split())}"
            ) from error
        for output, value in results.items():
            self._keep(output, value)

    def _keep(self, name: str, value: Array) -> None:
        self._constants[name] = value
        self.made.append(numpy_helper.from_array(np.asarray(value, order="C"), name))

    def _value(self, name: str) -> Array | None:
        if name not in self._constants and name in self._weights:
            self._constants[name] = numpy_helper.to_array(self._weights[name])
        return self._constants.get(name)

    def _number(self, node: onnx.NodeProto, values: Sequence[int]) -> str:
        """Add a one-dimensional INT64 constant, as ONNX's operators read them."""
        name = f"{ADDED}{node.name}_{self._count}"
        self._count += 1
        self._keep(name, np.array(values, np.int64))
        return name

    def _flat(self, node: onnx.NodeProto, name: str) -> str:
        """Convert an index tensor of the SDK, INT32 of any rank, to one of ONNX."""
        wide = self._step("Cast", node, name, to=TensorProto.INT64)
        return self._step("Reshape", node, wide, self._number(node, [-1]))

    def _integers(self, node: onnx.NodeProto, index: int, what: str) -> list[int]:
        """Return the values of an input that must be an INT32 constant."""
        value = self._value(node.input[index])
        if value is None:
            raise _refused(node, f"{what} must come from add_i_const_node, as in every public sample")
        if value.dtype != np.int32 and (value.dtype != np.int64 or switches().refuse_64bit):
            raise _refused(node, f"{what} must be INT32, as in every public sample, not {value.dtype.name}")
        return [int(item) for item in value.reshape(-1)]

    def _integer(self, node: onnx.NodeProto, index: int, what: str) -> int:
        numbers = self._integers(node, index, what)
        if len(numbers) != 1:
            raise _wrong(node, f"{what} must be one number, not {numbers}")
        return numbers[0]

    def _axes(self, node: onnx.NodeProto, index: int) -> list[int]:
        axes = self._integers(node, index, "the axes")
        if not axes:
            raise _wrong(node, "the axes are none")
        return axes

    def _need_opset(self, node: onnx.NodeProto, opset: int) -> None:
        if self._opset < opset:
            raise StatusError(
                Code.UNIMPLEMENTED,
                f"node '{node.name}' ({node.op_type}): the emulator computes it at opset {opset} and newer; "
                f"the parsed file has {self._opset}: export it with opset {opset}",
            )


def _wrong(node: onnx.NodeProto, why: str) -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, f"node '{node.name}' ({node.op_type}): {why}")


def _refused(node: onnx.NodeProto, why: str) -> StatusError:
    return StatusError(Code.UNIMPLEMENTED, f"node '{node.name}' ({node.op_type}): {why} (docs/magicmind-api.md, 2.16)")
