"""Keywords of the functions that make bundles: they equal the options of the command line."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import clipmlu
from clipmlu.api.compile_keywords import CompileKeywords, compile_options
from clipmlu.backends import SessionOptions
from clipmlu.bundle.directory import ExportedBundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.compile.quantisation import QuantisationChoice
from clipmlu.data.calibration import CalibrationOptions
from clipmlu.errors import ClipmluError, OptionError
from clipmlu.specs import SMOOTHED_ROLES, MluBuild, Precision


def test_keywords_make_the_options_that_the_command_line_would() -> None:
    keywords: dict[str, Any] = {
        "precision": "qint8_mixed_float32",
        "batch_size": 8,
        "calib": Path("photos"),
        "calib_samples": 200,
        "calib_folder_names": True,
        "max_pixels": 1000,
        "smooth_alpha": 0.5,
        "keep_float": "mlp_out",
        "activation_quant": "symmetric",
        "mlu_arch": "mtp_592",
        "cluster_num": [2, 4],
        "build_config": {"a": 1},
        "device": 1,
        "max_batch": None,
    }
    assert compile_options(keywords) == CompileOptions(
        precision=Precision.QINT8_MIXED_FLOAT32,
        batch_size=8,
        calibration=CalibrationOptions(dataset="photos", samples=200, folder_names=True, max_pixels=1000),
        quantisation=QuantisationChoice(
            changes={
                "activation": "symmetric",
                "smooth_alpha": dict.fromkeys(SMOOTHED_ROLES, 0.5),
                "keep_float": ("mlp_out",),
            }
        ),
        mlu=MluBuild(archs={"mtp_592": (2, 4)}, build_config={"a": 1}),
        session=SessionOptions(device=1, busy_wait=False),
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0.5, dict.fromkeys(SMOOTHED_ROLES, 0.5)),
        (1, dict.fromkeys(SMOOTHED_ROLES, 1.0)),
        ("auto", dict.fromkeys(SMOOTHED_ROLES, "auto")),
        ({"mlp-in": 0.25}, {"mlp_in": 0.25}),
        (["0.5", "mlp_in=auto"], {**dict.fromkeys(SMOOTHED_ROLES, 0.5), "mlp_in": "auto"}),
    ],
)
def test_smoothing_is_a_number_a_map_or_texts(given: Any, expected: dict[str, Any]) -> None:
    choice = compile_options({"smooth_alpha": given, "precision": "qint8_mixed_float32", "calib": "demo"}).quantisation
    assert choice == QuantisationChoice(changes={"smooth_alpha": expected})


def test_a_bundle_is_compiled_with_keywords_and_with_options(exported: ExportedBundle, tmp_path: Path) -> None:
    by_keywords = clipmlu.compile_bundle(str(exported.path), tmp_path / "a", target="cpu", batch_size=4, max_batch=5)
    options = CompileOptions(target="cpu", batch_size=4, max_batch=5)
    by_options = clipmlu.compile_bundle(exported, str(tmp_path / "b"), options)
    facts = by_keywords.compilation
    assert (facts.target, facts.batch_size, facts.max_batch) == ("cpu", 4, 5)
    assert by_options.compilation == facts


def test_a_recipe_is_a_keyword(compiled: Any, exported: ExportedBundle, tmp_path: Path) -> None:
    again = clipmlu.compile_bundle(exported, tmp_path / "again", target="cpu", recipe=compiled.path)
    assert again.compilation.precision == compiled.compilation.precision


def test_options_and_keywords_together_are_refused(tmp_path: Path) -> None:
    for call in (
        lambda: clipmlu.compile_bundle("b", tmp_path / "o", CompileOptions(), precision="force_float32"),
        lambda: clipmlu.export_model("demo", tmp_path / "o", clipmlu.ExportOptions(), seed=1),
        lambda: clipmlu.calibrate_bundle("b", tmp_path / "o", CalibrationOptions(dataset="demo"), calib="demo"),
    ):
        with pytest.raises(OptionError, match=r"has an options object and the keyword '\w+'; expected one of them"):
            call()


def test_every_keyword_is_documented_once() -> None:
    for name in ("compile_bundle", "export_model", "calibrate_bundle", "search_bundle"):
        function = getattr(clipmlu, name)
        text = inspect.getdoc(function) or ""
        assert re.findall(r"^(Args|Keywords|Returns):$", text, re.MULTILINE) == ["Args", "Keywords", "Returns"]
        described = re.findall(r"^    (\w+): ", text, re.MULTILINE)
        shown = [each for each in inspect.signature(function).parameters if each not in ("options", "search")]
        for keyword in shown:
            assert described.count(keyword) == 1, (name, keyword)
    assert "precision" in CompileKeywords.__annotations__


def test_a_call_fails_before_the_bundle_is_read(tmp_path: Path) -> None:
    for keywords, message in (
        ({"precison": "fp16"}, "'precison'.*precision"),
        ({"calib_samples": 0, "calib": "demo"}, "^calib samples is 0; expected 1 or more"),
        ({"precision": "half"}, "^precision is 'half'; expected one of"),
    ):
        with pytest.raises(ClipmluError, match=message):
            clipmlu.compile_bundle("none", tmp_path / "o", **keywords)  # type: ignore[arg-type]
