"""The six modes on the CPU: the numbers that NumPy gives by hand, and the very tensors that the emulated card quantises."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import support
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.compile.quantisation import VENDOR
from clipmlu.data.calibration import CalibrationOptions
from clipmlu.errors import OptionError
from clipmlu.model import Model
from clipmlu.specs import Precision, QuantisationOptions, TensorQuantisation

Array = np.ndarray[Any, np.dtype[Any]]
QUANTISING = [precision for precision in Precision if precision.bits is not None]
WAYS = [
    QuantisationOptions(granularity=granularity, activation=activation, algorithm=algorithm)
    for granularity, activation, algorithm in itertools.product(
        ("per_tensor", "per_axis"), ("symmetric", "asymmetric"), ("linear", "eqnm", "percentile", "entropy")
    )
    if activation == "symmetric" or algorithm in ("linear", "percentile")
]


CASES = [
    (precision, way)
    for precision, way in itertools.product(QUANTISING, WAYS)
    # All ways in 8 bits; in 16, which differ in nothing but the number, the plainest and the most elaborate.
    if precision.bits == 8 or way in (WAYS[0], WAYS[-1])
]


def name_of(way: QuantisationOptions) -> str:
    return f"{way.granularity}-{way.activation}-{way.algorithm}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures to calibrate with."""
    for number in range(6):
        place = tmp_path / "folder" / ("cat" if number < 3 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        support.picture(number).save(place / f"{number}.png")
    return tmp_path / "folder"


def compile_for(
    target: str, exported: ExportedBundle, output: Path, precision: Precision, data: str, **options: Any
) -> CompiledBundle:
    calibration = None if precision.bits is None else CalibrationOptions(dataset=data, samples=6)
    given = CompileOptions(target=target, precision=precision, batch_size=3, calibration=calibration, **options)
    return compile_bundle(exported, output, given)


def record_of(bundle: CompiledBundle, tower: str = "image") -> dict[str, TensorQuantisation]:
    """How each tensor was quantised, by the bundle of either target."""
    quantised = bundle.compilation.quantised
    return dict(quantised[tower].tensors) if tower in quantised else {}  # type: ignore[index]


def half(values: Array) -> Array:
    return values.astype(np.float16).astype(np.float32)


def pooled(pixels: Array) -> Array:
    """The tiny image tower's mean over each quarter, channel by channel."""
    side = support.SIDE // 2
    means = pixels.astype(np.float32).reshape(-1, 3, 2, side, 2, side).mean(axis=(3, 5), dtype=np.float32)
    return means.reshape(-1, 12)


def unit(rows: Array) -> Array:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_int8_is_what_numpy_gives_by_hand(exported: ExportedBundle, folder: Path, tmp_path: Path) -> None:
    """Symmetric, per tensor, by the largest magnitude: levels of bound/127, rounded to the nearest even."""
    data = f"imagefolder:{folder}"
    bundle = compile_for("cpu", exported, tmp_path / "out", Precision.QINT8_MIXED_FLOAT32, data, quantisation=VENDOR)
    calibration = pooled(np.stack([support.preprocess(support.picture(number)) for number in range(6)]))
    matrix = support.weights()[0]
    pixels = np.stack([support.preprocess(support.picture(number)) for number in (2, 40, 41)])

    def quantised(values: Array, bound: float) -> Array:
        scale = bound / 127
        return np.clip(np.rint(values / scale), -128, 127) * scale

    activations = quantised(pooled(pixels), np.abs(calibration).max())
    expected = unit(activations @ quantised(matrix, np.abs(matrix).max()))
    with Model(bundle) as encoder:
        np.testing.assert_allclose(encoder.encode_images(pixels), expected, atol=2e-6)
    activation, weight = sorted(record_of(bundle).values(), key=lambda each: each.maximum == matrix.max())
    assert weight.scale == (pytest.approx(np.abs(matrix).max() / 127),)
    assert (weight.minimum, weight.maximum) == (matrix.min(), matrix.max())
    assert activation.maximum == pytest.approx(calibration.max(), rel=1e-6)
    assert activation.scale == (pytest.approx(np.abs(calibration).max() / 127),)
    graph = bundle.compilation.quantised["image"]
    assert (graph.macs, graph.quantised_macs) == (12 * support.DIM, 12 * support.DIM)


def test_binary16_rounds_inputs_weights_and_results(exported: ExportedBundle, tmp_path: Path) -> None:
    bundle = compile_for("cpu", exported, tmp_path / "out", Precision.FORCE_FLOAT16, "")
    pixels = np.random.default_rng(0).standard_normal((5, 3, support.SIDE, support.SIDE), dtype=np.float32)
    product = half(half(pooled(half(pixels))) @ half(support.weights()[0]))
    norm = half(np.linalg.norm(product, axis=1, keepdims=True))
    with Model(bundle) as encoder:
        found = encoder.encode_images(pixels)
    assert np.array_equal(found, half(found)), "every element is a binary16 number"
    np.testing.assert_allclose(found, half(product / norm), atol=1e-3)
    assert np.abs(found - support.embed_images(pixels)).max() > 1e-5


@pytest.mark.parametrize(("precision", "way"), CASES, ids=lambda part: getattr(part, "value", None) or name_of(part))
def test_cpu_and_emulated_card_quantise_alike_bit_for_bit(
    exported: ExportedBundle, folder: Path, tmp_path: Path, precision: Precision, way: QuantisationOptions
) -> None:
    pixels = np.stack([support.preprocess(support.picture(number)) for number in range(5)])
    found, records = [], []
    for target in ("cpu", "emulated-mlu"):
        data = f"imagefolder:{folder}"
        bundle = compile_for(target, exported, tmp_path / target, precision, data, quantisation=way, check=False)
        records.append(record_of(bundle))
        with Model(bundle) as encoder:
            found.append(encoder.encode_images(pixels))
    assert records[0] == records[1]
    assert len(records[0]) == 2
    if precision is Precision.QINT8_MIXED_FLOAT32:  # integer kernels here, the numbers that they stand for there
        np.testing.assert_allclose(found[0], found[1], atol=2e-6)
    else:
        np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - support.embed_images(pixels)).max() > 1e-6


