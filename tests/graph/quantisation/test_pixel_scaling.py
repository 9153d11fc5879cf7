"""Scaled pixels: float results stay equal, and the quantisation of 8-bit values in 8 bits is exact."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from clipmlu.graph.quantisation.parameters import asymmetric
from clipmlu.graph.quantisation.pixel_scaling import choose_scaling, scale_pixels
from clipmlu.graph.roles import Operator
from clipmlu.specs import PixelScaling, PreprocessSpec

Array = np.ndarray[Any, np.dtype[Any]]

CLIP = PreprocessSpec(
    height=8, width=8, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
)
OPERATOR = Operator(node="patches", role="patch_embedding", block=None, macs=1, inputs=("pixel_values",), output="y")


def patches(*, bias: bool = False, pads: int = 0) -> onnx.ModelProto:
    generator = np.random.default_rng(0)
    weights = {"kernel": generator.standard_normal((5, 3, 4, 4)), "bias": generator.standard_normal(5)}
    weights = weights if bias else {"kernel": weights["kernel"]}
    conv = helper.make_node("Conv", ["pixel_values", *weights], ["y"], name="patches", strides=[4, 4], pads=[pads] * 4)
    graph = helper.make_graph(
        [conv],
        "patches",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5, None, None])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)


def scaling_of(model: onnx.ModelProto) -> PixelScaling:
    scaling = choose_scaling(model, [OPERATOR], CLIP, in_float=())
    assert scaling is not None
    return scaling


def all_values() -> tuple[Array, Array]:
    """Every 8-bit value in each colour, as integers and normalised."""
    values = np.stack([np.arange(256).reshape(4, 8, 8)] * 3, axis=1)
    mean, std = (np.asarray(each).reshape(1, 3, 1, 1) for each in (CLIP.mean, CLIP.std))
    return values, ((values / 255 - mean) / std).astype(np.float32)


def run(model: onnx.ModelProto, pixels: Array, *outputs: str) -> list[Array]:
    from onnx.reference import ReferenceEvaluator

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {output.name for output in model.graph.output}
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs if name not in known
    )
    return list(ReferenceEvaluator(watched).run(list(outputs), {"pixel_values": pixels}))


@pytest.mark.parametrize("bias", [False, True])
def test_float_results_stay_equal(bias: bool) -> None:
    model = patches(bias=bias)
    content = model.SerializeToString()
    scaled = scale_pixels(model, scaling_of(model))
    onnx.checker.check_model(scaled, full_check=True)
    assert [node.op_type for node in scaled.graph.node] == ["Mul", "Add", "Conv"]
    assert scaled.graph.node[-1].name == "patches"
    _, pixels = all_values()
    np.testing.assert_allclose(*(run(each, pixels, "y")[0] for each in (scaled, model)), atol=1e-5)
    assert model.SerializeToString() == content
    assert scale_pixels(model, None) is model


def test_all_values_of_a_pixel_are_exact_in_8_bits() -> None:
    model = patches()
    scaled = scale_pixels(model, scaling_of(model))
    values, pixels = all_values()
    (given,) = run(scaled, pixels, scaled.graph.node[-1].input[0])
    how = asymmetric(8, float(given.min()), float(given.max()))
    np.testing.assert_array_equal(how.levels(given), (values - 128).astype(np.int8))
    np.testing.assert_allclose(how.apply(given), given, atol=1e-6)
    before = asymmetric(8, float(pixels.min()), float(pixels.max()))
    assert np.abs(before.apply(pixels) - pixels).max() > 0.005, "which normalised pixels are not"


@pytest.mark.parametrize("change", ["pads", "float", "shared", "colours"])
def test_convolutions_that_cannot_take_the_inverse_are_left_alone(change: str) -> None:
    model = patches(pads=1 if change == "pads" else 0)
    if change == "shared":
        model.graph.node.add().CopyFrom(helper.make_node("Identity", ["kernel"], ["other"], name="other"))
    if change == "colours":
        kernel = np.ones((5, 1, 4, 4), np.float32)
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(kernel, "kernel"))
    kept = ("patches",) if change == "float" else ()
    assert choose_scaling(model, [OPERATOR], CLIP, in_float=kept) is None
    assert choose_scaling(model, [dataclasses.replace(OPERATOR, node="others")], CLIP, in_float=()) is None
