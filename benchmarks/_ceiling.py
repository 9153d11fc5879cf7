"""The speed of matrix products of the image tower's shapes on this machine, by all installed libraries.

float32, bfloat16 if the CPU has instructions for it, and int8 (unsigned or signed rows, signed weights, int32 sums).
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from _runtimes import open_onnxruntime, open_openvino
from _timing import cpu_flags, rotated
from onnx import TensorProto, helper, numpy_helper

SHAPES = ((1600, 768, 3072), (1600, 3072, 768), (1600, 768, 768))
"""Rows, depth, columns of a block's products at batch 32, 50 tokens per image."""

_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})

Product = Callable[[], object]
Maker = Callable[[int, int, int, int], Product]


def measure_ceiling(threads: int, rounds: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Measure every library and type at every shape.

    Returns:
        Rows with ``dtype``, ``way``, ``shape`` and ``gflops`` (the median); and a map from a library that cannot run to
            the
        reason.
    """
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    if not cpu_flags() & _BFLOAT16_FLAGS:
        left_out["bfloat16"] = f"this CPU has none of the instructions {', '.join(sorted(_BFLOAT16_FLAGS))}"
    for dtype, way, maker in _ways():
        try:
            for shape in SHAPES:
                rows.append(
                    {"dtype": dtype, "way": way, "shape": shape, "product": maker(*shape, threads), "times": []}
                )
        except Exception as error:  # each library raises another type
            left_out[f"{way}, {dtype}"] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
            rows = [row for row in rows if (row["dtype"], row["way"]) != (dtype, way)]
    for number in range(1 + rounds):
        for index in rotated([str(index) for index in range(len(rows))], number):
            row = rows[int(index)]
            start = time.perf_counter()
            row["product"]()
            if number:
                row["times"].append(time.perf_counter() - start)
    for row in rows:
        height, depth, width = row["shape"]
        row["gflops"] = 2e-9 * height * depth * width / statistics.median(row.pop("times"))
        del row["product"]
    return rows, left_out


def best_rates(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the fastest row of each dtype."""
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["dtype"] not in best or row["gflops"] > best[row["dtype"]]["gflops"]:
            best[row["dtype"]] = row
    return best


def _ways() -> Iterator[tuple[str, str, Maker]]:
    yield "float32", "numpy", _numpy
    yield "float32", "torch.mm", _torch_mm("float32")
    yield "float32", "torch oneDNN linear", _torch_linear("float32")
    yield "float32", "onnxruntime MatMul", _onnxruntime_float
    yield "float32", "OpenVINO MatMul", _openvino("f32")
    if cpu_flags() & _BFLOAT16_FLAGS:
        yield "bfloat16", "torch.mm", _torch_mm("bfloat16")
        yield "bfloat16", "torch oneDNN linear", _torch_linear("bfloat16")
        yield "bfloat16", "OpenVINO MatMul", _openvino("bf16")
    yield "int8", "torch quantised linear, x86", _torch_quantised("x86")
    yield "int8", "torch quantised linear, fbgemm", _torch_quantised("fbgemm")
    yield "int8", "torch quantised linear, onednn", _torch_quantised("onednn")
    yield "int8", "onnxruntime MatMulInteger, uint8", _onnxruntime_integer(np.uint8)
    yield "int8", "onnxruntime MatMulInteger, int8", _onnxruntime_integer(np.int8)


def _operands(rows: int, depth: int, columns: int) -> tuple[Any, Any]:
    generator = np.random.default_rng(0)
    return (
        generator.standard_normal((rows, depth), dtype=np.float32),
        generator.standard_normal((depth, columns), dtype=np.float32),
    )


def _numpy(rows: int, depth: int, columns: int, threads: int) -> Product:
    left, right = _operands(rows, depth, columns)
    result = np.empty((rows, columns), np.float32)
    return lambda: np.matmul(left, right, out=result)


def _torch_mm(dtype: str) -> Maker:
    def make(rows: int, depth: int, columns: int, threads: int) -> Product:
        import torch

        torch.set_num_threads(threads)
        left, right = (torch.from_numpy(array).to(getattr(torch, dtype)) for array in _operands(rows, depth, columns))
        result = left @ right
        return lambda: torch.mm(left, right, out=result)

    return make


def _torch_linear(dtype: str) -> Maker:
    """Measure oneDNN with weights in its own layout, as torch.compile's frozen graphs call it."""

    def make(rows: int, depth: int, columns: int, threads: int) -> Product:
        import torch

        torch.set_num_threads(threads)
        left, right = (torch.from_numpy(array).to(getattr(torch, dtype)) for array in _operands(rows, depth, columns))
        packed = torch.ops.mkldnn._reorder_linear_weight(right.t().contiguous(), rows)
        return lambda: torch.ops.mkldnn._linear_pointwise(left, packed, None, "none", [], "")

    return make


def _torch_quantised(engine: str) -> Maker:
    def make(rows: int, depth: int, columns: int, threads: int) -> Product:
        import torch

        torch.set_num_threads(threads)
        torch.backends.quantized.engine = engine
        left, right = (torch.from_numpy(array) for array in _operands(rows, depth, columns))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the successor is in another package
            quantised = torch.quantize_per_tensor(left, 0.05, 64, torch.quint8)
            weights = torch.quantize_per_tensor(right.t().contiguous(), 0.05, 0, torch.qint8)
            packed = torch.ops.quantized.linear_prepack(weights, None)

        def run() -> object:
            torch.backends.quantized.engine = engine
            return torch.ops.quantized.linear(quantised, packed, 0.5, 64)

        return run

    return make


def _onnxruntime_float(rows: int, depth: int, columns: int, threads: int) -> Product:
    left, right = _operands(rows, depth, columns)
    session = open_onnxruntime(_product_graph("MatMul", left, right, TensorProto.FLOAT), threads)
    return lambda: session.run(None, {"x": left})


def _onnxruntime_integer(dtype: type[Any]) -> Maker:
    def make(rows: int, depth: int, columns: int, threads: int) -> Product:
        left, right = (np.clip(array * 20, -127, 127) for array in _operands(rows, depth, columns))
        levels = (left + (128 if dtype is np.uint8 else 0)).astype(dtype)
        graph = _product_graph("MatMulInteger", levels, right.astype(np.int8), TensorProto.INT32)
        session = open_onnxruntime(graph, threads)
        return lambda: session.run(None, {"x": levels})

    return make


def _openvino(precision: str) -> Maker:
    def make(rows: int, depth: int, columns: int, threads: int) -> Product:
        left, right = _operands(rows, depth, columns)
        compiled = open_openvino(_product_graph("MatMul", left, right, TensorProto.FLOAT), threads, precision)
        request = compiled.create_infer_request()
        return lambda: request.infer({"x": left}, share_inputs=True, share_outputs=True)

    return make


def _product_graph(operator: str, left: Any, right: Any, result: int) -> bytes:
    """Return a graph of one product with constant weights, as in the tower."""
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(left.dtype), left.shape)],
        [helper.make_tensor_value_info("y", result, (left.shape[0], right.shape[1]))],
        [numpy_helper.from_array(right, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(model.SerializeToString())
