"""The given files in ONNX Runtime, for comparison: with their own inputs, types and batch sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from clipmlu.errors import ExportError, first_line
from clipmlu.graph.index import save_model
from clipmlu.graph.shapes import get_shape
from clipmlu.host import import_onnxruntime
from clipmlu.importing.interface import GraphInputs
from clipmlu.specs import TowerName

Array = npt.NDArray[Any]
_ERRORS_ONLY = 3  # onnxruntime's log severity: 0 verbose .. 4 fatal


class Feeds(NamedTuple):
    """Images and texts.

    Attributes:
        pixels: float32 (N, 3, H, W), normalised.
        tokens: int64 (M, L).
        mask: which tokens are no padding, boolean (M, L).
    """

    pixels: Array
    tokens: Array
    mask: Array

    def pick(self, images: Array, texts: Array) -> Feeds:
        """Return the images and the texts of these indices; an index after the last one stands for the last one."""
        images, texts = (np.minimum(each, len(of) - 1) for each, of in ((images, self.pixels), (texts, self.tokens)))
        return Feeds(self.pixels[images], self.tokens[texts], self.mask[texts])


class Reference:
    """A given graph that runs with pixels and token ids as a bundle's towers take them.

    Args:
        model: the graph; it is not changed.
        inputs: its inputs.
        results: names of the tensors to compute.
        folder: folder for a temporary file.
        where: the graph, for messages.
    """

    def __init__(
        self, model: onnx.ModelProto, inputs: GraphInputs, results: tuple[str, ...], folder: Path, where: str
    ) -> None:
        self._inputs = inputs
        self._results = results
        self._where = where
        path = folder / "reference.onnx"
        save_model(_with_outputs(model, results), path)
        onnxruntime = import_onnxruntime()
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = _ERRORS_ONLY
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common base class
            raise ExportError(f"onnxruntime cannot load {where[0].lower()}{where[1:]}: {first_line(error)}.") from error

    @property
    def images(self) -> int | None:
        """The only number of images that the graph takes, or None for any."""
        return _rows(self._inputs.pixels)

    @property
    def texts(self) -> int | None:
        """The only number of texts that the graph takes, or None for any."""
        return _rows(self._inputs.tokens)

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run the graph once, with its own numbers of images and texts.

        Returns:
            Maps the names of the results to float32 arrays.

        Raises:
            ExportError: it does not run.
        """
        given: dict[str, Array] = {}
        for value, array in self._arrays(feeds):
            if value is not None:
                given[value.name] = array.astype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        try:
            found = self._session.run(list(self._results), given)
        except Exception as error:  # onnxruntime's exceptions have no common base class
            raise ExportError(f"{self._where} does not run in onnxruntime: {first_line(error)}.") from error
        return {name: np.asarray(array, np.float32) for name, array in zip(self._results, found, strict=True)}

    def _arrays(self, feeds: Feeds) -> list[tuple[onnx.ValueInfoProto | None, Array]]:
        inputs, tokens = self._inputs, feeds.tokens
        return [
            (inputs.pixels, feeds.pixels),
            (inputs.tokens, tokens),
            (inputs.mask, feeds.mask),
            (inputs.token_types, np.zeros_like(tokens)),
            (inputs.positions, np.arange(tokens.shape[1])[None].repeat(_rows(inputs.positions) or len(tokens), axis=0)),
        ]

    def embed(self, result: str, tower: TowerName, feeds: Feeds) -> Array:
        """Run the graph for any number of images or texts, in pieces of its own batch size, or else each row alone.

        A graph that takes any batch may still compute a row from others, as a trace of one image or text does that was
        declared to take several. Alone, each row is what the model makes of it.

        Args:
            result: the embedding of the tower.
            tower: ``image`` or ``text``.
            feeds: any number of rows for that tower, and at least one for the other one.

        Returns:
            A row for each image or text.
        """
        images, texts = len(feeds.pixels), len(feeds.tokens)
        count, size, other = (images, self.images, self.texts) if tower == "image" else (texts, self.texts, self.images)
        size = size or 1
        pieces = []
        for start in range(0, count, size):
            mine, rest = np.arange(start, start + size), np.arange(other or 1)
            pieces.append(self.run(feeds.pick(mine, rest) if tower == "image" else feeds.pick(rest, mine))[result])
        return np.concatenate(pieces)[:count]


def _rows(value: onnx.ValueInfoProto | None) -> int | None:
    shape = None if value is None else get_shape(value)
    return None if shape is None or shape[0] < 0 else shape[0]


def _with_outputs(model: onnx.ModelProto, results: tuple[str, ...]) -> onnx.ModelProto:
    """Return a graph with other outputs, which shares the weights."""
    graph = model.graph
    known = {value.name: value for value in graph.output}
    outputs = [known.get(name) or onnx.ValueInfoProto(name=name) for name in results]
    made = helper.make_graph(graph.node, graph.name or "graph", graph.input, outputs, graph.initializer)
    return helper.make_model(made, opset_imports=model.opset_import, ir_version=model.ir_version)
