"""ONNX graphs as plain objects, read and written without the package onnx, which a compiled bundle does not need to run.

Only what preparing an 8-bit graph for a runtime reads or changes is decoded; all other fields are kept as they are, and
weights are not copied. Field numbers are those of onnx.proto3 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipmlu.bundle.wire import BYTES, VARINT, Field, bytes_field, bytes_head, number_field, read_fields, read_varint
from clipmlu.bundle.wire import signed as as_signed
from clipmlu.graph.index import Index

Array = npt.NDArray[Any]
Part = bytes | memoryview

_INT, _INTS = 2, 7  # AttributeProto.AttributeType
_EXTERNAL = 1  # TensorProto.DataLocation
_FLOAT = 1  # TensorProto.DataType
_DTYPES = {
    1: "<f4",
    2: "u1",
    3: "i1",
    4: "<u2",
    5: "<i2",
    6: "<i4",
    7: "<i8",
    9: "?",
    10: "<f2",
    11: "<f8",
    12: "<u4",
    13: "<u8",
}
"""Maps TensorProto.DataType to NumPy's types in the file's byte order."""
_FLOATS, _INTEGERS = {4: "<f4", 10: "<f8"}, (5, 7, 11)
"""Fields of TensorProto with values of their own type, which other programs may write instead of ``raw_data``."""


class Tensor:
    """A weight.

    Attributes:
        name: its name.
        dims: its shape.
        is_external: whether its values are in another file.
    """

    def __init__(self, content: memoryview) -> None:
        self.content = content
        self.name = ""
        self.dims: list[int] = []
        self.is_external = False
        for field in read_fields(content, 0, len(content)):
            if field.number == 1:
                self.dims += _integers(content, field)
            elif field.number == 8:
                self.name = _text(content, field)
            elif field.number == 14:
                self.is_external = field.value == _EXTERNAL

    @classmethod
    def of(cls, values: Array, name: str) -> Tensor:
        """Return a weight with a copy of an array's values."""
        values = np.asarray(values)
        kind = next(number for number, dtype in _DTYPES.items() if np.dtype(dtype) == values.dtype)
        dims = b"".join(number_field(1, size) for size in values.shape)
        raw = values.astype(_DTYPES[kind], order="C", copy=False).tobytes()
        return cls(memoryview(dims + number_field(2, kind) + bytes_field(8, name) + bytes_field(9, raw)))

    @property
    def values(self) -> Array:
        """The values, not writable.

        Raises:
            ValueError: their type is none of NumPy's, or their number is not that of the shape.
        """
        kind = 0
        stored: Array = np.empty(0)
        for field in read_fields(self.content, 0, len(self.content)):
            part = self.content[field.start : field.end]
            if field.number == 2:
                kind = field.value
            elif field.number == 9:
                stored = np.frombuffer(part, np.uint8)
            elif field.number in _FLOATS:
                stored = np.concatenate([stored, np.frombuffer(part, _FLOATS[field.number])])
            elif field.number in _INTEGERS:
                stored = np.concatenate([stored.astype(np.int64), np.array(_integers(self.content, field), np.int64)])
        if kind not in _DTYPES:
            raise ValueError(f"the weight '{self.name}' has the type {kind}, which is not supported")
        dtype = np.dtype(_DTYPES[kind])
        if stored.dtype == np.uint8:
            return stored.view(dtype).reshape(self.dims)
        if dtype == np.float16:  # in int32_data these are the bits
            return stored.astype(np.uint16).view(np.float16).reshape(self.dims)
        return stored.astype(dtype).reshape(self.dims)

    def parts(self) -> list[Part]:
        """Return the message in parts."""
        return [self.content]


