"""Combines a network and a configuration to one ONNX graph with the inputs and outputs of the built model.

The graph keeps the network's tensor names, so that calibration and build refer to the same tensors. Conversions from
the configuration are added before the inputs and after the outputs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from clipmlu.graph.quantisation.derived import ADDED
from clipmlu.graph.shapes import Shapes, get_shape, set_shape
from clipmlu.magicmind.emulator.config import BuildFacts
from clipmlu.magicmind.emulator.detection import Detection
from clipmlu.magicmind.emulator.detection_build import TYPES, add_shapes, check_detections, end_at_features
from clipmlu.magicmind.emulator.inference import infer_shapes
from clipmlu.magicmind.emulator.network import Network
from clipmlu.magicmind.emulator.ports import Port
from clipmlu.magicmind.emulator.sdk_lowering import lower
from clipmlu.magicmind.emulator.settings import switches
from clipmlu.magicmind.emulator.status import Code, StatusError
from clipmlu.magicmind.emulator.types import WIDE, DataType, Shape, datatype_from_onnx, onnx_from_datatype


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assembly:
    """A graph ready for its numerics; its inputs are named ``emulated_input_0`` and so on, its outputs likewise."""

    model: onnx.ModelProto
    inputs: list[Port]
    outputs: list[Port]
    shapes: Shapes
    detections: list[Detection]


def assemble(network: Network, facts: BuildFacts) -> Assembly:
    """Set inputs, outputs and shapes as configured.

    Raises:
        StatusError: the configuration does not fit the network.
    """
    source = network.graph
    network.complete_outputs()
    model = onnx.ModelProto()
    assert network.graph_model is not None, "network.graph was read"
    model.CopyFrom(network.graph_model)
    graph = model.graph
    found = lower(model)
    _constants_to_weights(graph)
    for field in ("value_info", "input", "output"):
        graph.ClearField(field)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    inputs, heads = [], []
    for index, value in enumerate(source.input):
        port, nodes, weights = _input_port(network, facts, index, value)
        declared = graph.input.add()
        declared.name = f"{ADDED}input_{index}"
        declared.type.tensor_type.elem_type = _onnx_type(port.dtype)
        if port.ranked:
            file_shape = network.file_shapes.get(value.name, ())
            set_shape(declared, _session_dims(port, file_shape, facts.input_layouts.get(index)))
        inputs.append(port)
        heads += nodes
        graph.initializer.extend(weights)
    body = list(graph.node)
    graph.ClearField("node")
    graph.node.extend(heads + body)
    made = {name: kind for node in found for name, kind in zip(node.proto.output, TYPES, strict=True)}
    types = [
        _output_port(network, facts, index, value, graph)
        if value.name not in made
        else _detection_port(network, facts, index, value.name, made[value.name])
        for index, value in enumerate(source.output)
    ]
    end_at_features(graph, found)
    shapes = infer_shapes(model)
    detections = check_detections(found, {value.name: index for index, value in enumerate(source.output)}, shapes)
    ends = _shapes_at_ends(model, inputs) or [shapes]
    for end in ends:
        add_shapes(end, detections, f"{ADDED}output_")
    outputs = [
        _result_port(ends, index, value, dtype)
        for index, (value, dtype) in enumerate(zip(source.output, types, strict=True))
    ]
    return Assembly(model=model, inputs=inputs, outputs=outputs, shapes=shapes, detections=detections)


def assemble_for_calibration(network: Network, facts: BuildFacts) -> Assembly:
    """Return the calibration graph: any shapes, and the network's own layouts, types and values.

    ``set_data_type`` does not change the type during calibration (MC build_param.py); ``type64to32_conversion`` does.
    ``insert_bn_before_firstnode`` does not change the values: all samples with it calibrate with normalised FLOAT32
    data (MC swintransformer, whose accuracy in qint8 is published, mobilenetv2, mobilenetv3, centernet; ME openpose).
    """
    free = Network()
    model = onnx.ModelProto()
    assert network.graph_model is not None, "Calibrator.calibrate read network.graph"
    model.CopyFrom(network.graph_model)
    free.fill(model)
    bare = dataclasses.replace(facts, mutable=True, dim_range={}, input_layouts={}, output_layouts={}, batch_norm={})
    assembly = assemble(free, bare)
    own = [get_shape(value) or () for value in network.graph.input]
    inputs = [dataclasses.replace(port, dims=dims) for port, dims in zip(assembly.inputs, own, strict=True)]
    return dataclasses.replace(assembly, inputs=inputs)


def _shapes_at_ends(model: onnx.ModelProto, inputs: list[Port]) -> list[Shapes]:
    """Infer shapes at both ends of ``dim_range``; this fails for a graph that was exported for one batch size only."""
    if any(not port.ranked or (-1 in port.dims and port.minimum is None) for port in inputs):
        return []
    ends = ([port.minimum or port.dims for port in inputs], [port.maximum or port.dims for port in inputs])
    return [
        infer_shapes(model, {f"{ADDED}input_{index}": shape for index, shape in enumerate(end)})
        for end in (ends if ends[0] != ends[1] else ends[:1])
    ]


def _result_port(ends: list[Shapes], index: int, declared: onnx.ValueInfoProto, dtype: DataType) -> Port:
    """Return an output with the sizes that are equal at both ends, -1 for others; all -1 if nothing is known (api 2.11)."""
    name = f"{ADDED}output_{index}"
    known = [end[name].shape for end in ends if name in end]
    if not known or len(known) < len(ends) or None in known:
        shape = get_shape(declared)
        dims: Shape = (-1,) * len(shape or ())
        return Port(name=declared.name, dtype=dtype, dims=dims, ranked=shape is not None)
    sizes = zip(*(shape for shape in known if shape is not None), strict=True)
    dims = tuple(axis[0] if len(set(axis)) == 1 else -1 for axis in sizes)
    return Port(name=declared.name, dtype=dtype, dims=dims)


def _session_dims(port: Port, file_shape: Shape, layout: tuple[str, str] | None) -> Shape:
    """Return the shape for onnxruntime: an axis that is variable in the file stays variable, even if a size was set.

    With a fixed size onnxruntime fuses other operators and rounds differently in the last digit; so float32 results are
    those of the file itself. The context checks the sizes.
    """
    if len(file_shape) != len(port.dims):
        return port.dims
    if layout is not None:
        file_shape = tuple(file_shape[layout[0].index(axis)] for axis in layout[1])
    return tuple(-1 if free == -1 else size for free, size in zip(file_shape, port.dims, strict=True))


def _input_port(
    network: Network, facts: BuildFacts, index: int, value: onnx.ValueInfoProto
) -> tuple[Port, list[onnx.NodeProto], list[onnx.TensorProto]]:
    shape = get_shape(value)
    if shape is None and _needs_rank(facts, index):
        raise StatusError(Code.INVALID_ARGUMENT, f"build: input '{value.name}' has no shape; set its dimension")
    dims = shape or ()
    minimum, maximum = _bounds(facts, index, value.name, dims)
    dtype = _port_type(network, facts, value)
    if index in facts.batch_norm:
        dtype = DataType.UINT8  # "whatever datatype you set" (MC model_process.py insert_bn_before_first_node)
    if _is_mutable(facts, network):
        given = minimum is not None and maximum is not None
        dims = (
            tuple(low if low == high else -1 for low, high in zip(minimum, maximum, strict=True))
            if given and minimum is not None and maximum is not None
            else (-1,) * len(dims)
        )
    elif -1 in dims:
        raise StatusError(
            Code.INVALID_ARGUMENT,
            f"build: input '{value.name}' has the unknown shape {list(dims)}; set its dimension or graph_shape_mutable",
        )
    current = f"{ADDED}input_{index}"
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def add(op_type: str, *more: str, **attributes: Any) -> None:
        nonlocal current
        name = f"{ADDED}input_{index}_{len(nodes)}"
        nodes.append(helper.make_node(op_type, [current, *more], [name], name=name, **attributes))
        current = name

    layout = facts.input_layouts.get(index)
    if layout is not None:
        source, target = _check_layout(layout, value.name, len(dims))
        add("Transpose", perm=[target.index(axis) for axis in source])
    if dtype is not datatype_from_onnx(value.type.tensor_type.elem_type):
        add("Cast", to=value.type.tensor_type.elem_type)
    if index in facts.batch_norm:
        for op_type, array in _batch_norm(facts.batch_norm[index], dims, layout):
            weights.append(numpy_helper.from_array(array, f"{current}_{op_type.lower()}"))
            add(op_type, weights[-1].name)
    nodes.append(helper.make_node("Identity", [current], [value.name], name=f"{ADDED}input_{index}_end"))
    if layout is not None:
        order = [layout[0].index(axis) for axis in layout[1]]
        dims = tuple(dims[axis] for axis in order)
        minimum = minimum and tuple(minimum[axis] for axis in order)
        maximum = maximum and tuple(maximum[axis] for axis in order)
    ranked = shape is not None
    port = Port(name=value.name, dtype=dtype, dims=dims, minimum=minimum, maximum=maximum, ranked=ranked)
    return port, nodes, weights


def _needs_rank(facts: BuildFacts, index: int) -> bool:
    """Return whether the configuration speaks of the axes of an input."""
    return facts.mutable is False or any(
        index in part for part in (facts.dim_range, facts.batch_norm, facts.input_layouts)
    )


def _output_port(
    network: Network, facts: BuildFacts, index: int, value: onnx.ValueInfoProto, graph: onnx.GraphProto
) -> DataType:
    dtype = _port_type(network, facts, value)
    current = value.name
    layout = facts.output_layouts.get(index)
    if layout is not None:
        source, target = _check_layout(layout, value.name, len(get_shape(value) or layout[0]))
        name = f"{ADDED}output_{index}_0"
        perm = [source.index(axis) for axis in target]
        graph.node.append(helper.make_node("Transpose", [current], [name], name=name, perm=perm))
        current = name
    name = f"{ADDED}output_{index}"
    graph.node.append(helper.make_node("Cast", [current], [name], name=f"{name}_end", to=_onnx_type(dtype)))
    output = graph.output.add()
    output.name = name
    output.type.tensor_type.elem_type = _onnx_type(dtype)
    return dtype


def _detection_port(network: Network, facts: BuildFacts, index: int, name: str, dtype: DataType) -> DataType:
    """Return the type of a detection output node's result, which the configuration cannot change."""
    if index in facts.output_layouts or network.io_types.get(name, dtype) is not dtype:
        raise StatusError(Code.UNIMPLEMENTED, f"build: '{name}' has its own type and layout; no sample changes them")
    return dtype