@pytest.mark.torch
@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("vit", Precision.FORCE_FLOAT16),
        *((kind, Precision.QINT8_MIXED_FLOAT16) for kind in ("vit", "resnet")),
        pytest.param("siglip", Precision.QINT8_MIXED_FLOAT16, marks=pytest.mark.slow),
        # What these round to float16 is the rest of their mixed mode too.
        *(pytest.param(kind, Precision.FORCE_FLOAT16, marks=pytest.mark.slow) for kind in ("siglip", "resnet")),
    ],
)
def test_real_architectures_agree_bit_for_bit(
    tiny_bundle: Callable[..., ExportedBundle], folder: Path, tmp_path: Path, kind: str, precision: Precision
) -> None:
    exported = tiny_bundle(kind)
    side = exported.manifest.preprocess.height
    pixels = np.random.default_rng(3).standard_normal((3, 3, side, side), dtype=np.float32)
    ids = np.random.default_rng(4).integers(1, 256, (3, exported.manifest.tokenizer.context_length))
    found, records = [], []
    for target in ("cpu", "emulated-mlu"):
        data = f"imagefolder:{folder}"
        how = None if precision.bits is None else VENDOR
        bundle = compile_for(target, exported, tmp_path / target, precision, data, quantisation=how, check=False)
        records.append({tower: record_of(bundle, tower) for tower in ("image", "text")})
        with Model(bundle) as encoder:
            found.append((encoder.encode_images(pixels), encoder.encode_tokens(ids)))
    assert records[0] == records[1]
    assert (len(records[0]["image"]) > 10) is (precision.bits is not None)
    for here, there in zip(*found, strict=True):
        np.testing.assert_array_equal(here, there)


