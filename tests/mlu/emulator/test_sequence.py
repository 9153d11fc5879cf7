"""The CLIP sample's call sequence, from the ONNX file to the logits (magicmind-api.md 6.2 to 6.4)."""

from __future__ import annotations

import gc
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from onnx import helper

from mlu.emulator.calls import (
    FLOAT,
    Runner,
    build,
    calibrate,
    clip_like,
    configure,
    linear,
    parse,
    reference,
    save_graph,
)

TEXTS = 6
RANGE = {"dim_range": {"0": {"min": [1, 3, 4, 4], "max": [8, 3, 4, 4]}, "1": {"min": [TEXTS, 5], "max": [TEXTS, 5]}}}


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return clip_like(tmp_path / "clip.onnx")


def _batch(rows: int, seed: int = 1) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, 3, 4, 4)), rng.integers(0, 50, (TEXTS, 5))


def _network(mm: ModuleType, graph: Path, batch: int) -> Any:
    network = parse(mm, graph)
    assert (network.get_input_count(), network.get_output_count()) == (2, 2)
    for index, sizes in enumerate(([1, 3, 4, 4], [3, 5])):
        assert network.get_input(index).get_dimension().GetDims() == sizes
        assert network.get_input(index).set_dimension(mm.Dims(sizes)).ok()
    for index, size in enumerate((batch, TEXTS)):
        dims = network.get_input(index).get_dimension().GetDims()
        dims[0] = size
        assert network.get_input(index).set_dimension(mm.Dims(dims)).ok()
    assert network.get_output(0).get_dimension().GetDims() == [batch, TEXTS]
    return network


def _config(mm: ModuleType, name: str, *, dynamic: bool) -> Any:
    config = mm.BuilderConfig()
    config.mlu_archs = ["mtp_372"]
    parts = [
        '{"precision_config":{"precision_mode":"' + name + '"}}',
        *(['{"precision_config": {"weight_quant_granularity": "per_tensor"}}'] if "int" in name else []),
        *(['{"precision_config": {"activation_quant_algo":"symmetric"}}'] if "int" in name else []),
        '{"archs": [{"mtp_372": [2, 6, 8]}]}',
        f'{{"graph_shape_mutable":{str(dynamic).lower()}}}',
        *(
            [
                '{"dim_range": {"0":{"min":[1,3,4,4],"max":[8,3,4,4]},"1":{"min":[6,5],"max":[6,5]}}}',
            ]
            if dynamic
            else []
        ),
        '{"computation_preference":"auto"}',
        '{"opt_config":{"type64to32_conversion":true}}',
        '{"opt_config":{"conv_scale_fold":true}}',
    ]
    for part in parts:
        assert config.parse_from_string(part).ok()
    return config


@pytest.mark.parametrize("name", ["force_float32", "force_float16", "qint8_mixed_float16", "qint16_mixed_float32"])
def test_build_serialise_and_run(mm: ModuleType, mode: str, graph: Path, tmp_path: Path, name: str) -> None:
    network = _network(mm, graph, 4)
    config = _config(mm, name, dynamic=True)
    images, texts = _batch(32)
    if "int" in name:
        samples = [images[begin : begin + 4].astype(np.float32) for begin in range(0, 32, 4)]
        assert calibrate(mm, network, config, samples, [texts.astype(np.int32)] * 8).ok()
    model = build(mm, network, config)
    assert model.serialize_to_file(str(tmp_path / "clip_model")).ok()
    assert model.get_input_names() == ["image", "text"]
    assert model.get_output_names() == ["logits_per_image", "logits_per_text"]
    assert model.get_input_data_types() == [mm.DataType.FLOAT32, mm.DataType.INT32]
    assert model.get_output_data_types() == [mm.DataType.FLOAT32, mm.DataType.FLOAT32]
    assert [dims.GetDims() for dims in model.get_input_dimensions()] == [[-1, 3, 4, 4], [TEXTS, 5]]
    assert [dims.GetDims() for dims in model.get_output_dimensions()] == [[-1, TEXTS], [TEXTS, -1]]

    loaded = mm.Model()
    assert loaded.deserialize_from_file(str(tmp_path / "clip_model")).ok()
    assert (loaded.get_input_num(), loaded.get_output_num()) == (2, 2)
    with mm.System() as system:
        assert system.device_count() == 1
        runner = Runner(mm, loaded)
    for rows in (8, 3, 1):
        expected = reference(graph, images[:rows].astype(np.float32), texts)
        logits, turned = runner(images[:rows], texts)  # float64 images and int64 tokens, as the sample hands them over
        assert (logits.dtype, logits.shape, turned.shape) == (np.float32, (rows, TEXTS), (TEXTS, rows))
        relative = np.abs(logits - expected[0]).max() / np.abs(expected[0]).max()
        assert relative <= {"force_float32": 1e-6, "force_float16": 3e-3, "qint16_mixed_float32": 1e-3}.get(name, 0.05)
        assert (relative > 0) or name == "force_float32"
        np.testing.assert_array_equal(turned, logits.T)