def _port_type(network: Network, facts: BuildFacts, value: onnx.ValueInfoProto) -> DataType:
    declared = datatype_from_onnx(value.type.tensor_type.elem_type)
    dtype = network.io_types.get(value.name) or declared
    if dtype is None or onnx_from_datatype(dtype) is None:
        raise StatusError(Code.UNIMPLEMENTED, f"build: '{value.name}' has an element type that MagicMind does not have")
    if dtype not in WIDE:
        return dtype
    if facts.narrow:
        # 7.3: the samples' calibrators and logs suggest INT32 after the conversion, even if INT64 was set (roberta).
        return WIDE[dtype]
    if switches().refuse_64bit:
        raise StatusError(
            Code.UNIMPLEMENTED,
            f"build: '{value.name}' is {dtype.name}; 64-bit data need opt_config.type64to32_conversion",
        )
    return dtype


def _is_mutable(facts: BuildFacts, network: Network) -> bool:
    if facts.mutable is not None:
        return facts.mutable
    shapes = [get_shape(value) for value in network.graph.input]
    known = all(shape is not None and -1 not in shape for shape in shapes)
    return not (known and switches().static_by_default)


def _bounds(facts: BuildFacts, index: int, name: str, dims: Shape) -> tuple[Shape | None, Shape | None]:
    """Return ``dim_range`` of one input, in the network's own layout (api 3)."""
    if facts.mutable is False or index not in facts.dim_range:
        return None, None
    low, high = (tuple(side) for side in facts.dim_range[index])
    if not len(low) == len(high) == len(dims) or any(a < 1 or a > b for a, b in zip(low, high, strict=True)):
        raise StatusError(
            Code.INVALID_ARGUMENT, f"build: dim_range of input '{name}' is {low}..{high}; its shape is {list(dims)}"
        )
    return low, high


