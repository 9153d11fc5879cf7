"""What the session options of the CPU runtime are for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from clipmlu.backends import SessionOptions
from clipmlu.backends.onnxruntime import (
    OnnxRuntimeBackend,
    OnnxRuntimeSession,
    fast_int8_is_exact,
    int8_products,
)
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.bundle.manifest import Tower
from clipmlu.errors import SessionError
from clipmlu.specs import Precision, TensorSpec

DEPTH, WIDTH = 64, 32


@pytest.mark.parametrize("weights", ["stored", "computed"])
def test_the_largest_integer_products_are_exact(tmp_path: Path, weights: str) -> None:
    """64 products of 127 and 127: pairs of them do not fit into 16 bits. A CPU without VNNI gives 8,160 here by default."""
    node = helper.make_node
    levels = np.full((DEPTH, WIDTH), 127, np.int8)
    constants = {"one": np.float32(1), "zero": np.int8(0)}
    nodes = [
        node("QuantizeLinear", ["x", "one", "zero"], ["x_levels"]),
        node("DequantizeLinear", ["x_levels", "one", "zero"], ["x_again"]),
    ]
    if weights == "stored":
        constants["w_levels"] = levels  # type: ignore[assignment]
    else:
        nodes += [
            node("Transpose", ["x"], ["flipped"]),
            node("QuantizeLinear", ["flipped", "one", "zero"], ["w_levels"]),
        ]
    nodes += [
        node("DequantizeLinear", ["w_levels", "one", "zero"], ["w"]),
        node("MatMul", ["x_again", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "largest",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [WIDTH, DEPTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [WIDTH, WIDTH])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    path = tmp_path / "largest.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7), path)
    tower = Tower(
        file=path.name,
        inputs=(TensorSpec(name="x", dtype="float32", shape=(WIDTH, DEPTH)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(WIDTH, WIDTH)),),
    )
    with OnnxRuntimeSession(tower, path, "test", SessionOptions(), Precision.QINT8_MIXED_FLOAT32) as session:
        result = session.run({"x": np.full((WIDTH, DEPTH), 127, np.float32)})["y"]
    np.testing.assert_array_equal(result, np.full((WIDTH, WIDTH), DEPTH * 127 * 127, np.float32))


class _InexactFastKernels(onnxruntime.InferenceSession):  # type: ignore[misc]
    """onnxruntime as on a CPU without VNNI: its fast kernels miss the largest products."""

    opened: ClassVar[list[str]] = []

    def __init__(self, model: Any, settings: onnxruntime.SessionOptions, **options: Any) -> None:
        super().__init__(model, settings, **options)
        try:
            self.kernels = settings.get_session_config_entry("session.x64quantprecision")
        except RuntimeError:  # it is not set
            self.kernels = "0"
        self.opened.append(self.kernels)

    def run(self, *arguments: Any) -> Any:
        results = super().run(*arguments)
        return results if self.kernels == "1" else [np.minimum(result, 2.0**15) for result in results]


def _kernels_of_a_session(compiled: CompiledBundle, precision: Precision) -> str:
    _InexactFastKernels.opened.clear()
    label, path = "test", compiled.tower_path("image")
    OnnxRuntimeSession(compiled.tower("image"), path, label, SessionOptions(), precision).close()
    return _InexactFastKernels.opened[-1]


@pytest.mark.parametrize("inexact", [False, True])
def test_slower_kernels_are_taken_only_where_the_fast_ones_are_inexact(
    compiled: CompiledBundle, monkeypatch: pytest.MonkeyPatch, inexact: bool
) -> None:
    if not inexact and not fast_int8_is_exact():
        pytest.skip("this CPU has no VNNI: onnxruntime's fast kernels are inexact here")
    if not inexact:
        monkeypatch.setattr(_InexactFastKernels, "run", onnxruntime.InferenceSession.run)
    monkeypatch.setattr(onnxruntime, "InferenceSession", _InexactFastKernels)
    fast_int8_is_exact.cache_clear()
    try:
        assert _kernels_of_a_session(compiled, Precision.QINT8_MIXED_FLOAT32) == ("1" if inexact else "0")
        assert _kernels_of_a_session(compiled, Precision.FORCE_FLOAT32) == "0"  # no 8-bit product in it
        words = "slower 8-bit kernels" if inexact else "fast 8-bit kernels"
        assert OnnxRuntimeBackend().kernels(Precision.QINT8_MIXED_FLOAT32).startswith(words)
        assert OnnxRuntimeBackend().kernels(Precision.FORCE_FLOAT32) == ""
    finally:
        fast_int8_is_exact.cache_clear()


def test_both_kinds_of_kernels_compute_the_same_where_the_fast_ones_are_said_to_be_exact() -> None:
    generator = np.random.default_rng(0)
    rows = generator.integers(-127, 128, (48, 256)).astype(np.int8)
    weights = generator.integers(124, 128, (256, 32)).astype(np.int8)
    exact = rows.astype(np.int64) @ weights.astype(np.int64)
    np.testing.assert_array_equal(int8_products(rows, weights, fast=False), exact)
    if fast_int8_is_exact():
        np.testing.assert_array_equal(int8_products(rows, weights), exact)


def test_closing_ends_the_batch_that_runs_and_drops_those_that_wait(tmp_path: Path) -> None:
    """A batch of a large model takes seconds on a CPU, and Ctrl-C must not wait for it."""
    steps, side = 4000, 320
    weight = numpy_helper.from_array(np.eye(side, dtype=np.float32), "w")
    nodes = [helper.make_node("MatMul", [f"x{step}", "w"], [f"x{step + 1}"]) for step in range(steps)]
    shape = [side, side]
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"x{steps}", TensorProto.FLOAT, shape)],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "s.onnx")
    tensors = [TensorSpec(name=name, dtype="float32", shape=(side, side)) for name in ("x0", f"x{steps}")]
    tower = Tower(file="s.onnx", inputs=(tensors[0],), outputs=(tensors[1],))
    session = OnnxRuntimeSession(tower, tmp_path / "s.onnx", "slow", SessionOptions(threads=1))
    running, waiting = (session.submit({"x0": np.ones(shape, np.float32)}) for _ in range(2))
    while not running._pending.running():  # type: ignore[attr-defined]
        time.sleep(0.001)
    session.close()
    with pytest.raises(SessionError, match="slow: the session was closed while the batch ran"):
        running.result()
    with pytest.raises(SessionError, match="slow: the session was closed before the batch began"):
        waiting.result()


def test_nothing_is_kept_or_sent_about_the_user(compiled: CompiledBundle, tmp_path: Path) -> None:
    """onnxruntime's telemetry leaves a device id and a queue of events in the home directory, whether it can send or not."""
    program = f"""
import numpy as np, clipmlu
with clipmlu.load({str(compiled.path)!r}) as model:
    model.encode_images(np.ones((1, 3, 8, 8), np.float32))
"""
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    assert list(home.rglob("*")) == []
