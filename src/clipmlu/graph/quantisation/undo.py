"""Restores the structure of a lowered graph from its rewritten graph, and weights whose integers were chosen.

``rewrite`` keeps the name of every tensor and derives all new names from these, and the emulated SDK marks the nodes
that it adds; see ``derived``. Undoing both restores nodes, names and shapes of the lowered graph, but of quantised
weights only the shapes.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from clipmlu.bundle.manifest import Tower
from clipmlu.graph.quantisation.derived import ADDED, FLIPPED, INPUT, SCALE, ZERO_POINT, derived, is_derived, original
from clipmlu.graph.quantisation.parameters import Array, quantisation_of
from clipmlu.specs import GraphQuantisation, TensorSpec


def restore_structure(model: onnx.ModelProto, tower: Tower) -> onnx.ModelProto:
    """Return the lowered graph of a rewritten one.

    Args:
        model: the rewritten graph; it is not changed.
        tower: its inputs and outputs before the rewriting.

    Returns:
        A graph with the same nodes and tensors, which cannot be run.
    """
    result = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = result.graph
    graph.name = model.graph.name
    graph.input.extend(_value(tensor) for tensor in tower.inputs)
    graph.output.extend(_value(tensor) for tensor in tower.outputs)
    flipped = set()
    for source in model.graph.node:
        if is_derived(source.output[0], FLIPPED):
            flipped.add(original(source.output[0]))
        inputs, outputs = [[original(name) for name in names] for names in (source.input, source.output)]
        if not source.name.startswith(ADDED) and not set(inputs) & set(outputs):
            node = graph.node.add()
            node.CopyFrom(source)
            node.input[:], node.output[:] = inputs, outputs
    made = {name for node in graph.node for name in node.output}
    weights: dict[str, onnx.TensorProto] = {}
    for weight in model.graph.initializer:
        name = original(weight.name)
        parameter = name != weight.name and weight.name.endswith((SCALE, ZERO_POINT))
        if not parameter and name not in made and name not in weights:
            weights[name] = _weight(weight, name, flipped=name in flipped)
    taken = {name for node in graph.node for name in node.input}
    graph.initializer.extend(weight for name, weight in weights.items() if name in taken)
    return result


def quantised_values(model: onnx.ModelProto) -> dict[str, str]:
    """Map each tensor of the lowered graph to the tensor of the rewritten graph that holds its values, rounded as the mode does.

    Args:
        model: the rewritten graph, or the lowered one, whose tensors are mapped to themselves.
    """
    made = [name for node in model.graph.node for name in node.output]
    own = {name: name for name in [*(value.name for value in model.graph.input), *made]}
    return own | {name.removesuffix(derived("", INPUT)): name for name in made if is_derived(name, INPUT)}


def rounded_weights(model: onnx.ModelProto, record: GraphQuantisation) -> dict[str, Array]:
    """Map each weight whose integers were chosen to float values that are rounded to these integers.

    Args:
        model: the rewritten graph.
        record: its quantisation.
    """
    found: dict[str, Array] = {}
    for weight in model.graph.initializer:
        name = original(weight.name)
        parameter = weight.name.endswith((SCALE, ZERO_POINT))
        if name in record.rounded and name != weight.name and not parameter:
            how = quantisation_of(record.tensors[name])
            values = numpy_helper.to_array(weight)
            found[name] = how.stored_values(values if values.dtype == how.dtype else how.levels(values))
    return found


def _weight(source: onnx.TensorProto, name: str, *, flipped: bool) -> onnx.TensorProto:
    """Return the weight with its old name; integers that represent floats become floats of the same shape."""
    if name != source.name and source.data_type != TensorProto.FLOAT:
        return TensorProto(name=name, dims=source.dims[::-1] if flipped else source.dims, data_type=TensorProto.FLOAT)
    weight = TensorProto()
    weight.CopyFrom(source)
    weight.name = name
    return weight


def _value(tensor: TensorSpec) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return helper.make_tensor_value_info(tensor.name, kind, list(tensor.shape))
