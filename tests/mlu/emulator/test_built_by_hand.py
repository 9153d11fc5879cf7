"""Networks built by hand (magicmind-api.md 2.16), against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from onnx import helper

from mlu.emulator.calls import FLOAT, Runner, build, calibrate, configure, parse, precision, reference, save_graph

RNG = np.random.default_rng(3)


def _const(mm: ModuleType, network: Any, kind: str, sizes: list[int], value: Any) -> Any:
    return network.add_i_const_node(getattr(mm.DataType, kind), mm.Dims(sizes), value).get_output(0)


def _convolved(x: Any, kernel: Any, bias: Any, stride: Any, pad: Any, dilation: Any) -> Any:
    """NHWC, and a kernel of (outputs, height, width, inputs), sum by sum."""
    x = np.pad(x, ((0, 0), pad[:2], pad[2:], (0, 0)))
    outputs, high, wide, _ = kernel.shape
    rows = (x.shape[1] - (high - 1) * dilation[0] - 1) // stride[0] + 1
    columns = (x.shape[2] - (wide - 1) * dilation[1] - 1) // stride[1] + 1
    result = np.zeros((len(x), rows, columns, outputs))
    for row in range(rows):
        for column in range(columns):
            top, left = row * stride[0], column * stride[1]
            patch = x[:, top :: dilation[0], left :: dilation[1]][:, :high, :wide]
            result[:, row, column] = np.einsum("nhwc,ohwc->no", patch, kernel)
    return result + bias


def test_convolution_and_relu(mm: ModuleType, mode: str, tmp_path: Path) -> None:
    """S#33777239416: float64 data for FLOAT32 constants, no configuration, a Status asserted itself."""
    kernel, bias = RNG.uniform(-1, 1, (5, 3, 2, 4)), RNG.uniform(-1, 1, 5)
    network = mm.Network()
    x = network.add_input(mm.DataType.FLOAT32, mm.Dims([1, 9, 8, 4]))
    filters = network.add_i_const_node(mm.DataType.FLOAT32, mm.Dims(kernel.shape), kernel)
    offsets = network.add_i_const_node(mm.DataType.FLOAT32, mm.Dims(bias.shape), bias)
    conv = network.add_i_conv_node(x, filters.get_output(0), offsets.get_output(0))
    assert conv.set_stride(2, 1).ok()
    assert conv.set_pad(1, 0, 2, 1).ok()
    assert conv.set_dilation(1, 3).ok()
    assert conv.set_padding_mode(mm.IPaddingMode.EXPLICIT).ok()
    relu = network.add_i_activation_node(conv.get_output(0), mm.IActivation.RELU)
    assert network.mark_output(relu.get_output(0))
    assert (conv.get_node_type(), conv.get_node_name()) == ("IConvNode", "main/mm.conv2d")
    model = mm.Builder().build_model("conv_relu_model", network)
    assert model.serialize_to_file(str(tmp_path / "graph")).ok()
    loaded = mm.Model()
    assert loaded.deserialize_from_file(str(tmp_path / "graph")).ok()
    data = RNG.uniform(-1, 1, (1, 9, 8, 4)).astype(np.float32)
    expected = np.maximum(_convolved(data, kernel, bias, (2, 1), (1, 0, 2, 1), (1, 3)), 0)
    if mode == "strict":  # fixed shapes, as nothing says that they vary
        assert [dims.GetDims() for dims in loaded.get_output_dimensions()] == [list(expected.shape)]
    np.testing.assert_allclose(Runner(mm, loaded)(data)[0], expected, rtol=1e-4, atol=1e-5)


