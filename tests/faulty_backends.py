"""Runtimes for tests that compute or compile wrongly; ``register`` makes them targets of ``--target``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from clipmlu.backends import BACKENDS, TARGETS, Session, SessionOptions, get_backend
from clipmlu.backends.base import CompiledGraph, GraphOptions, SourceGraph
from clipmlu.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeSession
from clipmlu.bundle.runnable import RunnableModel
from clipmlu.data.feeds import Array
from clipmlu.errors import CompileError
from clipmlu.specs import Precision, QuantisationOptions, TowerName


class _RolledSession(OnnxRuntimeSession):
    """Gives each embedding with its elements shifted by one place."""

    def _run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        return {name: np.roll(array, 1, axis=-1) for name, array in super()._run(feeds).items()}


class WrongBackend(OnnxRuntimeBackend):
    """Computes wrong image embeddings in the modes that quantise."""

    name = "wrong"

    def open(self, model: RunnableModel, tower: TowerName, options: SessionOptions) -> Session:
        precision = model.compilation.placement(tower).precision
        kind = _RolledSession if tower == "image" and precision.bits is not None else OnnxRuntimeSession
        return kind(model.tower(tower), model.tower_path(tower), f"wrong {tower}", options, precision)


class RefusingBackend(OnnxRuntimeBackend):
    """Compiles no graph with one scale per tensor, and has a version that a test sets."""

    name = "refusing"
    version = "1"

    def count_devices(self, options: SessionOptions) -> int:
        return 0

    def sdk_versions(self, options: SessionOptions) -> dict[str, str]:
        return {"refusing": self.version}

    def compile_tower(self, graph: SourceGraph, options: GraphOptions, directory: Path) -> CompiledGraph:
        if options.precision.bits is not None and options.quantisation == QuantisationOptions():
            raise CompileError("MagicMind cannot build the image tower: no")
        return super().compile_tower(graph, options, directory)


class NarrowBackend(OnnxRuntimeBackend):
    """Offers float32 alone."""

    name = "narrow"
    precisions = (Precision.FORCE_FLOAT32,)


class SpoilingBackend(OnnxRuntimeBackend):
    """Adds 0.001 to twenty numbers of a graph's first weight."""

    name = "spoiling"

    def compile_tower(self, graph: SourceGraph, options: GraphOptions, directory: Path) -> CompiledGraph:
        compiled = super().compile_tower(graph, options, directory)
        path = directory / compiled.tower.file
        model = onnx.load(path)
        weight = model.graph.initializer[0]
        values = numpy_helper.to_array(weight).copy()
        values.flat[:20] += 1e-3
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        onnx.save(model, path)
        return compiled


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the targets ``wrong``, ``refusing``, ``narrow`` and ``spoiling``."""
    for kind in (WrongBackend, RefusingBackend, NarrowBackend, SpoilingBackend):
        monkeypatch.setitem(BACKENDS, kind.name, (__name__, kind.__name__))
        monkeypatch.setitem(TARGETS, kind.name, kind.name)
        get_backend(kind.name)
