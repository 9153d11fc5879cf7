"""Small ONNX graphs and the documented call sequences of the SDK (magicmind-api.md 6.2 to 6.4), call by call."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def save_graph(
    path: Path,
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    weights: dict[str, Any],
    opset: int = 11,
) -> Path:
    """Write a graph; inputs and outputs are (name, type, shape)."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6), path)
    return path


def clip_like(path: Path, seed: int = 0) -> Path:
    """A two-input graph exported as the CLIP sample's is: image batch 1, 3 texts, int64 tokens, computed reshapes."""
    rng = np.random.default_rng(seed)
    weights = {
        "conv_w": rng.standard_normal((6, 3, 2, 2)).astype(np.float32),
        "conv_b": rng.standard_normal(6).astype(np.float32),
        "proj_w": rng.standard_normal((24, 8)).astype(np.float32),
        "table": rng.standard_normal((50, 8)).astype(np.float32),
        "text_w": rng.standard_normal((8, 8)).astype(np.float32),
        "zero": np.array(0),
        "rest": np.array([-1]),
        "scale": np.array(2.5, np.float32),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "conv_w", "conv_b"], ["patches"], name="Conv_0", kernel_shape=[2, 2], strides=[2, 2]),
        node("Relu", ["patches"], ["active"], name="Relu_1"),
        node("Shape", ["active"], ["shape"], name="Shape_2"),
        node("Gather", ["shape", "zero"], ["batch"], name="Gather_3", axis=0),
        node("Unsqueeze", ["batch"], ["batch_1"], name="Unsqueeze_4", axes=[0]),
        node("Concat", ["batch_1", "rest"], ["flat_shape"], name="Concat_5", axis=0),
        node("Reshape", ["active", "flat_shape"], ["flat"], name="Reshape_6"),
        node("MatMul", ["flat", "proj_w"], ["image_features"], name="MatMul_7"),
        node("Gather", ["table", "text"], ["embedded"], name="Gather_8", axis=0),
        node("ReduceMean", ["embedded"], ["pooled"], name="ReduceMean_9", axes=[1], keepdims=0),
        node("MatMul", ["pooled", "text_w"], ["text_features"], name="MatMul_10"),
        node("Mul", ["image_features", "scale"], ["scaled"], name="Mul_11"),
        node("Transpose", ["text_features"], ["turned"], name="Transpose_12", perm=[1, 0]),
        node("MatMul", ["scaled", "turned"], ["logits_per_image"], name="MatMul_13"),
        node("Transpose", ["logits_per_image"], ["logits_per_text"], name="Transpose_14", perm=[1, 0]),
    ]
    return save_graph(
        path,
        nodes,
        [("image", FLOAT, [1, 3, 4, 4]), ("text", INT64, [3, 5])],
        [("logits_per_image", FLOAT, [1, 3]), ("logits_per_text", FLOAT, [3, 1])],
        weights,
    )


def linear(path: Path, weight: Any, *, batch: int | str = 2, names: tuple[str, str] = ("x", "y")) -> Path:
    """``y = x @ weight``."""
    weight = np.asarray(weight, np.float32)
    nodes = [helper.make_node("MatMul", [names[0], "w"], [names[1]], name="MatMul_0")]
    rows, columns = weight.shape
    return save_graph(
        path, nodes, [(names[0], FLOAT, [batch, rows])], [(names[1], FLOAT, [batch, columns])], {"w": weight}
    )


def reference(path: Path, *feeds: Any) -> list[Any]:
    """What ONNX's own reference gives."""
    model = onnx.load(path)
    names = [value.name for value in model.graph.input]
    return list(ReferenceEvaluator(model).run(None, dict(zip(names, feeds, strict=True))))


def parse(mm: ModuleType, path: Path) -> Any:
    network = mm.Network()
    status = mm.Parser(mm.ModelKind.kOnnx).parse(network, str(path))
    assert status.ok(), status
    return network


def configure(mm: ModuleType, *parts: Any) -> Any:
    config = mm.BuilderConfig()
    for part in parts:
        status = config.parse_from_string(json.dumps(part))
        assert status.ok(), status
    return config


def precision(name: str, **more: str) -> dict[str, Any]:
    return {"precision_config": {"precision_mode": name, **more}}


def calibrate(
    mm: ModuleType,
    network: Any,
    config: Any,
    *batches: Sequence[Any],
    algorithm: str = "LINEAR_ALGORITHM",
    listed: bool = True,
) -> Any:
    """One data object for each input, yielding the given batches, in a list or by itself; returns the Status."""

    class CalibData(mm.CalibDataInterface):  # type: ignore[misc, name-defined]
        def __init__(self, samples: Sequence[Any]) -> None:
            super().__init__()
            self.samples = samples
            self.next_index = 0

        def next(self) -> Any:
            if self.next_index >= len(self.samples):
                return mm.Status(mm.Code.OUT_OF_RANGE, "Data end reached")
            self.current = self.samples[self.next_index]  # not there before, as in MC resnet50_onnx
            self.next_index += 1
            return mm.Status.OK()

        def reset(self) -> Any:
            self.next_index = 0
            return mm.Status.OK()

        def get_shape(self) -> Any:
            return mm.Dims(self.current.shape)

        def get_data_type(self) -> Any:
            return mm.DataType[self.current.dtype.name.upper()]

        def get_sample(self) -> Any:
            return self.current

    data = [CalibData(samples) for samples in batches]
    calibrator = mm.Calibrator(data if listed else data[0])
    assert calibrator.set_quantization_algorithm(mm.QuantizationAlgorithm[algorithm]).ok()
    return calibrator.calibrate(network, config)


def build(mm: ModuleType, network: Any, config: Any) -> Any:
    model = mm.Builder().build_model("network", network, config)
    assert model is not None
    return model


class Runner:
    """Engine, context and queue of a model on one card, as MC mm_runner.py makes them."""

    def __init__(self, mm: ModuleType, model: Any, device: int = 0) -> None:
        self.dev = mm.Device()
        self.dev.id = device
        assert self.dev.active().ok()
        options = mm.Model.EngineConfig()
        options.device_type = "MLU"
        self.engine = model.create_i_engine(options)
        assert self.engine is not None
        self.context = self.engine.create_i_context()
        assert self.context is not None
        self.queue = self.dev.create_queue()
        assert self.queue is not None
        self.inputs = self.context.create_inputs()

    def start(self, *arrays: Any, outputs: list[Any] | None = None) -> list[Any]:
        for tensor, array in zip(self.inputs, arrays, strict=True):
            status = tensor.from_numpy(array)
            assert status.ok(), status
            tensor.to(self.dev)
        outputs = [] if outputs is None else outputs
        status = self.context.enqueue(self.inputs, outputs, self.queue)
        assert status.ok(), status
        return outputs

    def __call__(self, *arrays: Any) -> list[Any]:
        outputs = self.start(*arrays)
        status = self.queue.sync()
        assert status.ok(), status
        return [tensor.asnumpy() for tensor in outputs]