def test_the_filter_of_a_convolution_is_quantised_as_a_weight(mm: ModuleType) -> None:
    kernel = RNG.uniform(-1, 1, (2, 1, 1, 3)).astype(np.float32)
    network = mm.Network()
    x = network.add_input(mm.DataType.FLOAT32, mm.Dims([2, 4, 4, 3]))
    conv = network.add_i_conv_node(x, _const(mm, network, "FLOAT32", [2, 1, 1, 3], kernel))
    assert conv.set_padding_mode(mm.IPaddingMode.EXPLICIT).ok()
    assert network.mark_output(conv.get_output(0)).ok()
    data, config = RNG.uniform(-1, 1, (2, 4, 4, 3)).astype(np.float32), configure(mm, precision("qint8_mixed_float32"))
    assert calibrate(mm, network, config, [data]).ok()
    scales = [np.abs(array).max() / 127 for array in (data, kernel)]
    x8, w8 = (np.rint(array / scale) * scale for array, scale in zip((data, kernel), scales, strict=True))
    expected = np.einsum("nhwc,oc->nhwo", x8, w8[:, 0, 0])
    np.testing.assert_allclose(Runner(mm, build(mm, network, config))(data)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scalar", [True, False])
def test_mask_and_zeros_of_the_tacotron_decoder(mm: ModuleType, mode: str, scalar: bool) -> None:
    """MC-old tacotron2 declares scalars and copies one number; MC tacotron2 declares [1] and hands over arrays."""
    sizes = [] if scalar else [1]
    network = mm.Network()
    zero, zero_int = _const(mm, network, "FLOAT32", [], [0]), _const(mm, network, "INT32", [], [0])
    one, begin = _const(mm, network, "INT32", [1], [1]), _const(mm, network, "INT32", [1], [0])
    memory_size = network.add_input(mm.DataType.INT32, mm.Dims(sizes))
    lengths = network.add_input(mm.DataType.INT32)
    longest = network.add_input(mm.DataType.INT32, mm.Dims(sizes))
    ids = network.add_i_range_node(begin, longest, one)
    columns = network.add_i_unsqueeze_node(lengths, one)
    mask = network.add_i_logic_node(ids.get_output(0), columns.get_output(0), mm.enums.ILogic.LT)
    mask = network.add_i_cast_node(mask.get_output(0), mm.DataType.INT32)
    mask = network.add_i_logic_node(mask.get_output(0), zero_int, mm.enums.ILogic.LE)
    memory = network.add_i_fill_node(memory_size, zero)
    network.mark_output(memory.get_output(0))
    network.mark_output(mask.get_output(0))
    model = build(mm, network, mm.BuilderConfig())
    assert model.get_output_data_types() == [mm.DataType.FLOAT32, mm.DataType.BOOL]
    runner = Runner(mm, model)
    fill = "memcpy_from_host" if scalar else "from_numpy"
    for values in ([3, 5, 1], [2, 2]):
        for tensor, array in zip(runner.inputs, ([12], values, [max(values)]), strict=True):
            name = "from_numpy" if len(array) > 1 else fill
            status = getattr(tensor, name)(np.array(array, np.int32))
            assert status.ok(), status
        outputs: list[Any] = []
        assert runner.context.enqueue(runner.inputs, outputs, runner.queue, input_by_tensor_order=True).ok()
        assert runner.queue.sync().ok()
        zeros, absent = (tensor.asnumpy() for tensor in outputs)
        np.testing.assert_array_equal(zeros, np.zeros(12, np.float32))
        np.testing.assert_array_equal(absent, np.arange(max(values)) >= np.array(values)[:, None])


def test_crop_of_the_tacotron_decoder(mm: ModuleType, mode: str) -> None:
    """MC tacotron2 decoder.py ``load_melcrop_model``: inputs without dims, constants by keyword."""
    network = mm.Network()
    mel = network.add_input(mm.DataType.FLOAT32)
    lengths = network.add_input(mm.DataType.INT32)
    int32, one = mm.DataType.INT32, mm.Dims([1])
    zero = network.add_i_const_node(dtype=int32, dimensions=one, value=np.array([0], dtype=np.int32)).get_output(0)
    longest = network.add_i_reduce_node(lengths, zero, mm.IReduce.MAX, False).get_output(0)
    axis = network.add_i_const_node(dtype=int32, dimensions=one, value=np.array([2], dtype=np.int32)).get_output(0)
    cropped = network.add_i_slice_node(mel, zero, longest, axis).get_output(0)
    assert network.mark_output(cropped).ok()
    runner = Runner(mm, build(mm, network, configure(mm, precision("force_float32"), {"archs": ["mtp_372"]})))
    for shape, values in (((2, 4, 9), [3, 7]), ((1, 2, 5), [5])):
        data = RNG.uniform(-1, 1, shape).astype(np.float32)
        result = runner(data, np.array(values, np.int32))[0]
        np.testing.assert_array_equal(result, data[:, :, : max(values)])


def test_channels_of_the_first_convolution_are_swapped(mm: ModuleType, mode: str, tmp_path: Path) -> None:
    """CV adapter_model.py ``model_swapBR``: split, concat and ``update_input`` of a parsed node, by later nodes."""
    kernel = RNG.uniform(-1, 1, (2, 3, 2, 2)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="Conv_0", kernel_shape=[2, 2])
    path = save_graph(
        tmp_path / "m.onnx", [node], [("x", FLOAT, [1, 3, 4, 4])], [("y", FLOAT, [1, 2, 3, 3])], {"w": kernel}
    )
    network = parse(mm, path)
    first = network.find_node_by_name("Conv_0")
    assert first.get_node_type() == "IConvNode"
    axis = network.add_i_const_node(mm.DataType.INT32, mm.Dims([1]), 1)
    split = network.add_i_split_node(first.get_input(1), axis.get_output(0), 3)
    swapped = network.add_i_concat_node(axis.get_output(0), [split.get_output(index) for index in (2, 1, 0)])
    assert first.update_input(1, swapped.get_output(0)).ok()
    assert network.get_output(0).get_dimension().GetDims() == [1, 2, 3, 3]
    data = RNG.uniform(-1, 1, (1, 3, 4, 4)).astype(np.float32)
    result = Runner(mm, build(mm, network, configure(mm)))(data)[0]
    np.testing.assert_allclose(result, reference(path, data[:, ::-1])[0], rtol=1e-4, atol=1e-5)


def test_sigmoid_in_front_of_the_boxes(mm: ModuleType, tmp_path: Path) -> None:
    """CV adapter_model.py adds it by keyword."""
    network = mm.Network()
    x = network.add_input(mm.DataType.FLOAT32, mm.Dims([2, 3]))
    node = network.add_i_activation_node(x, activation_type=mm.IActivation.SIGMOID)
    assert network.mark_output(node.get_output(0)).ok()
    data = RNG.uniform(-3, 3, (2, 3)).astype(np.float32)
    result = Runner(mm, build(mm, network, configure(mm)))(data)[0]
    np.testing.assert_allclose(result, 1 / (1 + np.exp(-data)), rtol=1e-6)


def test_names_count_up(mm: ModuleType) -> None:
    network = mm.Network()
    nodes = [network.add_i_const_node(mm.DataType.INT32, mm.Dims([1]), [index]) for index in range(3)]
    assert [node.get_node_name() for node in nodes] == ["main/mm.const", "main/mm.const-1", "main/mm.const-2"]
    assert nodes[1].get_output(0).get_tensor_name() == "main/mm.const-1:0"
    assert nodes[1].get_output(0).get_producer().get_node_type() == "IConstNode"
    assert network.add_input(mm.DataType.FLOAT32, mm.Dims([2])).get_tensor_name() == "main/arg-0"


def test_one_tensor_uses_another_s_memory(mm: ModuleType, mode: str) -> None:
    """MC-old tacotron2 decoder.py cuts one block of zeros into the decoder's inputs."""
    block, first, second = (mm.Tensor(shape=shape, dtype=mm.DataType.FLOAT32) for shape in ((10,), (1, 4), (2, 3)))
    assert block.from_numpy(np.arange(10, dtype=np.float32)).ok()
    address = block.data_address()
    assert first.set_data_address(address, [1, 4]).ok()
    assert second.set_data_address(address + 16, [2, 3]).ok()
    np.testing.assert_array_equal(second.asnumpy(), [[4, 5, 6], [7, 8, 9]])
    assert (first.shape, first.data_address()) == ((1, 4), address)
    assert "no tensor whose data_address() was read holds 28 bytes" in str(second.set_data_address(address + 16, [7]))


def test_a_copied_array_may_change_at_once(mm: ModuleType, mode: str) -> None:
    network = mm.Network()
    shape = network.add_input(mm.DataType.INT32, mm.Dims([1]))
    filled = network.add_i_fill_node(shape, _const(mm, network, "FLOAT32", [], [1]))
    assert network.mark_output(filled.get_output(0)).ok()
    runner, array, outputs = Runner(mm, build(mm, network, configure(mm))), np.array([3], np.int32), []
    assert runner.inputs[0].memcpy_from_host(array).ok()
    assert runner.context.enqueue(runner.inputs, outputs, runner.queue).ok()
    array[:] = 5
    assert runner.queue.sync().ok()
    np.testing.assert_array_equal(outputs[0].asnumpy(), [1, 1, 1])


def test_inputs_of_a_model_use_the_memory_of_another_model_s_result(mm: ModuleType, mode: str, tmp_path: Path) -> None:
    network = mm.Network()
    shape = network.add_input(mm.DataType.INT32, mm.Dims([1]))
    filled = network.add_i_fill_node(shape, _const(mm, network, "FLOAT32", [], [2.5]))
    assert network.mark_output(filled.get_output(0)).ok()
    filler = Runner(mm, build(mm, network, configure(mm)))
    outputs = filler.start(np.array([10], np.int32))
    assert filler.queue.sync().ok()
    node = helper.make_node("Add", ["a", "b"], ["y"], name="Add_0")
    path = save_graph(
        tmp_path / "m.onnx", [node], [("a", FLOAT, [2, 2]), ("b", FLOAT, [2])], [("y", FLOAT, [2, 2])], {}
    )
    runner = Runner(mm, build(mm, parse(mm, path), configure(mm)))
    address = outputs[0].data_address()
    for tensor, sizes in zip(runner.inputs, ([2, 2], [2]), strict=True):
        assert tensor.set_data_address(address, mm.Dims(sizes).GetDims()).ok()
        address += 4 * mm.Dims(sizes).GetElementCount()
    results: list[Any] = []
    assert runner.context.enqueue(runner.inputs, results, runner.queue).ok()
    assert runner.queue.sync().ok()
    np.testing.assert_array_equal(results[0].asnumpy(), np.full((2, 2), 5.0))
    if mode == "strict":
        assert "expected 1 axes, got 2" in str(runner.inputs[1].set_data_address(address - 8, [1, 2]))


def test_a_node_s_own_type_rounds_its_result(mm: ModuleType) -> None:
    """S#33424705731 sets types of added nodes (C++)."""
    network = mm.Network()
    node = network.add_i_activation_node(network.add_input(mm.DataType.FLOAT32, mm.Dims([4])), mm.IActivation.RELU)
    assert node.set_output_type(0, mm.DataType.FLOAT16).ok()
    assert network.mark_output(node.get_output(0)).ok()
    data = RNG.uniform(0, 1, 4).astype(np.float32)
    result = Runner(mm, build(mm, network, configure(mm, precision("force_float32"))))(data)[0]
    np.testing.assert_array_equal(result, data.astype(np.float16).astype(np.float32))


def _extend(mm: ModuleType, path: Path) -> Any:
    """Append unsqueeze, reduce, split, concat and a comparison to a parsed network."""
    network = parse(mm, path)
    tensor, axis = network.get_output(0), _const(mm, network, "INT32", [1], [1])
    network.unmark_output(tensor)
    best = network.add_i_reduce_node(tensor, axis, mm.IReduce.MAX, False).get_output(0)
    halves = network.add_i_split_node(tensor, axis, 2)
    turned = network.add_i_concat_node(axis, [halves.get_output(1), halves.get_output(0)]).get_output(0)
    reached = network.add_i_logic_node(best, turned, mm.enums.ILogic.LE).get_output(0)
    network.mark_output(network.add_i_unsqueeze_node(reached, axis).get_output(0))
    return network


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.usefixtures("lenient")
def test_networks_of_newer_opsets_are_extended_too(mm: ModuleType, tmp_path: Path, opset: int) -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="Relu_0")
    path = save_graph(tmp_path / "m.onnx", [node], [("x", FLOAT, [3, 4])], [("y", FLOAT, [3, 4])], {}, opset=opset)
    data = RNG.uniform(-1, 1, (3, 4)).astype(np.float32)
    kept = np.maximum(data, 0)
    expected = kept.max(axis=1, keepdims=True) <= kept[:, [2, 3, 0, 1]]
    result = Runner(mm, build(mm, _extend(mm, path), configure(mm)))(data)[0]
    np.testing.assert_array_equal(result, expected[:, None])


