"""NetworkGraph, ITensor and INode: a network and its parts, over an ONNX graph (api 2.6, 2.7)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from clipmlu.magicmind.emulator.log import log_warning
from clipmlu.magicmind.emulator.operators import node_type
from clipmlu.magicmind.emulator.settings import switches
from clipmlu.magicmind.emulator.status import Code, StatusError, returns_status
from clipmlu.magicmind.emulator.types import DataType, Dims, Shape, datatype_from_onnx

if TYPE_CHECKING:
    import onnx

    from clipmlu.graph.shapes import Shapes
    from clipmlu.magicmind.emulator.ports import CollectedRanges


@dataclasses.dataclass
class NodeTypes:
    """Types set by ``set_precision`` and ``set_output_type`` for one node; maps an input or output index to the type."""

    inputs: dict[int, DataType] = dataclasses.field(default_factory=dict)
    outputs: dict[int, DataType] = dataclasses.field(default_factory=dict)


class NetworkGraph:
    """What a network holds, and what reads and marks it; ``network.Network`` adds to it."""

    def __init__(self) -> None:
        self.graph_model: onnx.ModelProto | None = None
        self.calibration: CollectedRanges | None = None
        self.node_types: dict[str, NodeTypes] = {}
        self.io_types: dict[str, DataType] = {}
        self.file_shapes: dict[str, Shape] = {}
        self._tensors: dict[str, ITensor] = {}
        self._shapes: Shapes | None = None

    @property
    def graph(self) -> onnx.GraphProto:
        """The ONNX graph.

        Raises:
            StatusError: nothing was parsed.
        """
        if self.graph_model is None:
            raise StatusError(Code.FAILED_PRECONDITION, "the network is empty: nothing was parsed")
        return self.graph_model.graph

    def fill(self, model: onnx.ModelProto) -> None:
        """Take a parsed model; unnamed nodes get a name, so that ``set_precision`` can refer to them."""
        from clipmlu.graph.shapes import get_shape

        self.graph_model = model
        self.file_shapes = {value.name: get_shape(value) or () for value in model.graph.input}
        taken = {node.name for node in model.graph.node}
        for index, node in enumerate(model.graph.node):
            if not node.name:
                name = f"{node.op_type}_{index}"
                node.name = name if name not in taken else f"{name}_unnamed"

    def get_input_count(self) -> int:
        """Return the number of inputs; 0 for an empty network."""
        return 0 if self.graph_model is None else len(self.graph.input)

    def get_output_count(self) -> int:
        """Return the number of outputs; 0 for an empty network."""
        return 0 if self.graph_model is None else len(self.graph.output)

    def get_input(self, index: int) -> ITensor:
        """Return one input, in the order of the ONNX graph."""
        return self.tensor_named(self.graph.input[index].name)

    def get_output(self, index: int) -> ITensor:
        """Return one output, in the order of the ONNX graph."""
        return self.tensor_named(self.graph.output[index].name)

    def get_all_nodes_in_network(self) -> list[INode]:
        """Return all nodes in the order of the file (MC mmdetection gen_model.py)."""
        return [] if self.graph_model is None else [self.node_of(node) for node in self.graph.node]

    def node_of(self, proto: onnx.NodeProto) -> INode:
        """Return the SDK's object for a node of the graph."""
        return INode(self, proto)

    def find_node_by_name(self, name: str) -> INode | None:
        """Return the node with a name, or None (CV adapter_model.py)."""
        return next((node for node in self.get_all_nodes_in_network() if node.get_node_name() == name), None)

    def find_tensor_by_name(self, name: str) -> ITensor | None:
        """Return the tensor with a name, or None (S#22352224830)."""
        if self.graph_model is None:
            return None
        known = {value.name for value in self.graph.input} | {value.name for value in self.graph.initializer}
        known |= {output for node in self.graph.node for output in node.output}
        return self.tensor_named(name) if name in known else None

    @returns_status
    def mark_output(self, tensor: ITensor) -> None:
        """Make a tensor an output of the network (MC tacotron2 decoder.py)."""
        self.check_own("mark_output", tensor)
        if any(value.name == tensor.name for value in self.graph.output):
            raise StatusError(Code.INVALID_ARGUMENT, f"mark_output: '{tensor.name}' is an output already")
        self.graph.output.add().name = tensor.name
        self.graph.output[-1].type.tensor_type.elem_type = self.shape_and_type(tensor.name)[1]
        self.forget_shapes()

    @returns_status
    def unmark_output(self, tensor: ITensor) -> None:
        """Undo ``mark_output`` (MC yolov7 adapter_model.py); the SDK's return value is not known (7.17)."""
        self.check_own("unmark_output", tensor)
        for index, value in enumerate(self.graph.output):
            if value.name == tensor.name:
                del self.graph.output[index]
                return
        raise StatusError(Code.INVALID_ARGUMENT, f"unmark_output: '{tensor.name}' is no output")

    def check_own(self, call: str, tensor: ITensor) -> None:
        """Check that a call's argument is a tensor of this network.

        Raises:
            TypeError: it is no tensor.
            StatusError: it belongs to another network.
        """
        if not isinstance(tensor, ITensor):
            raise TypeError(f"{call}(): expected ITensor, got {type(tensor).__name__}")
        if tensor.network is not self:
            raise StatusError(Code.INVALID_ARGUMENT, f"{call}: '{tensor.name}' belongs to another network")

    def complete_outputs(self) -> None:
        """Set the element types of outputs that could not be inferred when they were marked.

        Raises:
            StatusError: there is no output, or the shapes contradict each other or the graph.
        """
        if not self.graph.output:
            raise StatusError(Code.FAILED_PRECONDITION, "the network has no output: mark_output() was not called")
        untyped = [value for value in self.graph.output if value.type.tensor_type.elem_type == 0]
        shapes = self._infer() if untyped else {}
        for value in untyped:
            value.type.tensor_type.elem_type = shapes[value.name].element_type if value.name in shapes else 0

    def shape_and_type(self, name: str) -> tuple[Shape | None, int]:
        """Return shape (-1 for unknown axes, None for an unknown rank) and ONNX element type (0 if unknown).

        An input has its declared or set shape. The other shapes are inferred from the inputs. While these contradict
        each other or the graph, as between two calls of ``set_dimension``, the other shapes are unknown, and only the
        build fails.
        """
        from clipmlu.graph.shapes import TensorShape, get_shape

        for value in self.graph.input:
            if value.name == name:
                return get_shape(value), value.type.tensor_type.elem_type
        if self._shapes is None:
            try:
                self._shapes = self._infer()
            except StatusError as error:
                log_warning("get_dimension", str(error))
                self._shapes = {}
        return self._shapes.get(name, TensorShape(None, 0))

    def _infer(self) -> Shapes:
        """Infer the shapes, those of nodes that a script added included."""
        import onnx

        from clipmlu.graph.shapes import TensorShape
        from clipmlu.magicmind.emulator.detection import result_shapes
        from clipmlu.magicmind.emulator.inference import infer_shapes
        from clipmlu.magicmind.emulator.sdk_lowering import DOMAIN, attributes_of, lower

        assert self.graph_model is not None, "a tensor belongs to a network with a graph"
        model = self.graph_model
        if all(node.domain != DOMAIN for node in model.graph.node):
            return infer_shapes(model)
        model = onnx.ModelProto()
        model.CopyFrom(self.graph_model)
        detections = lower(model)
        shapes = infer_shapes(model)
        for detection in detections:
            limit = attributes_of(detection.proto).get("num_box_limit", -1)
            found = result_shapes(shapes[detection.features[0]].shape, limit)
            types = (onnx.TensorProto.FLOAT, onnx.TensorProto.INT32)
            for output, shape, element_type in zip(detection.proto.output, found, types, strict=True):
                shapes[output] = TensorShape(shape, element_type)
        return shapes

    def forget_shapes(self) -> None:
        """Discard the inferred shapes; they are inferred again on the next use."""
        self._shapes = None

    def tensor_named(self, name: str) -> ITensor:
        """Return the tensor with a name: the same object for the same name."""
        return self._tensors.setdefault(name, ITensor(self, name))


