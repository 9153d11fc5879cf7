"""Parser: reads ONNX files into networks (api 2.5)."""

from __future__ import annotations

from typing import Any

from clipmlu.magicmind.emulator.faults import hit
from clipmlu.magicmind.emulator.network import Network
from clipmlu.magicmind.emulator.operators import MAX_OPSET, OPERATORS
from clipmlu.magicmind.emulator.settings import switches
from clipmlu.magicmind.emulator.status import Code, StatusError, returns_status
from clipmlu.magicmind.emulator.types import ModelKind


class Parser:
    """Parses a framework's model file; the emulator supports ONNX.

    Args:
        kind: the framework.
    """

    def __init__(self, kind: ModelKind) -> None:
        if not isinstance(kind, ModelKind):
            raise TypeError(f"Parser(): expected ModelKind, got {type(kind).__name__}")
        self._kind = kind

    @returns_status
    def set_model_param(self, name: str, value: Any) -> None:
        """Set an option of another framework (MC framework_parser.py); unknown for ONNX, as is the result (7.17)."""
        if self._kind is ModelKind.kOnnx:
            raise StatusError(Code.INVALID_ARGUMENT, f"set_model_param: an ONNX parser has no parameter '{name}'")

    @returns_status
    def parse(self, network: Network, model_path: str, *more: str) -> None:
        """Fill an empty network from a file; ``more`` is Caffe's second file."""
        if not isinstance(network, Network):
            raise TypeError(f"parse(): expected Network, got {type(network).__name__}")
        hit("parse")
        if self._kind is not ModelKind.kOnnx:
            raise StatusError(
                Code.UNIMPLEMENTED,
                f"parse: clipmlu emulates the SDK's ONNX parser only, not that of {self._kind.name}; give the model as ONNX",
            )
        if network.graph_model is not None:
            raise StatusError(Code.FAILED_PRECONDITION, "parse: the network is not empty")
        network.fill(_read_onnx(str(model_path)))


def _read_onnx(path: str) -> Any:
    import onnx
    import onnx.external_data_helper as external

    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise StatusError(Code.NOT_FOUND, f"parse: cannot read '{path}': {error.strerror}") from error
    except Exception as error:  # protobuf's DecodeError, which has no type stubs: not an ONNX file
        raise StatusError(Code.DATA_LOSS, f"parse: '{path}' is no ONNX file") from error
    if not model.graph.output:
        raise StatusError(Code.DATA_LOSS, f"parse: '{path}' holds no graph")
    outside = [weight.name for weight in model.graph.initializer if external.uses_external_data(weight)]
    if outside:
        if switches().refuse_external_data:
            raise StatusError(Code.UNIMPLEMENTED, f"parse: '{path}' keeps weight '{outside[0]}' outside the file")
        model = onnx.load(path)
    _check_opset(model, path)
    _check_operators(model, path)
    weights = {weight.name for weight in model.graph.initializer}
    for index in reversed(range(len(model.graph.input))):  # IR version 3 lists weights as inputs too
        if model.graph.input[index].name in weights:
            del model.graph.input[index]
    return model


def _check_opset(model: Any, path: str) -> None:
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > MAX_OPSET and switches().limit_opset:
            raise StatusError(
                Code.UNIMPLEMENTED,
                f"parse: '{path}' has opset {entry.version}; public evidence stops at {MAX_OPSET} (unknown 7.12)",
            )


def _check_operators(model: Any, path: str) -> None:
    from clipmlu.magicmind.emulator.sdk_lowering import DOMAIN

    for node in model.graph.node:
        if node.domain == DOMAIN:  # the emulator's own mark of nodes that a script added
            raise StatusError(Code.UNIMPLEMENTED, f"parse: '{path}': no file has the operator {DOMAIN}.{node.op_type}")
    if not switches().closed_operators:
        return
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise StatusError(
                Code.UNIMPLEMENTED,
                f"parse: '{path}': node '{node.name}': no public evidence for operator {kind} (unknown 7.12)",
            )
