"""Reading the facts of an ONNX file from its bytes, so that a graph is checked before any library reads it.

Only the necessary fields are visited, and weights are skipped, so that the time does not depend on the file's size.
Field numbers are those of onnx.proto3 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3).
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from clipmlu.bundle.wire import Field, read_fields

_EXTERNAL = 1  # value of TensorProto.DataLocation
_ELEMENT_TYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    16: "bfloat16",
}


class Port(NamedTuple):
    """An input or output of a graph.

    Attributes:
        name: name of the tensor.
        dtype: NumPy's name of the element type, or ``""`` for types that no tower uses.
        shape: sizes, or names for variable axes; None if the file gives no shape.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None


class GraphFacts(NamedTuple):
    """Facts of a graph file.

    Attributes:
        inputs: inputs without the weights.
        outputs: in the graph's order.
        data_files: names of files with external weights.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    data_files: frozenset[str]


def scan_graph(source: BinaryIO | bytes, *, max_fields: int = 5_000_000) -> GraphFacts:
    """Read the facts of a graph file.

    Args:
        source: the open file, or its content.
        max_fields: largest number of fields, those of nested messages included.

    Raises:
        ValueError: it is not an ONNX file, has more fields, or has content that no tower needs: control flow, functions, or graphs
            inside operators.
    """
    if isinstance(source, bytes):
        return _Scanner(source, max_fields).scan()
    if not os.fstat(source.fileno()).st_size:
        raise ValueError("it is empty")
    with mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _Scanner(content, max_fields).scan()


class _Scanner:
    """One pass over one file."""

    def __init__(self, content: mmap.mmap | bytes, max_fields: int) -> None:
        self._content = content
        self._max_fields = max_fields
        self._fields_left = max_fields
        self._inputs: list[Port] = []
        self._outputs: list[Port] = []
        self._weights: set[str] = set()
        self._data_files: set[str] = set()

    def scan(self) -> GraphFacts:
        """Visit ModelProto: graph 7, training_info 20, functions 25."""
        graphs = 0
        for field in self._fields(0, len(self._content)):
            if field.number == 7:
                graphs += 1
                self._graph(field)
            elif field.number in (20, 25):
                raise ValueError("it contains functions or a training graph, which are not supported")
        if graphs != 1:
            raise ValueError("it is not an ONNX file with one graph")
        inputs = tuple(port for port in self._inputs if port.name not in self._weights)
        return GraphFacts(inputs, tuple(self._outputs), frozenset(self._data_files))

    def _graph(self, graph: Field) -> None:
        """Visit GraphProto: node 1, initializer 5, input 11, output 12, sparse_initializer 15."""
        for field in self._inside(graph):
            if field.number == 1:
                self._node(field)
            elif field.number == 5:
                self._weights.add(self._tensor(field))
            elif field.number == 11:
                self._inputs.append(self._port(field))
            elif field.number == 12:
                self._outputs.append(self._port(field))
            elif field.number == 15:
                self._weights.add(self._sparse_tensor(field))

    def _node(self, node: Field) -> None:
        """Visit NodeProto: name 3, op_type 4, attribute 5."""
        operator = name = ""
        inner = False
        for field in self._inside(node):
            if field.number == 3:
                name = self._text(field)
            elif field.number == 4:
                operator = self._text(field)
            elif field.number == 5:
                inner |= self._attribute(field)
        if inner:
            raise ValueError(f"node '{name}' ({operator}) contains a subgraph; control flow is not supported")

    def _attribute(self, attribute: Field) -> bool:
        """Visit AttributeProto (t 5, g 6, tensors 10, graphs 11, sparse tensors 22, 23); return whether it has a graph."""
        inner = False
        for field in self._inside(attribute):
            if field.number in (5, 10):
                self._tensor(field)
            elif field.number in (22, 23):
                self._sparse_tensor(field)
            inner |= field.number in (6, 11)
        return inner

    def _sparse_tensor(self, sparse: Field) -> str:
        """Visit SparseTensorProto: values 1, indices 2; return the name of the values."""
        name = ""
        for field in self._inside(sparse):
            if field.number == 1:
                name = self._tensor(field)
            elif field.number == 2:
                self._tensor(field)
        return name

    def _tensor(self, tensor: Field) -> str:
        """Visit TensorProto: name 8, external_data 13, data_location 14; return the name."""
        name = ""
        external = False
        locations: list[str] = []
        for field in self._inside(tensor):
            if field.number == 8:
                name = self._text(field)
            elif field.number == 13:
                key, value = self._entry(field)
                locations += [value] * (key == "location")
                external = True
            elif field.number == 14:
                external |= field.value == _EXTERNAL
        if external and not locations:
            raise ValueError(f"the weight '{name}' is in another file, but the file name is missing")
        self._data_files.update(locations)
        return name

    def _entry(self, entry: Field) -> tuple[str, str]:
        """Read StringStringEntryProto: key 1, value 2."""
        texts = {field.number: self._text(field) for field in self._inside(entry)}
        return texts.get(1, ""), texts.get(2, "")

    def _port(self, port: Field) -> Port:
        """Read ValueInfoProto: name 1, type 2; TypeProto: tensor_type 1; its elem_type 1, shape 2."""
        name, dtype = "", ""
        shape: tuple[int | str, ...] | None = None
        for field in self._inside(port):
            if field.number == 1:
                name = self._text(field)
            elif field.number == 2:
                for part in (part for kind in self._inside(field) if kind.number == 1 for part in self._inside(kind)):
                    if part.number == 1:
                        dtype = _ELEMENT_TYPES.get(part.value, "")
                    elif part.number == 2:
                        shape = tuple(self._axis(axis) for axis in self._inside(part) if axis.number == 1)
        return Port(name, dtype, shape)

    def _axis(self, axis: Field) -> int | str:
        """Read Dimension: dim_value 1, dim_param 2; the last one of a oneof counts."""
        size: int | str = ""
        for field in self._inside(axis):
            if field.number == 1:
                size = field.value
            elif field.number == 2:
                size = self._text(field)
        return size

    def _text(self, field: Field) -> str:
        return self._content[field.start : field.end].decode("utf-8", "backslashreplace")

    def _inside(self, field: Field) -> Iterator[Field]:
        return self._fields(field.start, field.end)

    def _fields(self, position: int, end: int) -> Iterator[Field]:
        """Yield the fields of the message between two offsets, and count them."""
        for field in read_fields(self._content, position, end):
            self._fields_left -= 1
            if self._fields_left < 0:
                raise ValueError(f"it has more than {self._max_fields:,} fields, more than any supported graph")
            yield field