def test_objects_die_in_the_samples_order(mm: ModuleType, graph: Path) -> None:
    runner = Runner(mm, build(mm, _network(mm, graph, 2), _config(mm, "force_float32", dynamic=False)))
    result = runner(*_batch(2))[0].copy()
    for name in ("inputs", "context", "engine", "queue", "dev"):
        delattr(runner, name)
    gc.collect()
    assert np.isfinite(result).all()


def test_context_outlives_engine_and_model(mm: ModuleType, graph: Path) -> None:
    """Bert's init_model returns context and queue only; nothing else stays referenced."""
    runner = Runner(mm, build(mm, _network(mm, graph, 2), _config(mm, "force_float32", dynamic=False)))
    del runner.engine
    gc.collect()
    assert np.isfinite(runner(*_batch(2))[0]).all()


def test_a_static_model_reports_fixed_shapes(mm: ModuleType, mode: str, graph: Path) -> None:
    model = build(mm, _network(mm, graph, 4), _config(mm, "force_float32", dynamic=False))
    assert [dims.GetDims() for dims in model.get_input_dimensions()] == [[4, 3, 4, 4], [TEXTS, 5]]
    assert [dims.GetDims() for dims in model.get_output_dimensions()] == [[4, TEXTS], [TEXTS, 4]]
    assert model.get_input_dimension(0).GetDims() == [4, 3, 4, 4]
    assert model.get_input_data_type(1) is mm.DataType.INT32


def test_strided_views_are_taken(mm: ModuleType, mode: str, graph: Path) -> None:
    runner = Runner(mm, build(mm, _network(mm, graph, 4), _config(mm, "force_float32", dynamic=True)))
    images, texts = _batch(4)
    images = np.ascontiguousarray(images.astype(np.float32).transpose(0, 2, 3, 1))
    view = images[..., ::-1].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(runner(view, texts)[0], reference(graph, view.copy(), texts)[0], rtol=1e-5, atol=1e-5)


def test_a_reused_list_gets_the_new_results_at_the_same_places(mm: ModuleType, mode: str, graph: Path) -> None:
    """MC-13 clip, resnext50, u2net, fsanet: ``outputs = []`` once, before the loop."""
    runner = Runner(mm, build(mm, _network(mm, graph, 4), _config(mm, "force_float32", dynamic=True)))
    outputs: list[Any] = []
    for seed in range(3):
        images, texts = _batch(4, seed)
        runner.start(images, texts, outputs=outputs)
        assert runner.queue.sync().ok()
        assert len(outputs) == 2
        expected = reference(graph, images.astype(np.float32), texts)[0]
        np.testing.assert_allclose(outputs[0].asnumpy(), expected, rtol=1e-5, atol=1e-5)
    outputs.clear()
    runner.start(images[:2], texts, outputs=outputs)
    assert runner.queue.sync().ok()
    assert outputs[0].shape == (2, TEXTS)