@pytest.mark.torch
@pytest.mark.parametrize(
    "precision",
    [Precision.QINT8_MIXED_FLOAT32, pytest.param(Precision.QINT8_MIXED_FLOAT16, marks=pytest.mark.slow)],
)
def test_what_stays_in_float_is_the_same_on_both_targets(
    tiny_bundle: Callable[..., ExportedBundle], folder: Path, tmp_path: Path, precision: Precision
) -> None:
    """Roles go to the emulated card by its per-node types (``set_precision``), to the CPU by the rewriting."""
    exported = tiny_bundle("vit")
    side = exported.manifest.preprocess.height
    pixels = np.random.default_rng(3).standard_normal((3, 3, side, side), dtype=np.float32)
    how = QuantisationOptions(
        granularity="per_axis",
        algorithm="percentile",
        smooth_alpha={"qkv": 0.5, "attention_output": 0.5, "mlp_out": 0.75},
        activation="asymmetric",
        keep_float=("mlp_out:0", "qkv:1", "attention-values:0"),
    )
    found, bundles = [], []
    for target in ("cpu", "emulated-mlu"):
        data = f"imagefolder:{folder}"
        bundles.append(compile_for(target, exported, tmp_path / target, precision, data, quantisation=how, check=False))
        with Model(bundles[-1]) as encoder:
            found.append(encoder.encode_images(pixels))
    here, there = (bundle.compilation.quantised for bundle in bundles)
    assert here == there
    image = here["image"]
    assert len(image.float_nodes) == 3, "one mlp_out, one qkv, one attention_values"
    assert image.pixel_scaling is not None
    assert here["text"].pixel_scaling is None
    assert len(image.smoothing) == 5, "no Mul before the mlp_out that stays in float"
    assert image.clipped
    assert 0.3 < image.quantised_macs / image.macs < 0.8
    assert not [name for name in image.tensors if name.endswith("0.mlp.c_proj/MatMul:input1")]
    if precision is Precision.QINT8_MIXED_FLOAT32:
        np.testing.assert_allclose(found[0], found[1], atol=2e-5)
    else:
        np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.torch
def test_a_role_that_no_tower_has_is_refused(
    tiny_bundle: Callable[..., ExportedBundle], folder: Path, tmp_path: Path
) -> None:
    how = QuantisationOptions(keep_float=("pooling",))
    data = f"imagefolder:{folder}"
    with pytest.raises(OptionError, match=r"'pooling'.*this model"):
        compile_for("cpu", tiny_bundle("vit"), tmp_path / "out", Precision.QINT8_MIXED_FLOAT32, data, quantisation=how)
    assert not (tmp_path / "out").exists()


@pytest.mark.torch
def test_int8_weights_are_stored_and_computed_as_integers(
    tiny_bundle: Callable[..., ExportedBundle], folder: Path, tmp_path: Path
) -> None:
    exported = tiny_bundle("vit")
    data = f"imagefolder:{folder}"
    given = {"quantisation": VENDOR, "check": False}
    bundle = compile_for("cpu", exported, tmp_path / "out", Precision.QINT8_MIXED_FLOAT32, data, **given)
    model = onnx.load(bundle.tower_path("image"))
    kinds = {weight.name: weight.data_type for weight in model.graph.initializer}
    dequantised = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in kinds]
    assert len(dequantised) >= 8
    assert {kinds[node.input[0]] for node in dequantised} == {onnx.TensorProto.INT8}

    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        str(bundle.tower_path("image")),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["MatMulAddFusion"],
    )
    operators = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    products = sum(node.op_type in ("MatMul", "Gemm") for node in model.graph.node)
    assert products == 13, "two blocks of six, and the projection"
    assert sum(operator.startswith(("MatMulInteger", "QLinear")) for operator in operators) == products
    assert not {"MatMul", "Gemm"} & set(operators)