@dataclasses.dataclass(kw_only=True)
class Node:
    """An operator.

    Attributes:
        name: its name.
        op_type: its type.
        domain: the domain of the type; ``""`` for that of ONNX.
        input: names of the tensors that it uses; an optional one that is missing is ``""``.
        output: names of the tensors that it produces.
        attributes: the attributes that are an integer or a list of integers.
        rest: all other fields.
    """

    name: str
    op_type: str
    domain: str = ""
    input: list[str]
    output: list[str]
    attributes: dict[str, int | list[int]] = dataclasses.field(default_factory=dict)
    rest: list[Part] = dataclasses.field(default_factory=list)

    @classmethod
    def read(cls, content: memoryview) -> Node:
        """Read a message."""
        node = cls(name="", op_type="", input=[], output=[])
        for field in read_fields(content, 0, len(content)):
            if field.number == 1:
                node.input.append(_text(content, field))
            elif field.number == 2:
                node.output.append(_text(content, field))
            elif field.number == 3:
                node.name = _text(content, field)
            elif field.number == 4:
                node.op_type = _text(content, field)
            elif field.number == 7:
                node.domain = _text(content, field)
            elif field.number == 5 and (found := _integer_attribute(content[field.start : field.end])) is not None:
                node.attributes[found[0]] = found[1]
            else:
                node.rest.append(content[field.begin : field.end])
        return node

    def copy(self, *, name: str, input: Sequence[str], output: Sequence[str]) -> Node:  # noqa: A002 - ONNX's word
        """Return the same operator with another name and other tensors."""
        return dataclasses.replace(
            self, name=name, input=[*input], output=[*output], attributes={**self.attributes}, rest=[*self.rest]
        )

    def integer(self, name: str, default: int) -> int:
        """Return an attribute that is one integer, or the default."""
        value = self.attributes.get(name, default)
        return value if isinstance(value, int) else default

    def parts(self) -> list[Part]:
        """Return the message in parts."""
        attributes = (_attribute(name, value) for name, value in self.attributes.items())
        return [
            *(bytes_field(1, name) for name in self.input),
            *(bytes_field(2, name) for name in self.output),
            bytes_field(3, self.name),
            bytes_field(4, self.op_type),
            *(bytes_field(5, attribute) for attribute in attributes),
            *([bytes_field(7, self.domain)] if self.domain else []),
            *self.rest,
        ]


def make_node(
    op_type: str,
    input: Sequence[str],  # noqa: A002 - ONNX's word
    output: Sequence[str],
    *,
    name: str = "",
    domain: str = "",
    **attributes: list[int],
) -> Node:
    """Return a new operator."""
    return Node(name=name, op_type=op_type, domain=domain, input=[*input], output=[*output], attributes={**attributes})


@dataclasses.dataclass(kw_only=True)
class Graph:
    """A graph.

    Attributes:
        node: its operators, in an order in which they can be computed.
        initializer: its weights.
        output: names of its outputs.
        rest: all other fields.
    """

    node: list[Node]
    initializer: list[Tensor]
    output: list[str]
    rest: list[Part]


@dataclasses.dataclass(kw_only=True)
class Model:
    """An ONNX model: a graph, and all other fields."""

    graph: Graph
    rest: list[Part]

    @classmethod
    def read(cls, content: bytes) -> Model:
        """Read a model; its weights stay in ``content``.

        Raises:
            ValueError: it is no ONNX model.
        """
        view = memoryview(content)
        model = cls(graph=Graph(node=[], initializer=[], output=[], rest=[]), rest=[])
        for field in read_fields(view, 0, len(view)):
            if field.number == 7:
                model._read_graph(view[field.start : field.end])
            else:
                model.rest.append(view[field.begin : field.end])
        return model

    def _read_graph(self, content: memoryview) -> None:
        graph = self.graph
        for field in read_fields(content, 0, len(content)):
            part = content[field.start : field.end]
            if field.number == 1:
                graph.node.append(Node.read(part))
            elif field.number == 5:
                graph.initializer.append(Tensor(part))
            else:
                graph.rest.append(content[field.begin : field.end])
                if field.number == 12:
                    names = [_text(part, each) for each in read_fields(part, 0, len(part)) if each.number == 1]
                    graph.output.append(names[-1] if names else "")  # the last one counts

    def to_bytes(self) -> bytes:
        """Return the model as an ONNX file has it."""
        graph = [*_messages(1, self.graph.node), *_messages(5, self.graph.initializer), *self.graph.rest]
        return b"".join([*self.rest, bytes_head(7, sum(map(len, graph))), *graph])


