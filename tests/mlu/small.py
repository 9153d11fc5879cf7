"""A graph of two nodes, its values in NumPy, and requests about it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from clipmlu.backends.worker_options import WorkerOptions
from clipmlu.bundle.manifest import Tower
from clipmlu.magicmind.archive import make_archive, package_files
from clipmlu.magicmind.backend import emulated_worker
from clipmlu.magicmind.client.peer import OpenRequest
from clipmlu.magicmind.client.program import ENTRY, PACKAGE
from clipmlu.specs import TensorSpec

FloatArray = npt.NDArray[np.float32]
WIDTH, OUT = 8, 5
WEIGHT = np.random.default_rng(7).standard_normal((WIDTH, OUT)).astype(np.float32)
RANGES = (((1, WIDTH), (16, WIDTH)),)


def reference(rows: FloatArray) -> FloatArray:
    return np.maximum(rows, 0) @ WEIGHT


def rows(count: int, seed: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


def write_graph(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: dict[str, Any]) -> Path:
    """An opset 11 graph; inputs and outputs are (name, type, shape)."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6), str(path))
    return path


def worker_options(**changes: Any) -> WorkerOptions:
    """A worker on the emulator; ``emulator`` holds its settings."""
    settings = changes.pop("emulator", {})
    quick = {"run_seconds": 20.0, "open_seconds": 20.0, "start_seconds": 20.0}
    return dataclasses.replace(emulated_worker(**settings), **{**quick, **changes})


def altered_worker(folder: Path, old: str, new: str) -> Path:
    """The worker's file with one change in its sources."""
    files = package_files("clipmlu.magicmind.driver", PACKAGE)
    (changed,) = [path for path, content in files.items() for _ in range(content.count(old.encode()))]
    files[changed] = files[changed].replace(old.encode(), new.encode())
    path = folder / "altered.pyz"
    path.write_bytes(make_archive(files, ENTRY))
    return path


def open_request(model: Path, **changes: Any) -> OpenRequest:
    return OpenRequest(**{"model": model, "tower": tower(WIDTH, OUT), "ranges": RANGES, **changes})


def tower(width: int, out: int) -> Tower:
    """Inputs and outputs of a graph that takes rows of ``width`` numbers and gives rows of ``out``."""
    ends = [TensorSpec(name=name, dtype="float32", shape=("batch", size)) for name, size in (("x", width), ("y", out))]
    return Tower(file="graph.mm", inputs=(ends[0],), outputs=(ends[1],))


def children() -> set[int]:
    """Processes that this one has started and that live, or wait to be collected."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found |= {int(pid) for pid in (task / "children").read_text().split()}
        except OSError:  # a thread that has just ended
            continue
    return found
