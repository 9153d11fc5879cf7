"""Named quantisation options: what each target gets without options, what changes do to it, and smoothing of outliers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import support
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions, plan_compilation
from clipmlu.compile.quantisation import QuantisationChoice
from clipmlu.data.calibration import CalibrationOptions
from clipmlu.errors import CompileError, OptionError
from clipmlu.export.exporter import ExportOptions, export_model
from clipmlu.graph.quantisation.outliers import has_outliers
from clipmlu.magicmind.emulator import faults
from clipmlu.model import Model
from clipmlu.specs import AUTO_SMOOTHING, SMOOTHED_ROLES, Precision, QuantisationOptions

INT8, INT16 = Precision.QINT8_MIXED_FLOAT32, Precision.QINT16_MIXED_FLOAT32
ATTENTION = ("attention_scores?", "attention_values?", "projection?")
AUTO = dict.fromkeys(SMOOTHED_ROLES, AUTO_SMOOTHING)


def resolve(
    given: QuantisationOptions | QuantisationChoice | None, target: str = "cpu", precision: Precision = INT8
) -> QuantisationOptions:
    calibration = CalibrationOptions(dataset="demo")
    options = CompileOptions(target=target, precision=precision, calibration=calibration, quantisation=given)
    resolved = plan_compilation(options).quantisation
    assert resolved is not None
    return resolved


def main_fields(how: QuantisationOptions) -> tuple[str, str, str]:
    return how.granularity, how.activation, how.algorithm


@pytest.mark.parametrize(
    ("target", "precision", "expected", "smoothing", "kept"),
    [
        ("cpu", INT8, ("per_axis", "asymmetric", "linear"), "0.85", ATTENTION),
        ("cpu", INT16, ("per_axis", "symmetric", "linear"), "auto", ()),
        ("emulated-mlu", INT8, ("per_axis", "symmetric", "linear"), "0.75", ()),
        ("emulated-mlu", INT16, ("per_axis", "symmetric", "linear"), "auto", ()),
    ],
)
def test_without_options_each_target_gets_its_recommended_ones(
    target: str, precision: Precision, expected: tuple[str, str, str], smoothing: str, kept: tuple[str, ...]
) -> None:
    for given in (None, QuantisationChoice(), QuantisationChoice(name="recommended")):
        how = resolve(given, target, precision)
        assert main_fields(how) == expected
        assert how.smoothing_text == smoothing
        assert how.weight_rounding == ("gptq" if (target, precision) == ("cpu", INT8) else "nearest")
        assert how.keep_float == kept


@pytest.mark.parametrize("target", ["cpu", "emulated-mlu"])
def test_options_of_the_vendors_sample_have_a_name(target: str) -> None:
    how = resolve(QuantisationChoice(name="vendor"), target)
    assert main_fields(how) == ("per_tensor", "symmetric", "linear")
    assert not how.is_smoothed
    assert how == QuantisationOptions(), "complete options still mean what they say"
    assert resolve(QuantisationOptions(granularity="per_axis"), target).activation == "symmetric"


@pytest.mark.parametrize(
    ("target", "changes", "expected"),
    [
        ("cpu", {"granularity": "per_tensor"}, ("per_tensor", "asymmetric", "linear")),
        ("cpu", {"algorithm": "percentile"}, ("per_axis", "asymmetric", "percentile")),
        ("cpu", {"algorithm": "eqnm"}, ("per_axis", "symmetric", "eqnm")),
        ("cpu", {"algorithm": "entropy"}, ("per_axis", "symmetric", "entropy")),
        ("emulated-mlu", {"activation": "asymmetric"}, ("per_axis", "asymmetric", "linear")),
        ("emulated-mlu", {"algorithm": "eqnm"}, ("per_axis", "symmetric", "eqnm")),
    ],
)
def test_a_given_option_wins_over_the_named_ones(
    target: str, changes: dict[str, Any], expected: tuple[str, str, str]
) -> None:
    how = resolve(QuantisationChoice(changes=changes), target)
    assert main_fields(how) == expected
    assert how.smoothing_text == ("0.85" if target == "cpu" else "0.75"), "the other fields stay"
    own = target == "cpu" and changes.get("algorithm") != "eqnm"
    assert how.weight_rounding == ("gptq" if own else "nearest"), "eqnm clips weights, which the rounding excludes"


def test_smoothing_can_be_switched_off() -> None:
    off = dict.fromkeys(SMOOTHED_ROLES, 0)
    assert resolve(QuantisationChoice(changes={"smooth_alpha": off})).smooth_alpha == {}


@pytest.mark.parametrize(("strength", "expected"), [(0, {}), (0.5, {"mlp_out": 0.5})])
def test_a_strength_of_one_role_leaves_those_of_the_others(strength: float, expected: dict[str, float]) -> None:
    changes = {"smooth_alpha": {"mlp_out": strength}}
    others = {role: 0.85 for role in SMOOTHED_ROLES if role != "mlp_out"}
    assert resolve(QuantisationChoice(changes=changes)).smooth_alpha == {**others, **expected}
    assert resolve(QuantisationChoice(name="vendor", changes=changes)).smooth_alpha == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "eqnm", "weight_rounding": "gptq"}, "eqnm clips weights, and weight rounding gptq must not"),
        ({"algorithm": "eqnm", "activation": "asymmetric"}, "eqnm works with symmetric activations only"),
        ({"granularity": "per_channel"}, "granularity is 'per_channel'; expected one of per_tensor"),
        ({"granularty": "per_axis"}, "quantisation option is 'granularty'; expected one of granularity, activation"),
        ({"smooth_alpha": {"qkv": "automatic"}}, r"smooth alpha is {'qkv': 'automatic'}; expected a map"),
        ({"smooth_alpha": {"qkv": 2.0}}, "smoothing strength is 2; expected 0 .off. to 1, or auto"),
    ],
)
def test_impossible_changes_are_refused_at_once(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        QuantisationChoice(changes=changes)


def test_only_a_channel_many_times_the_usual_one_is_an_outlier() -> None:
    usual = np.float32([0.5, 1.0, 1.0, 1.0, 2.4])
    assert not has_outliers(usual)
    assert has_outliers(np.append(usual, np.float32(64)))
    assert has_outliers(np.float32([0, 0, 0, 1, 1, 1, 64])), "channels without values do not count"
    assert not has_outliers(np.zeros(4, np.float32))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        support.picture(number).save(folder / f"{number}.png")
    return folder


def compile_for(target: str, exported: ExportedBundle, output: Path, data: Path, **changes: Any) -> CompiledBundle:
    options = CompileOptions(
        target=target,
        precision=INT8,
        batch_size=4,
        calibration=CalibrationOptions(dataset=str(data), samples=12),
        quantisation=QuantisationChoice(changes=changes),
        min_cosine=-1.0,
        min_agreement=0.0,
    )
    return compile_bundle(exported, output, options)


def image_error(bundle: CompiledBundle, reference: ExportedBundle, folder: Path) -> float:
    """One minus the mean cosine similarity of image embeddings to those in float32."""
    plain = compile_bundle(reference, folder, CompileOptions(target="cpu", overwrite=True))
    pixels = np.random.default_rng(3).standard_normal((16, 3, 32, 32), dtype=np.float32)
    found = []
    for each in (bundle, plain):
        with Model(each) as model:
            found.append(model.encode_images(pixels))
    return float(1 - np.einsum("nd,nd->n", *found).mean())


@pytest.mark.torch
@pytest.mark.slow
def test_automatic_smoothing_finds_the_outliers(
    tiny_model: Callable[[str], Path], tiny_bundle: Callable[..., ExportedBundle], pictures: Path, tmp_path: Path
) -> None:
    """Where LayerNorms have outlier channels, and nowhere else; the two targets find the same. The default smooths them too."""
    plain = compile_for("cpu", tiny_bundle("vit"), tmp_path / "plain", pictures, smooth_alpha=AUTO).compilation
    assert [record.smoothing for record in plain.quantised.values()] == [{}, {}]
    assert support.plant_outliers(tiny_model("vit"), tmp_path / "model") == 8
    planted = export_model(f"local-dir:{tmp_path / 'model'}", tmp_path / "planted", ExportOptions())
    bundle = compile_for("cpu", planted, tmp_path / "cpu", pictures, smooth_alpha=AUTO)
    card = compile_for("emulated-mlu", planted, tmp_path / "card", pictures, smooth_alpha=AUTO)
    for name, record in bundle.compilation.quantised.items():
        assert len(record.smoothing) == 4, "two LayerNorms in each of two blocks"
        for factors in record.smoothing.values():
            assert (np.sort(factors)[-4:] > 4 * np.median(factors)).all(), "the four planted channels"
        assert card.compilation.quantised[name].smoothing == record.smoothing
    rough = compile_for("cpu", planted, tmp_path / "rough", pictures, smooth_alpha=dict.fromkeys(SMOOTHED_ROLES, 0))
    assert rough.compilation.quantised["image"].smoothing == {}
    default = compile_for("cpu", planted, tmp_path / "default", pictures)
    errors = [image_error(each, planted, tmp_path / "float") for each in (bundle, default, rough)]
    assert max(errors[:2]) < errors[2] / 4


@pytest.mark.torch
@pytest.mark.slow
def test_a_model_without_attention_in_blocks_takes_the_recommended_options_too(
    tiny_bundle: Callable[..., ExportedBundle], pictures: Path, tmp_path: Path
) -> None:
    """A role with a question mark stays in float where a tower has it."""
    found = compile_for("cpu", tiny_bundle("convnext"), tmp_path / "out", pictures).compilation
    assert found.quantisation is not None
    assert found.quantisation.keep_float == ATTENTION
    assert not [node for node in found.quantised["image"].float_nodes if "attn" in node]
    assert len(found.quantised["text"].float_nodes) >= 4, "two products of each of two attentions"
    with pytest.raises(OptionError, match="operators are 'pooling', but this model has none"):
        compile_for("cpu", tiny_bundle("convnext"), tmp_path / "x", pictures, keep_float=("pooling",))


def test_a_card_that_refuses_the_recommended_options_is_told_of_the_vendors(
    exported: ExportedBundle, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults.reset()
    monkeypatch.setenv("CLIPMLU_EMULATOR_FAULTS", "calibrate:1:status")
    with pytest.raises(CompileError, match=r"refuses per_axis weights, .*linear calibration.*--quantisation vendor$"):
        compile_for("emulated-mlu", exported, tmp_path / "out", pictures)
    faults.reset()
    vendor = msgspec.structs.asdict(QuantisationOptions())
    with pytest.raises(CompileError) as caught:
        compile_for("emulated-mlu", exported, tmp_path / "out", pictures, **vendor)
    assert "--quantisation" not in str(caught.value)


@pytest.mark.slow
def test_convolutions_with_a_bias_take_the_recommended_options(
    tiny_bundle: Callable[..., ExportedBundle], pictures: Path, tmp_path: Path
) -> None:
    found = compile_for("cpu", tiny_bundle("resnet"), tmp_path / "out", pictures)
    assert found.compilation.quantised["image"].quantised_macs > 0
