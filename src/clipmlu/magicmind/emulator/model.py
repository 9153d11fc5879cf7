"""Model: the result of a build, in memory and on disk (api 2.11)."""

from __future__ import annotations

from typing import ClassVar

from clipmlu.magicmind.emulator.container import read_container, write_container
from clipmlu.magicmind.emulator.faults import hit
from clipmlu.magicmind.emulator.ports import ModelInfo, Port
from clipmlu.magicmind.emulator.runtime import Engine, EngineOptions, create_engine
from clipmlu.magicmind.emulator.status import Code, StatusError, returns_status
from clipmlu.magicmind.emulator.types import DataType, Dims


class Model:
    """A compiled model; ``Model()`` is empty until a file is read into it."""

    EngineConfig: ClassVar[type] = EngineOptions

    def __init__(self, info: ModelInfo | None = None, graph: bytes = b"") -> None:
        self._info = info
        self._graph = graph

    @returns_status
    def deserialize_from_file(self, path: str, /) -> None:
        """Read a model file."""
        hit("deserialize_from_file")
        header, graph = read_container(path)
        try:
            self._info = ModelInfo.from_json(header)
        except (KeyError, TypeError, ValueError) as error:
            raise StatusError(Code.DATA_LOSS, f"'{path}' has a header that cannot be read") from error
        self._graph = graph

    @returns_status
    def serialize_to_file(self, path: str, /) -> None:
        """Write a model file; any file name is allowed."""
        hit("serialize_to_file")
        write_container(path, self._filled("serialize_to_file").to_json(), self._graph)

    def get_input_num(self) -> int:
        """Return the number of inputs."""
        return 0 if self._info is None else len(self._info.inputs)

    def get_output_num(self) -> int:
        """Return the number of outputs."""
        return 0 if self._info is None else len(self._info.outputs)

    def get_input_names(self) -> list[str]:
        """Return the input names, as in the ONNX file."""
        return [port.name for port in self._inputs()]

    def get_output_names(self) -> list[str]:
        """Return the output names, as in the ONNX file."""
        return [port.name for port in self._outputs()]

    def get_input_dimensions(self) -> list[Dims]:
        """Return input shapes; -1 for variable sizes of a mutable model (TR yolov5n: ``-1,640,640,3``)."""
        return [Dims(port.dims) for port in self._inputs()]

    def get_output_dimensions(self) -> list[Dims]:
        """Return output shapes; -1 for sizes that depend on variable input sizes."""
        return [Dims(port.dims) for port in self._outputs()]

    def get_input_data_types(self) -> list[DataType]:
        """Return the element types of the inputs at run time."""
        return [port.dtype for port in self._inputs()]

    def get_output_data_types(self) -> list[DataType]:
        """Return the element types of the outputs at run time."""
        return [port.dtype for port in self._outputs()]

    def get_input_dimension(self, index: int, /) -> Dims:
        """Return one input shape (YX; MC alexnet_bn_caffe gen_model.py)."""
        return self.get_input_dimensions()[index]

    def get_input_data_type(self, index: int, /) -> DataType:
        """Return one input type (same sources)."""
        return self.get_input_data_types()[index]

    def create_i_engine(self, config: EngineOptions | None = None, /) -> Engine | None:
        """Load the model onto the calling thread's card; on failure return None and log the reason to stderr."""
        try:
            return create_engine(self._filled("create_i_engine"), self._graph, config)
        except StatusError as error:
            error.log_none("create_i_engine")
            return None

    def _inputs(self) -> list[Port]:
        return [] if self._info is None else self._info.inputs

    def _outputs(self) -> list[Port]:
        return [] if self._info is None else self._info.outputs

    def _filled(self, call: str) -> ModelInfo:
        if self._info is None:
            raise StatusError(Code.FAILED_PRECONDITION, f"{call}: the model is empty")
        return self._info

    def __repr__(self) -> str:
        return (
            "<emulated MagicMind model>" if self._info is None else f"<emulated MagicMind model '{self._info.label}'>"
        )
