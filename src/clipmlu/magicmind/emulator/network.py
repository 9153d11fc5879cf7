"""Network: the graph that a parser fills, and that a script builds or extends by hand (api 2.6, 2.16)."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from clipmlu.magicmind.emulator.network_graph import INode, ITensor, NetworkGraph, check_sizes
from clipmlu.magicmind.emulator.status import Code, StatusError
from clipmlu.magicmind.emulator.types import (
    DataType,
    Dims,
    IActivation,
    ILogic,
    IReduce,
    get_numpy_dtype_by_datatype,
    onnx_from_datatype,
)

if TYPE_CHECKING:
    import onnx

_OPSET = 11
"""Operator set of a graph that no parser filled: the newest of which there is public evidence (api 5)."""
P = ParamSpec("P")
T = TypeVar("T")


def _or_none(call: Callable[P, T]) -> Callable[P, T | None]:
    """Let a factory return None and log the reason; the SDK's convention for factories (api 2)."""

    @functools.wraps(call)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T | None:
        try:
            return call(*args, **kwargs)
        except StatusError as error:
            error.log_none(call.__name__)
            return None

    return wrapper


class Network(NetworkGraph):
    """A graph; empty until a parser fills it or a script adds to it.

    Names of added nodes and tensors are as in logs: ``main/mm.conv2d``, ``main/mm.conv2d-1``, and
    ``main/mm.detection_output:0`` for a node's first result (S#49572091925; MC-old yolov3_caffe).
    """

    @_or_none
    def add_input(self, dtype: DataType, dims: Dims | None = None, /) -> ITensor:
        """Add an input; without ``dims`` its rank is unknown (MC tacotron2 decoder.py)."""
        from onnx import helper

        if dims is not None:
            check_sizes("add_input", _expect("add_input", dims, Dims).GetDims())
        graph = self._open_graph()
        name = f"main/arg-{len(graph.input)}"  # as torch JIT inputs are called in logs (7.14)
        shape = None if dims is None else [None if size < 0 else size for size in dims.GetDims()]
        graph.input.append(helper.make_tensor_value_info(name, _element_type(dtype), shape))
        if dims is not None:
            self.file_shapes[name] = tuple(dims.GetDims())
        return self.tensor_named(name)

    @_or_none
    def add_i_const_node(self, dtype: DataType, dimensions: Dims, value: Any) -> INode:
        """Add a constant.

        Args:
            dtype: its type; floating-point data of another width and Python integers are converted (S#33777239416).
            dimensions: its shape.
            value: an array, a list or one number, with as many elements (MC tacotron2 decoder.py; CV).
        """
        from onnx import numpy_helper

        _expect("add_i_const_node", dimensions, Dims)
        array = _converted(value, dtype)
        if array.size != dimensions.GetElementCount():
            raise StatusError(Code.INVALID_ARGUMENT, f"{array.size} values for the shape {dimensions}")
        data = numpy_helper.from_array(array.reshape(dimensions.GetDims()))
        return self._add("Const", "const", [], value=data)

    @_or_none
    def add_i_permute_node(self, tensor: ITensor, perms: ITensor, /) -> INode:
        """Add a transposition; ``perms`` comes from a constant (MC yolov7 adapter_model.py)."""
        return self._add("Permute", "permute", [tensor, perms])

    @_or_none
    def add_i_activation_node(self, tensor: ITensor, activation_type: IActivation) -> INode:
        """Add an activation (S#33777239416; CV adapter_model.py)."""
        _expect("add_i_activation_node", activation_type, IActivation)
        return self._add("Activation", activation_type.name.lower(), [tensor], activation=activation_type.value)

    @_or_none
    def add_i_conv_node(self, tensor: ITensor, filters: ITensor, bias: ITensor | None = None, /) -> INode:
        """Add a two-dimensional convolution (S#33777239416): NHWC, filters of (outputs, height, width, inputs)."""
        return self._add("Conv", "conv2d", [tensor, filters, *([] if bias is None else [bias])])

    @_or_none
    def add_i_cast_node(self, tensor: ITensor, dtype: DataType, /) -> INode:
        """Add a conversion (MC tacotron2 decoder.py)."""
        return self._add("Cast", "cast", [tensor], to=_element_type(dtype))

    @_or_none
    def add_i_fill_node(self, shape: ITensor, value: ITensor, /) -> INode:
        """Add a tensor of one value (MC tacotron2 decoder.py)."""
        return self._add("Fill", "fill", [shape, value])

    @_or_none
    def add_i_range_node(self, begin: ITensor, end: ITensor, step: ITensor, /) -> INode:
        """Add a range of numbers (MC tacotron2 decoder.py)."""
        return self._add("Range", "range", [begin, end, step])

    @_or_none
    def add_i_unsqueeze_node(self, tensor: ITensor, axes: ITensor, /) -> INode:
        """Add axes of size 1 (MC tacotron2 decoder.py)."""
        return self._add("Unsqueeze", "unsqueeze", [tensor, axes])

    @_or_none
    def add_i_logic_node(self, first: ITensor, second: ITensor, kind: ILogic, /) -> INode:
        """Add a comparison of elements (MC tacotron2 decoder.py)."""
        _expect("add_i_logic_node", kind, ILogic)
        return self._add("Logic", kind.name.lower(), [first, second], logic=kind.value)

    @_or_none
    def add_i_reduce_node(self, tensor: ITensor, axes: ITensor, kind: IReduce, indices: bool, /) -> INode:
        """Add a reduction (MC tacotron2 decoder.py); the last argument is read as in ODLA's ArgMax (7.28)."""
        _expect("add_i_reduce_node", kind, IReduce)
        if indices:
            raise StatusError(Code.UNIMPLEMENTED, "public Python code passes False as the last argument (7.28)")
        return self._add("Reduce", "reduce", [tensor, axes], reduce=kind.value)

    @_or_none
    def add_i_slice_node(self, tensor: ITensor, begin: ITensor, end: ITensor, axes: ITensor, /) -> INode:
        """Add a slice (MC tacotron2 decoder.py)."""
        return self._add("Slice", "slice", [tensor, begin, end, axes])

    @_or_none
    def add_i_split_node(self, tensor: ITensor, axis: ITensor, count: int, /) -> INode:
        """Add a split into equal parts (CV adapter_model.py)."""
        if operator.index(count) < 1:
            raise StatusError(Code.INVALID_ARGUMENT, f"{count} results; expected 1 or more")
        return self._add("Split", "split", [tensor, axis], results=count)

    @_or_none
    def add_i_concat_node(self, axis: ITensor, tensors: list[ITensor], /) -> INode:
        """Add a concatenation; the axis comes first (CV adapter_model.py)."""
        if not tensors:
            raise StatusError(Code.INVALID_ARGUMENT, "no tensors are given")
        return self._add("Concat", "concat", [axis, *tensors])

    @_or_none
    def add_i_detection_output_node(self, tensors: list[ITensor], anchors: ITensor, /) -> INode:
        """Add boxes from feature maps; the results are boxes and counts (MC yolov5_v6_1_pytorch adapter_model.py)."""
        return self._add("DetectionOutput", "detection_output", [*tensors, anchors], results=2)

    def node_of(self, proto: onnx.NodeProto) -> INode:
        """Return the SDK's object for a node, with setters if the node has some."""
        from clipmlu.magicmind.emulator.sdk_lowering import DOMAIN
        from clipmlu.magicmind.emulator.sdk_nodes import IConvNode, IDetectionOutputNode

        kinds: dict[str, type[INode]] = {"Conv": IConvNode, "DetectionOutput": IDetectionOutputNode}
        kind = kinds.get(proto.op_type, INode) if proto.domain == DOMAIN else INode
        return kind(self, proto)

    def _add(self, op_type: str, label: str, inputs: Sequence[ITensor], results: int = 1, **attributes: Any) -> INode:
        from onnx import helper

        from clipmlu.magicmind.emulator.sdk_lowering import DOMAIN

        graph = self._open_graph()
        for tensor in inputs:
            self.check_own("add_i_*_node", tensor)
        taken = {node.name for node in graph.node}
        names = (f"main/mm.{label}-{index}" if index else f"main/mm.{label}" for index in range(len(taken) + 1))
        name = next(name for name in names if name not in taken)
        outputs = [f"{name}:{index}" for index in range(results)]
        node = helper.make_node(
            op_type, [tensor.name for tensor in inputs], outputs, name=name, domain=DOMAIN, **attributes
        )
        graph.node.append(node)
        self.forget_shapes()
        return self.node_of(graph.node[-1])

    def _open_graph(self) -> onnx.GraphProto:
        """Return the graph; an empty network gets one."""
        if self.graph_model is None:
            from onnx import helper

            empty = helper.make_graph([], "network", [], [])
            self.graph_model = helper.make_model(empty, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=6)
        return self.graph_model.graph

    def __getattr__(self, name: str) -> Any:
        if name.startswith("add_i_"):
            raise NotImplementedError(
                f"{name}: no public Python code shows this call, so the emulated MagicMind SDK has none "
                "(docs/magicmind-api.md, 2.16)"
            )
        raise AttributeError(f"'Network' object has no attribute '{name}'")


def _expect(call: str, value: T, kind: type) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"{call}(): expected {kind.__name__}, got {type(value).__name__}")
    return value


def _element_type(dtype: DataType) -> int:
    if not isinstance(dtype, DataType):
        raise TypeError(f"expected DataType, got {type(dtype).__name__}")
    element_type = onnx_from_datatype(dtype)
    if element_type is None:
        raise StatusError(Code.UNIMPLEMENTED, f"the emulator has no {dtype.name} tensors in graphs")
    return element_type


def _converted(value: Any, dtype: DataType) -> npt.NDArray[Any]:
    """Return data for a constant as an array of its type."""
    _element_type(dtype)
    array: npt.NDArray[Any] = np.asarray(value)
    target = get_numpy_dtype_by_datatype(dtype)
    if not np.can_cast(array.dtype, target, "same_kind"):
        raise StatusError(Code.INVALID_ARGUMENT, f"no public source shows {array.dtype.name} data for {dtype.name}")
    with np.errstate(over="ignore"):
        converted = array.astype(target)
    beyond = np.isinf(converted) & np.isfinite(array) if target.kind == "f" else converted != array
    if np.any(beyond):
        raise StatusError(Code.OUT_OF_RANGE, f"values beyond {dtype.name}")
    return converted