class ITensor:
    """A tensor of a network, created by the network."""

    def __init__(self, network: NetworkGraph, name: str) -> None:
        self.network = network
        self.name = name

    def get_tensor_name(self) -> str:
        """Return the ONNX name (CV adapter_model.py)."""
        return self.name

    @returns_status
    def set_dimension(self, dims: Dims) -> None:
        """Set an input's shape; the other shapes are inferred again.

        MC model_process.py does this for CLIP: batch 1 and 3 texts become B and 100. 7.16: strict mode rejects it after
        the calibration.
        """
        if not isinstance(dims, Dims):
            raise TypeError(f"set_dimension(): expected Dims, got {type(dims).__name__}")
        value = next((value for value in self.network.graph.input if value.name == self.name), None)
        if value is None:
            raise StatusError(Code.INVALID_ARGUMENT, f"set_dimension: '{self.name}' is no input of the network")
        if self.network.calibration is not None and switches().dims_fixed_after_calibrate:
            raise StatusError(Code.FAILED_PRECONDITION, "set_dimension: the network is calibrated already")
        sizes = dims.GetDims()
        shape = value.type.tensor_type.shape
        if value.type.tensor_type.HasField("shape") and len(shape.dim) != len(sizes):
            raise StatusError(
                Code.INVALID_ARGUMENT, f"set_dimension: '{self.name}' has {len(shape.dim)} axes; got {dims}"
            )
        check_sizes(f"set_dimension: '{self.name}'", sizes)
        from clipmlu.graph.shapes import set_shape

        set_shape(value, sizes)
        self.network.forget_shapes()

    def get_dimension(self) -> Dims:
        """Return the shape; empty if the rank is not known."""
        return Dims(self.network.shape_and_type(self.name)[0] or ())

    @returns_status
    def set_data_type(self, dtype: DataType) -> None:
        """Set the type of an input or output at run time; calibration is not affected (MC build_param.py)."""
        if not isinstance(dtype, DataType):
            raise TypeError(f"set_data_type(): expected DataType, got {type(dtype).__name__}")
        ends = {value.name for value in (*self.network.graph.input, *self.network.graph.output)}
        if self.name not in ends:
            raise StatusError(Code.INVALID_ARGUMENT, f"set_data_type: '{self.name}' is neither input nor output")
        if dtype in (DataType.QINT8, DataType.QINT16):
            raise StatusError(Code.UNIMPLEMENTED, f"set_data_type: the emulator has no {dtype.name} inputs or outputs")
        self.network.io_types[self.name] = dtype

    def get_data_type(self) -> DataType:
        """Return the type that was set, else the ONNX type."""
        given = self.network.io_types.get(self.name)
        return given or datatype_from_onnx(self.network.shape_and_type(self.name)[1]) or DataType.FLOAT32

    def get_consumers(self) -> list[INode]:
        """Return the nodes that read this tensor (CV adapter_model.py)."""
        return [node for node in self.network.get_all_nodes_in_network() if self.name in node.proto.input]

    def get_producer(self) -> INode | None:
        """Return the node that writes this tensor, or None (CV adapter_model.py)."""
        nodes = self.network.get_all_nodes_in_network()
        return next((node for node in nodes if self.name in node.proto.output), None)