def test_created_outputs_are_filled_in_place(mm: ModuleType, mode: str, graph: Path) -> None:
    runner = Runner(mm, build(mm, _network(mm, graph, 4), _config(mm, "force_float32", dynamic=True)))
    images, texts = _batch(5)
    for tensor, array in zip(runner.inputs, (images, texts), strict=True):
        assert tensor.from_numpy(array).ok()
    outputs = runner.context.create_outputs(runner.inputs)
    assert [tensor.shape for tensor in outputs] == [(5, TEXTS), (TEXTS, 5)]
    first = outputs[0]
    assert runner.context.enqueue(runner.inputs, outputs, runner.queue).ok()
    assert runner.queue.sync().ok()
    assert outputs[0] is first
    np.testing.assert_allclose(
        first.asnumpy(), reference(graph, images.astype(np.float32), texts)[0], rtol=1e-5, atol=1e-5
    )


def test_results_go_from_one_context_to_another_on_the_card(mm: ModuleType, mode: str, tmp_path: Path) -> None:
    """MC-old tacotron2; nothing is synchronised in between."""
    weight = np.array([[1, 2], [3, 4]], np.float32)
    model = build(mm, parse(mm, linear(tmp_path / "m.onnx", weight)), configure(mm, {"graph_shape_mutable": False}))
    first, second = Runner(mm, model), Runner(mm, model)
    x = np.ones((2, 2), np.float32)
    middle = first.start(x)
    outputs: list[Any] = []
    assert second.context.enqueue(middle, outputs, first.queue).ok()
    assert first.queue.sync().ok()
    np.testing.assert_array_equal(outputs[0].asnumpy(), x @ weight @ weight)


def test_uint8_input_is_normalised_in_the_model(mm: ModuleType, mode: str, tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="Conv_0", kernel_shape=[1, 1])
    weight = np.arange(6, dtype=np.float32).reshape(2, 3, 1, 1)
    path = save_graph(
        tmp_path / "c.onnx", [node], [("x", FLOAT, [1, 3, 2, 2])], [("y", FLOAT, [1, 2, 2, 2])], {"w": weight}
    )
    mean, variance = [10.0, 20.0, 30.0], [4.0, 9.0, 16.0]
    config = configure(mm, {"insert_bn_before_firstnode": {"0": {"mean": mean, "var": variance}}})
    model = build(mm, parse(mm, path), config)
    assert model.get_input_data_types() == [mm.DataType.UINT8]
    x = np.random.default_rng(0).integers(0, 256, (1, 3, 2, 2), dtype=np.uint8)
    normal = (x - np.reshape(mean, (1, 3, 1, 1))) / np.sqrt(np.reshape(variance, (1, 3, 1, 1)))
    np.testing.assert_allclose(Runner(mm, model)(x)[0], reference(path, normal.astype(np.float32))[0], rtol=1e-5)


def test_layouts_are_converted_and_ranges_keep_the_networks_own(mm: ModuleType, mode: str, tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="Relu_0")
    path = save_graph(tmp_path / "c.onnx", [node], [("x", FLOAT, [1, 3, 2, 4])], [("y", FLOAT, [1, 3, 2, 4])], {})
    swap = {"0": {"src": "NCHW", "dst": "NHWC"}}
    limits = {"0": {"min": [1, 3, 2, 4], "max": [5, 3, 2, 4]}}
    config = configure(
        mm,
        {"convert_input_layout": swap, "convert_output_layout": swap},
        {"graph_shape_mutable": True, "dim_range": limits},
    )
    model = build(mm, parse(mm, path), config)
    assert model.get_input_dimensions()[0].GetDims() == [-1, 2, 4, 3]
    assert model.get_output_dimensions()[0].GetDims() == [-1, 2, 4, 3]
    x = np.random.default_rng(0).standard_normal((3, 2, 4, 3)).astype(np.float32)
    np.testing.assert_array_equal(Runner(mm, model)(x)[0], np.maximum(x, 0))