def test_an_older_opset_is_named_where_it_does_not_suffice(
    mm: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="Relu_0")
    path = save_graph(tmp_path / "m.onnx", [node], [("x", FLOAT, [3, 4])], [("y", FLOAT, [3, 4])], {}, opset=10)
    assert mm.Builder().build_model("m", _extend(mm, path), configure(mm)) is None
    assert "the parsed file has 10: export it with opset 11" in capfd.readouterr().err


def test_a_plugin_library_is_refused(mm: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    assert not mm.LoadPluginLibrary().load("./libplugin_roll_with_pytorch.so")
    assert "'./libplugin_roll_with_pytorch.so' holds kernels for a card" in capfd.readouterr().err


def _constant(mm: ModuleType, network: Any) -> Any:
    return network.add_i_const_node(mm.DataType.INT32, mm.Dims([2]), [1, 2, 3])


def _fractions(mm: ModuleType, network: Any) -> Any:
    return network.add_i_const_node(mm.DataType.INT32, mm.Dims([1]), np.array([1.5]))


def _indices(mm: ModuleType, network: Any) -> Any:
    x = network.add_input(mm.DataType.INT32, mm.Dims([2]))
    return network.add_i_reduce_node(x, _const(mm, network, "INT32", [1], [0]), mm.IReduce.MAX, True)


def _foreign(mm: ModuleType, network: Any) -> Any:
    return network.add_i_cast_node(mm.Network().add_input(mm.DataType.FLOAT32), mm.DataType.INT32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (_constant, "add_i_const_node]  Invalid argument: 3 values for the shape [2]"),
        (_fractions, "no public source shows float64 data for INT32"),
        (_indices, "public Python code passes False as the last argument"),
        (_foreign, "belongs to another network"),
    ],
)
def test_a_factory_that_refuses_gives_none_and_logs(
    mm: ModuleType, capfd: pytest.CaptureFixture[str], call: Callable[[ModuleType, Any], Any], message: str
) -> None:
    assert call(mm, mm.Network()) is None
    assert message in capfd.readouterr().err