def _check_layout(layout: tuple[str, str], name: str, rank: int) -> tuple[str, str]:
    if len(layout[0]) != rank:
        raise StatusError(Code.INVALID_ARGUMENT, f"build: '{name}' has {rank} axes and no layout {layout[0]}")
    return layout


def _batch_norm(
    constants: tuple[list[float], list[float]], dims: Shape, layout: tuple[str, str] | None
) -> list[tuple[str, np.ndarray]]:
    """Return nodes for (x - mean) / sqrt(var) per channel in the network's layout; NCHW unless only the last axis fits."""
    mean, variance = (np.asarray(side, np.float32) for side in constants)
    axis = 1 if layout is None else layout[0].index("C")
    if layout is None and len(dims) > 1 and dims[1] not in (-1, len(mean)) and dims[-1] == len(mean):
        axis = len(dims) - 1
    shape = [1] * len(dims)
    if len(dims) < 2 or dims[axis] not in (-1, len(mean)) or len(mean) != len(variance):
        raise StatusError(
            Code.INVALID_ARGUMENT, f"build: insert_bn_before_firstnode has {len(mean)} channels for {list(dims)}"
        )
    shape[axis] = len(mean)
    return [("Sub", mean.reshape(shape)), ("Div", np.sqrt(variance).reshape(shape))]


def _constants_to_weights(graph: onnx.GraphProto) -> None:
    nodes = []
    for node in graph.node:
        value = next((item for item in node.attribute if item.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            weight = onnx.TensorProto()
            weight.CopyFrom(value.t)
            weight.name = node.output[0]
            graph.initializer.append(weight)
        else:
            nodes.append(node)
    graph.ClearField("node")
    graph.node.extend(nodes)


def _onnx_type(dtype: DataType) -> int:
    code = onnx_from_datatype(dtype)
    assert code is not None, "quantised inputs and outputs were refused"
    return code