def test_pixels_collected_as_float64_are_taken_as_uint8(mm: ModuleType, mode: str, tmp_path: Path) -> None:
    """MC swintransformer, resnet50_pytorch and mobilenetv3 infer.py: a float64 buffer for a model built with means and vars.

    The network is built as MC swintransformer's: means and vars, and the pixels as NHWC.
    """
    node = helper.make_node("Relu", ["x"], ["y"], name="Relu_0")
    path = save_graph(tmp_path / "c.onnx", [node], [("x", FLOAT, [1, 3, 2, 2])], [("y", FLOAT, [1, 3, 2, 2])], {})
    mean, variance = [123.675, 116.28, 103.53], [3409.976, 3262.694, 3291.89]
    config = configure(
        mm,
        {"insert_bn_before_firstnode": {"0": {"mean": mean, "var": variance}}},
        {"convert_input_layout": {"0": {"src": "NCHW", "dst": "NHWC"}}},
        {"graph_shape_mutable": True},
        {"dim_range": {"0": {"min": [1, 3, 2, 2], "max": [64, 3, 2, 2]}}},
    )
    model = build(mm, parse(mm, path), config)
    assert model.get_input_data_types() == [mm.DataType.UINT8]
    pixels = np.random.default_rng(0).integers(0, 256, (4, 2, 2, 3), dtype=np.uint8)
    buffer = np.empty([4, 2, 2, 3])
    for row, image in enumerate(pixels):
        buffer[row] = image
    runner = Runner(mm, model)
    result = runner(buffer)[0].copy()
    normal = ((pixels - np.array(mean)) / np.sqrt(variance)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(result, np.maximum(normal, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(runner(pixels)[0], result)


@pytest.mark.parametrize(("declared", "handed"), [([2, 3], [2, 1, 3]), ([1, 3], [3])])
def test_a_calibration_sample_has_the_declared_shape(
    mm: ModuleType, mode: str, tmp_path: Path, declared: list[int], handed: list[int]
) -> None:
    """MC swintransformer hands over an axis more than it declares, MC paddledetection one less."""
    samples = [np.random.default_rng(seed).standard_normal(declared).astype(np.float32) for seed in range(3)]

    class CalibData(mm.CalibDataInterface):  # type: ignore[misc, name-defined]
        index, current, shape = 0, np.empty(0), handed

        def next(self) -> Any:
            if self.index == len(samples):
                return mm.Status(mm.Code.OUT_OF_RANGE, "Data end reached")
            self.current = samples[self.index].reshape(self.shape)
            self.index += 1
            return mm.Status.OK()

        def reset(self) -> Any:
            self.index = 0
            return mm.Status.OK()

        def get_shape(self) -> Any:
            return mm.Dims(declared)

        def get_data_type(self) -> Any:
            return mm.DataType.FLOAT32

        def get_sample(self) -> Any:
            return self.current

    class Plain(CalibData):
        shape = declared

    class Short(CalibData):
        def get_shape(self) -> Any:
            return mm.Dims([7, 3])

    def run(data: Any) -> tuple[Any, Any]:
        network = parse(mm, linear(tmp_path / "m.onnx", np.eye(3), batch=declared[0]))
        config = configure(mm, {"precision_config": {"precision_mode": "qint8_mixed_float32"}})
        status = mm.Calibrator([data]).calibrate(network, config)
        return status, Runner(mm, build(mm, network, config))(samples[0])[0] if status.ok() else None

    (status, result), (_, plain) = run(CalibData()), run(Plain())
    assert status.ok(), status
    np.testing.assert_array_equal(result, plain)
    assert "get_shape says [7, 3], the sample has" in str(run(Short())[0])


def test_sizes_padded_to_whole_windows_are_computed(mm: ModuleType, mode: str, tmp_path: Path) -> None:
    """MC swintransformer exports torchvision 0.14's swin_t at opset 11: each block pads by ``(w - size % w) % w``."""
    node = helper.make_node
    nodes = [
        node("Shape", ["x"], ["shape"], name="Shape_0"),
        node("Gather", ["shape", "one"], ["size"], name="Gather_1", axis=0),
        node("Mod", ["size", "window"], ["over"], name="Mod_2", fmod=0),
        node("Sub", ["window", "over"], ["lack"], name="Sub_3"),
        node("Mod", ["lack", "window"], ["more"], name="Mod_4", fmod=0),
        node("Concat", ["before", "more"], ["pads"], name="Concat_5", axis=0),
        node("Pad", ["x", "pads"], ["y"], name="Pad_6", mode="constant"),
    ]
    weights = {"one": np.array([1]), "window": np.array([7]), "before": np.array([0, 0, 0])}
    path = save_graph(tmp_path / "p.onnx", nodes, [("x", FLOAT, ["n", 5])], [("y", FLOAT, ["n", 7])], weights)
    config = configure(
        mm,
        {"opt_config": {"type64to32_conversion": True}, "graph_shape_mutable": True},
        {"dim_range": {"0": {"min": [1, 5], "max": [64, 5]}}},
    )
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    model = build(mm, parse(mm, path), config)
    np.testing.assert_array_equal(Runner(mm, model)(x)[0], np.pad(x, ((0, 0), (0, 2))))


def test_set_data_type_changes_inputs_and_outputs_at_run_time(mm: ModuleType, mode: str, tmp_path: Path) -> None:
    network = parse(mm, linear(tmp_path / "m.onnx", np.eye(3)))
    assert network.get_input(0).set_data_type(mm.DataType.FLOAT16).ok()
    assert network.get_output(0).set_data_type(mm.DataType.FLOAT16).ok()
    assert network.get_input(0).get_data_type() is mm.DataType.FLOAT16
    model = build(mm, network, configure(mm, {}))
    assert model.get_input_data_types() == model.get_output_data_types() == [mm.DataType.FLOAT16]
    x = np.ones((2, 3), np.float16)
    result = Runner(mm, model)(x)[0]
    assert result.dtype == np.float16
    np.testing.assert_array_equal(result, x)


def test_nodes_and_tensors_can_be_looked_up(mm: ModuleType, graph: Path) -> None:
    network = parse(mm, graph)
    nodes = network.get_all_nodes_in_network()
    assert nodes[0].get_node_name() == "Conv_0"
    assert nodes[0].get_node_type() == "IConvNode"
    node = network.find_node_by_name("MatMul_7")
    assert (node.get_input_count(), node.get_output_count()) == (2, 1)
    assert node.get_output(0).get_consumers()[0].get_node_name() == "Mul_11"
    assert node.get_output(0).get_producer().get_node_name() == "MatMul_7"
    assert network.find_tensor_by_name("flat").get_tensor_name() == "flat"
    assert network.find_tensor_by_name("nothing") is None
    assert network.find_node_by_name("nothing") is None
    assert network.mark_output(network.find_tensor_by_name("image_features")).ok()
    assert network.get_output_count() == 3


def test_inputs_tell_their_shape_while_the_graph_does_not_fit(mm: ModuleType, tmp_path: Path) -> None:
    """model_process.py reads and sets one input after the other; a graph with a fixed batch inside fails at its build."""
    nodes = [helper.make_node("Add", ["x", "row"], ["y"], name="Add_0")]
    graph = save_graph(
        tmp_path / "fixed.onnx",
        nodes,
        [("x", FLOAT, [3, 2])],
        [("y", FLOAT, [3, 2])],
        {"row": np.ones((3, 2), np.float32)},
    )
    network = parse(mm, graph)
    tensor = network.get_input(0)
    assert tensor.set_dimension(mm.Dims([5, 2])).ok()
    dims = tensor.get_dimension().GetDims()
    assert dims == [5, 2]
    assert tensor.get_data_type() is mm.DataType.FLOAT32
    assert network.get_output(0).get_dimension().GetDims() == []
    assert mm.Builder().build_model("m", network, configure(mm, {})) is None
    assert tensor.set_dimension(mm.Dims([3, 2])).ok()
    assert network.get_output(0).get_dimension().GetDims() == [3, 2]
    assert mm.Builder().build_model("m", network, configure(mm, {})) is not None


@pytest.mark.parametrize("kind", ["kCaffe", "kPytorch", "kTensorflow"])
def test_other_frameworks_are_refused(mm: ModuleType, tmp_path: Path, kind: str) -> None:
    status = mm.Parser(mm.ModelKind[kind]).parse(mm.Network(), str(tmp_path / "x"))
    assert not status.ok()
    assert f"emulates the SDK's ONNX parser only, not that of {kind}" in str(status)