def _computed_order(mm: ModuleType, network: Any) -> Any:
    x = network.add_input(mm.DataType.FLOAT32, mm.Dims([2, 3]))
    return network.add_i_permute_node(x, network.add_input(mm.DataType.INT32, mm.Dims([2])))


def _no_padding_mode(mm: ModuleType, network: Any) -> Any:
    x = network.add_input(mm.DataType.FLOAT32, mm.Dims([1, 4, 4, 1]))
    return network.add_i_conv_node(x, _const(mm, network, "FLOAT32", [1, 1, 1, 1], [1]))


def _slice_from_one(mm: ModuleType, network: Any) -> Any:
    x, one = network.add_input(mm.DataType.FLOAT32, mm.Dims([5])), _const(mm, network, "INT32", [1], [1])
    return network.add_i_slice_node(
        x, one, _const(mm, network, "INT32", [1], [3]), _const(mm, network, "INT32", [1], [0])
    )


def _other_filter(mm: ModuleType, network: Any) -> Any:
    x = network.add_input(mm.DataType.FLOAT32, mm.Dims([1, 4, 4, 3]))
    node = network.add_i_conv_node(x, _const(mm, network, "FLOAT32", [1, 1, 2], [1, 2]))
    assert node.set_padding_mode(mm.IPaddingMode.EXPLICIT).ok()
    return node


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (_computed_order, "the order of the axes must come from add_i_const_node"),
        (_no_padding_mode, "set_padding_mode() is needed"),
        (_slice_from_one, "whether the third argument is the end or the size"),
        (_other_filter, "node 'main/mm.conv2d': Inconsistent permutation [0, 3, 1, 2] with shape (1, 1, 2)"),
    ],
)
def test_what_no_sample_shows_fails_the_build(
    mm: ModuleType,
    mode: str,
    capfd: pytest.CaptureFixture[str],
    call: Callable[[ModuleType, Any], Any],
    message: str,
) -> None:
    network = mm.Network()
    network.mark_output(call(mm, network).get_output(0))
    assert mm.Builder().build_model("m", network, configure(mm)) is None
    assert message in capfd.readouterr().err


