"""Packages of runtimes that take the installed ones' place: OpenVINO on a CPU of the test's choice, and the vendor's SDK."""

from __future__ import annotations

import sys
import time
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper


def multiply_bytes(rows: np.ndarray[Any, Any], weights: np.ndarray[Any, Any], *, saturates: bool) -> Any:
    """Multiply as the kernels for CPUs without VNNI do: unsigned times signed bytes, pairs of products in 16 bits."""
    shifted = rows.astype(np.int64) + 128
    wide = weights.astype(np.int64)
    pairs = shifted[:, ::2, None] * wide[None, ::2] + shifted[:, 1::2, None] * wide[None, 1::2]
    sums = (np.clip(pairs, -(2**15), 2**15 - 1) if saturates else pairs).sum(axis=1)
    return (sums - 128 * wide.sum(axis=0)).astype(np.float32)


class Core:
    """``openvino.Core`` with other capabilities, other 8-bit products, and a speed of bfloat16 relative to float32.

    Graphs of OpenVINO are compiled by ``real``. The names of capabilities are those of ``openvino.properties.device.Capability``.
    """

    def __init__(self, *, bfloat16: bool, exact: bool, speed: float = 2.0, real: Any = None) -> None:
        self._bfloat16, self._exact, self._speed, self._real = bfloat16, exact, speed, real

    def get_property(self, device: str, name: str) -> list[str]:
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return ["FP32", "INT8", "BIN", "EXPORT_IMPORT", *(["BF16"] if self._bfloat16 else [])]

    def read_model(self, content: bytes) -> _Product | None:
        """Return the product of integers, or None for ``product_speed.float_product_graph``."""
        constants = {each.name: each for each in onnx.load_from_string(content).graph.initializer}
        return _Product(numpy_helper.to_array(constants["levels"]), self._exact) if "levels" in constants else None

    def compile_model(self, graph: Any, device: str, settings: dict[str, Any]) -> Any:
        if graph is None:
            speed = {"f32": 1.0, "bf16": self._speed}[settings["INFERENCE_PRECISION_HINT"]]
            return lambda _feeds: time.sleep(0.02 / speed)
        return graph if isinstance(graph, _Product) else self._real.compile_model(graph, device, settings)


class _Product:
    """The graph of ``integer_products.integer_product_graph``, compiled."""

    def __init__(self, weights: np.ndarray[Any, Any], exact: bool) -> None:
        self._weights, self._exact = weights, exact

    def __call__(self, feeds: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
        return {"y": multiply_bytes(feeds["x"], self._weights, saturates=not self._exact)}


def install_openvino(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str, version: str = "2026.0.0") -> None:
    """Put a package ``openvino`` first on the path, with a module of this code."""
    facts = folder / f"openvino-{version}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: openvino\nVersion: {version}\n")
    (folder / "openvino").mkdir()
    (folder / "openvino" / "__init__.py").write_text(code)
    monkeypatch.setitem(sys.modules, "openvino", None)  # what is imported now comes back after the test
    del sys.modules["openvino"]
    monkeypatch.syspath_prepend(str(folder))


def install_sdk(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let ``magicmind`` be an empty package in a folder, other than the emulated one."""
    sdk = types.ModuleType("magicmind")
    sdk.__spec__ = ModuleSpec("magicmind", None, origin=str(folder / "magicmind" / "__init__.py"))
    monkeypatch.setitem(sys.modules, "magicmind", sdk)