class INode:
    """A node of a network, created by the network."""

    def __init__(self, network: NetworkGraph, proto: onnx.NodeProto) -> None:
        self.network = network
        self.proto = proto

    def get_node_name(self) -> str:
        """Return the ONNX name (MC mmdetection gen_model.py selects nodes by it)."""
        return str(self.proto.name)

    def get_node_type(self) -> str:
        """Return the type, such as ``IConvNode``."""
        return node_type(self.proto.op_type)

    def get_input_count(self) -> int:
        """Return the number of inputs, weights included."""
        return len(self.proto.input)

    def get_output_count(self) -> int:
        """Return the number of outputs."""
        return len(self.proto.output)

    def get_input(self, index: int) -> ITensor:
        """Return one input tensor."""
        return self.network.tensor_named(self.proto.input[index])

    def get_output(self, index: int) -> ITensor:
        """Return one output tensor."""
        return self.network.tensor_named(self.proto.output[index])

    @returns_status
    def update_input(self, index: int, tensor: ITensor) -> None:
        """Replace one input tensor (CV adapter_model.py)."""
        self._check_index("update_input", index, len(self.proto.input))
        self.network.check_own("update_input", tensor)
        self.proto.input[index] = tensor.name
        self.network.forget_shapes()

    @returns_status
    def set_precision(self, index: int, dtype: DataType) -> None:
        """Set the type of one input; overrides the mode (MC mmdetection gen_model.py)."""
        self._check_index("set_precision", index, len(self.proto.input))
        self._types().inputs[index] = _compute_type("set_precision", dtype)

    @returns_status
    def set_output_type(self, index: int, dtype: DataType) -> None:
        """Set the type of one output; overrides the mode (same source)."""
        self._check_index("set_output_type", index, len(self.proto.output))
        self._types().outputs[index] = _compute_type("set_output_type", dtype)

    def _types(self) -> NodeTypes:
        return self.network.node_types.setdefault(self.proto.name, NodeTypes())

    def _check_index(self, call: str, index: int, count: int) -> None:
        if not 0 <= index < count:
            raise StatusError(Code.INVALID_ARGUMENT, f"{call}: node '{self.proto.name}' has no index {index}")


def check_sizes(call: str, sizes: list[int]) -> None:
    """Check the sizes of an input; -1 is an unknown one.

    Raises:
        StatusError: one is 0 or less than -1.
    """
    if any(size < -1 or size == 0 for size in sizes):
        raise StatusError(Code.INVALID_ARGUMENT, f"{call}: bad shape {sizes}")


def _compute_type(call: str, dtype: DataType) -> DataType:
    if not isinstance(dtype, DataType):
        raise TypeError(f"{call}(): expected DataType, got {type(dtype).__name__}")
    if dtype not in (DataType.FLOAT16, DataType.FLOAT32, DataType.QINT8, DataType.QINT16):
        raise StatusError(Code.INVALID_ARGUMENT, f"{call}: {dtype.name} is no type to compute in")
    return dtype