def test_a_file_cannot_hold_what_only_a_script_adds(mm: ModuleType, mode: str, tmp_path: Path) -> None:
    node = helper.make_node("Permute", ["x"], ["y"], name="p", domain="magicmind")
    path = save_graph(tmp_path / "m.onnx", [node], [("x", FLOAT, [1])], [("y", FLOAT, [1])], {})
    status = mm.Parser(mm.ModelKind.kOnnx).parse(mm.Network(), str(path))
    assert not status.ok()
    assert "magicmind.Permute" in str(status)


def test_calls_of_which_nothing_is_known_are_refused(mm: ModuleType) -> None:
    with pytest.raises(NotImplementedError, match="add_i_matmul_node: no public Python code shows this call"):
        mm.Network().add_i_matmul_node(None)
    with pytest.raises(TypeError, match="expected ITensor, got int"):
        mm.Network().add_i_cast_node(1, mm.DataType.INT32)


def test_arguments_of_the_wrong_kind_are_type_errors(mm: ModuleType) -> None:
    network = mm.Network()
    x = network.add_input(mm.DataType.FLOAT32, mm.Dims([2]))
    node = network.add_i_activation_node(x, mm.IActivation.RELU)
    for call in (
        lambda: network.add_input(mm.DataType.FLOAT32, [2]),
        lambda: network.add_i_const_node(mm.DataType.INT32, [2], [1, 2]),
        lambda: network.add_i_activation_node(x, "RELU"),
        lambda: network.add_i_logic_node(x, x, mm.IReduce.MAX),
        lambda: network.add_i_reduce_node(x, x, mm.enums.ILogic.LT, False),
        lambda: network.mark_output("y"),
        lambda: node.update_input(0, None),
    ):
        with pytest.raises(TypeError, match=r"\(\): expected (Dims|IActivation|ILogic|IReduce|ITensor), got "):
            call()


