"""Writing a torch module as an ONNX file: export, clean-up, names from the model's blocks, reproducible bytes."""

from __future__ import annotations

import collections
import re
from pathlib import Path
from typing import Any

from clipmlu.bundle.manifest import Tower
from clipmlu.errors import ExportError, first_line
from clipmlu.export.options import PURPOSE
from clipmlu.export.quiet import quiet_libraries
from clipmlu.export.towers import MODEL_ATTRIBUTE, TowerProgram
from clipmlu.host import require
from clipmlu.specs import MODULE_KEY, TensorSpec

EXPORTER = "torch.onnx dynamo"

_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
_PREFIX = f"{MODEL_ATTRIBUTE}."
_INLINE_BYTES = 1024  # smaller tensors stay in the graph file, where shape inference needs them


def export_graph(program: TowerProgram, path: Path, *, opset: int, external_data_bytes: int) -> Tower:
    """Export one graph and write it to a file.

    Args:
        program: the torch module with names and example inputs.
        path: the ONNX file; weights that do not fit go to ``<path>.data``.
        opset: the opset to write.
        external_data_bytes: largest size in bytes of weights that stay in the file itself.

    Returns:
        The tower as read back from the file.

    Raises:
        ExportError: the exporter failed, or the file has other inputs or outputs than the program.
    """
    graph_model = _run_exporter(program, opset)
    _name_axes(graph_model.graph, program)
    _name_nodes(graph_model.graph)
    _strip_metadata(graph_model)
    _name_values(graph_model.graph)
    _write(graph_model, path, external_data_bytes)
    tower = read_tower(path)
    _check_interface(tower, program)
    return tower


def read_tower(path: Path) -> Tower:
    """Read the names, dtypes and shapes of a graph's inputs and outputs from its file."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    return Tower(
        file=path.name,
        inputs=tuple(_tensor_spec(value) for value in model.graph.input),
        outputs=tuple(_tensor_spec(value) for value in model.graph.output),
    )


def read_opset(path: Path) -> int:
    """Return the opset of the file; the exporter may write another one than requested."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    return next(int(each.version) for each in model.opset_import if each.domain in ("", "ai.onnx"))


def _run_exporter(program: TowerProgram, opset: int) -> Any:
    """Export with torch.export ("dynamo"); return an onnx_ir model."""
    torch = require("torch", "export", PURPOSE)
    require("onnxscript", "export", PURPOSE)
    dynamic_shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in program.inputs)
    try:
        with quiet_libraries(), torch.no_grad():
            exported = torch.onnx.export(
                program.module,
                program.examples,
                dynamo=True,
                dynamic_shapes=dynamic_shapes,
                input_names=list(program.inputs),
                output_names=list(program.outputs),
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:  # the exporter's errors have no common base class
        raise ExportError(f"torch.onnx cannot export the {program.tower} tower: {first_line(error)}.") from error
    return exported.model


def _name_axes(graph: Any, program: TowerProgram) -> None:
    """Rename the dynamic axes to the program's names; torch.export numbers them (``s77``)."""
    renamed: dict[str, str] = {}
    for value, axis in zip(graph.inputs, program.batch_axes, strict=True):
        symbol = value.shape[0]
        if isinstance(symbol, int):
            raise ExportError(f"torch.export fixed the batch of '{value.name}' to {symbol}.")
        renamed[symbol.value] = axis
    pattern = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in renamed))
    values = [*graph.inputs, *(output for node in graph.all_nodes() for output in node.outputs)]
    for value in values:
        for index, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and size.value is not None:
                value.shape[index] = pattern.sub(lambda match: renamed[match.group()], size.value)


def _name_nodes(graph: Any) -> None:
    """Name every node after its module and operator: ``visual.transformer.resblocks.3.mlp.c_fc/MatMul``.

    The names are unique and depend on the model alone; a target's settings for single operators refer to them.
    """
    counts: collections.Counter[str] = collections.Counter()
    for node in graph.all_nodes():
        module = _module_path(node.metadata_props.get(_SCOPES_KEY))
        name = f"{module}/{node.op_type}" if module else node.op_type
        number = counts[name]
        counts[name] += 1
        node.name = f"{name}_{number}" if number else name
        node.metadata_props.clear()
        node.metadata_props[MODULE_KEY] = module


def _module_path(scopes: str | None) -> str:
    """Return the innermost module of a node, or an empty string if it belongs to the whole model.

    Args:
        scopes: the exporter's list as Python text: modules from the outermost to the innermost, then the operation
            itself.
    """
    names = re.findall(r"'([^']*)'", scopes or "")
    path = names[-2] if len(names) > 1 else ""
    # Sizes of inputs belong to no module; the exporter names that "_empty_nn_module_stack_...".
    return path.removeprefix(_PREFIX) if path.startswith(_PREFIX) else ""


def _strip_metadata(graph_model: Any) -> None:
    """Remove stack traces and file paths of this machine."""
    graph_model.metadata_props.clear()
    graph_model.graph.metadata_props.clear()
    graph_model.doc_string = None
    graph = graph_model.graph
    values = [*graph.inputs, *graph.initializers.values()]
    for node in graph.all_nodes():
        node.doc_string = None
        values += node.outputs
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None


def _name_values(graph: Any) -> None:
    """Name tensors after their weight, or after the node that produces or (for folded weights) uses them."""
    interface = {value.name for value in [*graph.inputs, *graph.outputs]}
    for value in list(graph.initializers.values()):
        if value.name.startswith(_PREFIX):
            value.name = value.name.removeprefix(_PREFIX)
        elif value.name not in interface and value.uses():
            node, index = next(iter(value.uses()))
            value.name = f"{node.name}:input{index}"
    for node in graph.all_nodes():
        for index, value in enumerate(node.outputs):
            if value.name not in interface:
                value.name = f"{node.name}:{index}"


def _write(graph_model: Any, path: Path, external_data_bytes: int) -> None:
    import onnx_ir

    size = sum(value.const_value.nbytes for value in graph_model.graph.initializers.values())
    if size <= external_data_bytes:
        onnx_ir.save(graph_model, path)
        return
    onnx_ir.save(graph_model, path, external_data=f"{path.name}.data", size_threshold_bytes=_INLINE_BYTES)


def _tensor_spec(value: Any) -> TensorSpec:
    import onnx

    tensor = value.type.tensor_type
    shape = tuple(axis.dim_param or int(axis.dim_value) for axis in tensor.shape.dim)
    return TensorSpec(name=value.name, dtype=onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape=shape)


def _check_interface(tower: Tower, program: TowerProgram) -> None:
    inputs = tuple(
        TensorSpec(name=name, dtype=str(example.dtype).removeprefix("torch."), shape=(axis, *example.shape[1:]))
        for name, axis, example in zip(program.inputs, program.batch_axes, program.examples, strict=True)
    )
    outputs = tuple(
        TensorSpec(name=name, dtype="float32", shape=shape)
        for name, shape in zip(program.outputs, program.output_shapes, strict=True)
    )
    for found, expected in zip([*tower.inputs, *tower.outputs], [*inputs, *outputs], strict=True):
        if found != expected:
            raise ExportError(f"The exporter wrote '{tower.file}' with {found}; expected {expected}.")