class MessageIndex(Index[Node, Tensor]):
    """An index of the nodes and tensors of a ``Model``."""

    def __init__(self, model: Model) -> None:
        super().__init__(model.graph.node, model.graph.initializer, model.graph.output)


def read_single_file(path: Path) -> Model | None:
    """Read a graph with its weights, in order to prepare it for a runtime.

    Returns:
        The graph; None if its weights are in a second file, because they may not fit into one.

    Raises:
        ValueError: it is no ONNX model.
    """
    model = Model.read(path.read_bytes())
    return None if any(weight.is_external for weight in model.graph.initializer) else model


def small_model(
    nodes: Sequence[Node],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str]],
    weights: Mapping[str, Array],
) -> bytes:
    """Return an ONNX file of version 7 with opset 13.

    Args:
        nodes: the operators.
        inputs: maps the name of each input, float32, to its sizes; a name is a variable size.
        outputs: the same of the outputs.
        weights: maps names to values.
    """
    rest = [
        bytes_field(2, "graph"),
        *(bytes_field(11, _port(name, sizes)) for name, sizes in inputs.items()),
        *(bytes_field(12, _port(name, sizes)) for name, sizes in outputs.items()),
    ]
    graph = Graph(
        node=[*nodes],
        initializer=[Tensor.of(values, name) for name, values in weights.items()],
        output=[*outputs],
        rest=[*rest],
    )
    return Model(graph=graph, rest=[number_field(1, 7), bytes_field(8, number_field(2, 13))]).to_bytes()


def _port(name: str, sizes: Sequence[int | str]) -> bytes:
    """Return ValueInfoProto: name 1, type 2; TypeProto: tensor_type 1; its elem_type 1, shape 2; Dimension: value 1, param 2."""
    axes = (number_field(1, size) if isinstance(size, int) else bytes_field(2, size) for size in sizes)
    tensor = number_field(1, _FLOAT) + bytes_field(2, b"".join(bytes_field(1, axis) for axis in axes))
    return bytes_field(1, name) + bytes_field(2, bytes_field(1, tensor))


def _messages(number: int, messages: Sequence[Node | Tensor]) -> Iterator[Part]:
    for message in messages:
        parts = message.parts()
        yield bytes_head(number, sum(map(len, parts)))
        yield from parts


def _integer_attribute(content: memoryview) -> tuple[str, int | list[int]] | None:
    """Read AttributeProto: name 1, i 3, ints 8, type 20, ref_attr_name 21; None if it is another kind of attribute."""
    name, kind, value, values = "", 0, 0, []
    for field in read_fields(content, 0, len(content)):
        if field.number == 1:
            name = _text(content, field)
        elif field.number == 3:
            value = as_signed(field.value)
        elif field.number == 8:
            values += _integers(content, field)
        elif field.number == 20:
            kind = field.value
        elif field.number == 21:
            return None
    if kind == _INT:
        return name, value
    return (name, values) if kind == _INTS else None


def _attribute(name: str, value: int | list[int]) -> bytes:
    if isinstance(value, int):
        return bytes_field(1, name) + number_field(3, value) + number_field(20, _INT)
    return bytes_field(1, name) + b"".join(number_field(8, each) for each in value) + number_field(20, _INTS)


def _integers(content: memoryview, field: Field) -> list[int]:
    """Return the values of a field of repeated integers, packed or one of many."""
    if field.wire == VARINT:
        return [as_signed(field.value)]
    found = []
    position = field.start
    while field.wire == BYTES and position < field.end:
        value, position = read_varint(content, position, field.end)
        found.append(as_signed(value))
    return found


def _text(content: memoryview, field: Field) -> str:
    return bytes(content[field.start : field.end]).decode()