def test_a_tensor_of_another_network_is_refused_wherever_it_is_given(mm: ModuleType) -> None:
    """Names of tensors repeat between networks, so the other network's would stand for one of this network."""
    nodes = []
    for size in (2, 3):
        network = mm.Network()
        x = network.add_input(mm.DataType.FLOAT32, mm.Dims([size]))
        nodes.append(network.add_i_activation_node(x, mm.IActivation.RELU))
    (own, other), foreign = nodes, nodes[1].get_output(0)
    assert other.network.mark_output(foreign).ok()
    for status in (
        own.network.mark_output(foreign),
        own.network.unmark_output(foreign),
        own.update_input(0, other.get_input(0)),
    ):
        assert "belongs to another network" in status.error_message()
    assert own.network.get_output_count() == 0


def _huge(mm: ModuleType, network: Any) -> Any:
    return network.add_i_const_node(mm.DataType.FLOAT16, mm.Dims([1]), [1e6])


def _no_parts(mm: ModuleType, network: Any) -> Any:
    return network.add_i_split_node(_const(mm, network, "INT32", [2], [1, 2]), _const(mm, network, "INT32", [], 0), 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (_huge, "add_i_const_node]  Out of range: values beyond FLOAT16"),
        (_no_parts, "add_i_split_node]  Invalid argument: 0 results; expected 1 or more"),
        (
            lambda mm, network: network.add_i_concat_node(_const(mm, network, "INT32", [], 0), []),
            "no tensors are given",
        ),
        (lambda mm, network: network.add_input(mm.DataType.INT32, mm.Dims([-5])), "bad shape [-5]"),
        (lambda mm, network: network.add_input(mm.DataType.INT32, mm.Dims([2, 0])), "bad shape [2, 0]"),
    ],
)
def test_values_that_no_network_has_are_refused_at_once(
    mm: ModuleType, capfd: pytest.CaptureFixture[str], call: Callable[[ModuleType, Any], Any], message: str
) -> None:
    assert call(mm, mm.Network()) is None
    assert message in capfd.readouterr().err


def _two_axes(mm: ModuleType, network: Any) -> Any:
    x = network.add_input(mm.DataType.FLOAT32, mm.Dims([2, 3]))
    return network.add_i_concat_node(_const(mm, network, "INT32", [2], [0, 1]), [x, x])


def _no_axes(mm: ModuleType, network: Any) -> Any:
    x = network.add_input(mm.DataType.FLOAT32, mm.Dims([2, 3]))
    return network.add_i_reduce_node(x, _const(mm, network, "INT32", [0], np.zeros(0, np.int32)), mm.IReduce.MAX, False)


def _uneven(mm: ModuleType, network: Any) -> Any:
    x = network.add_input(mm.DataType.FLOAT32, mm.Dims([2, 3]))
    return network.add_i_split_node(x, _const(mm, network, "INT32", [1], [1]), 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (_two_axes, "node 'main/mm.concat' (Concat): the axis must be one number, not [0, 1]"),
        (_no_axes, "node 'main/mm.reduce' (Reduce): the axes are none"),
        (_uneven, "build_model]  Invalid argument: node 'main/mm.split': shapes do not fit together"),
    ],
)
def test_the_build_says_why_a_node_cannot_be_computed(
    mm: ModuleType,
    mode: str,
    capfd: pytest.CaptureFixture[str],
    call: Callable[[ModuleType, Any], Any],
    message: str,
) -> None:
    network = mm.Network()
    network.mark_output(call(mm, network).get_output(0))
    capfd.readouterr()
    assert mm.Builder().build_model("m", network, configure(mm)) is None
    assert message in capfd.readouterr().err


def test_a_network_without_outputs_is_not_built(mm: ModuleType, mode: str, capfd: pytest.CaptureFixture[str]) -> None:
    network = mm.Network()
    assert network.find_tensor_by_name("x") is None
    network.add_i_activation_node(network.add_input(mm.DataType.FLOAT32, mm.Dims([2])), mm.IActivation.RELU)
    assert mm.Builder().build_model("m", network, configure(mm)) is None
    assert "the network has no output: mark_output() was not called" in capfd.readouterr().err


def test_an_output_may_be_marked_between_two_shapes_that_fit_together_later(mm: ModuleType, mode: str) -> None:
    network = mm.Network()
    inputs = [network.add_input(mm.DataType.FLOAT32, mm.Dims(sizes)) for sizes in ([2, 3], [5, 3])]
    axis = _const(mm, network, "INT32", [1], [1])
    joined = network.add_i_concat_node(axis, inputs).get_output(0)
    assert network.mark_output(joined).ok()
    assert inputs[1].set_dimension(mm.Dims([2, 3])).ok()
    data = [RNG.uniform(-1, 1, (2, 3)).astype(np.float32) for _ in inputs]
    result = Runner(mm, build(mm, network, configure(mm)))(*data)[0]
    np.testing.assert_array_equal(result, np.concatenate(data, axis=1))


def test_memory_of_another_tensor_has_no_negative_size(mm: ModuleType, mode: str) -> None:
    tensor = mm.Tensor(shape=(2, 3), dtype=mm.DataType.FLOAT32)
    assert "bad shape [-1, 3]" in tensor.set_data_address(tensor.data_address(), [-1, 3]).error_message()
