"""Options of the commands that compile, converted to ``CompileOptions``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
import msgspec

from clipmlu.cli._datasets import calibration_options
from clipmlu.cli._groups import Option, OptionGroup
from clipmlu.cli._options import PATH, Number, comma_separated, device_option, max_pixels_option
from clipmlu.errors import InputError, OptionError, first_line
from clipmlu.files.read import read_json
from clipmlu.specs import (
    AUTO_SMOOTHING,
    MLU_ARCHS,
    SMOOTHED_ROLES,
    ActivationQuantisation,
    CalibrationAlgorithm,
    ComputationPreference,
    Granularity,
    Precision,
    WeightRounding,
)

if TYPE_CHECKING:
    from clipmlu.compile.plan import CompileOptions
    from clipmlu.compile.quantisation import QuantisationChoice
    from clipmlu.specs import MluBuild, SmoothingStrength


def _choice(values: Any) -> click.Choice[str]:
    return click.Choice(list(get_args(values)))


_CALIBRATION = calibration_options(
    metavar="DATASET|FOLDER|SET",
    help="Calibrate (qint precisions) with the train split of a dataset, a folder of images, or a set of 'clipmlu calibrate'.",
)
_OPTIONS = (
    Option(
        "--target",
        default="auto",
        show_default=True,
        help="cpu, openvino, mlu, emulated-mlu, or auto: the first of mlu, openvino, cpu that is available and offers the precision.",
    ),
    Option(
        "--precision",
        type=click.Choice([precision.value for precision in Precision]),
        default=Precision.FORCE_FLOAT32.value,
        show_default=True,
        help="Arithmetic of the compiled graphs; force_bfloat16 needs --target openvino and a CPU that supports it; 'clipmlu doctor' measures whether it is faster.",
    ),
    Option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Rows of a batch."),
    Option(
        "--dynamic-shape/--static-shape",
        default=True,
        show_default=True,
        help="Accept batches up to --max-batch, or exactly --batch-size (smaller ones are padded).",
    ),
    Option(
        "--max-batch", type=click.IntRange(min=1), default=None, help="Largest batch of a dynamic shape. [default: 64]"
    ),
    Option(
        "--uint8-input",
        is_flag=True,
        help="Accept uint8 pixels and normalise them in the graph; input has a quarter of the bytes.",
    ),
    Option(
        "--text-target", metavar="TARGET", help="cpu or openvino: compile the text tower for this target, in float32."
    ),
    Option(
        "--min-cosine",
        type=Number(-1, 1),
        help="Gate: smallest cosine similarity of compiled and float32 embeddings. [default: by precision]",
    ),
    Option(
        "--min-agreement",
        type=Number(0, 1),
        help="Gate: smallest share of images with the same best class as in float32. [default: by precision]",
    ),
    Option(
        "--check/--no-check",
        default=True,
        show_default=True,
        help="Run the compiled graphs and compare them with float32; without a card, use --no-check.",
    ),
    *_CALIBRATION.options,
    max_pixels_option,
    Option(
        "--calib-server",
        "--rpc-server",
        metavar="IP:PORT",
        help="Card of another host for calibration, if this host has no card.",
    ),
    Option(
        "--quantisation",
        type=click.Choice(["recommended", "vendor"]),
        help="Quantisation options: the recommended ones of the target, or those of the vendor's CLIP sample. The following options "
        "replace single ones. [default: recommended]",
    ),
    Option(
        "--calib-algo",
        "--calibration-algo",
        type=_choice(CalibrationAlgorithm),
        help="Algorithm that chooses ranges. [default: by --quantisation]",
    ),
    Option(
        "--calib-percentile",
        type=Number(0, 100, min_open=True),
        help="Percentage of values in the range, for --calib-algo percentile. [default: 99.99]",
    ),
    Option(
        "--smooth-alpha",
        metavar="ALPHA|ROLE=ALPHA",
        multiple=True,
        help="Strength of smoothing (moves activation outliers into weights) for all roles or one: 0 (off) to 1, or auto, which smooths "
        "only inputs with outliers. [default: by --quantisation]",
    ),
    Option(
        "--keep-float",
        metavar="ROLE[:BLOCKS]",
        multiple=True,
        help="Operators that are not quantised, such as mlp_out or qkv:0-2,11.",
    ),
    Option(
        "--granularity",
        "--weight-quant-granularity",
        type=_choice(Granularity),
        help="Scales of quantised weights. [default: by --quantisation]",
    ),
    Option(
        "--activation-quant",
        "--activation-quant-algo",
        type=_choice(ActivationQuantisation),
        help="Quantisation of activations. [default: by --quantisation]",
    ),
    Option(
        "--weight-rounding",
        type=_choice(WeightRounding),
        help="Integers of weights: the nearest, or those that change the results of linear layers least on the calibration data. "
        "[default: by --quantisation]",
    ),
    Option("--mlu-arch", type=click.Choice(MLU_ARCHS), multiple=True, help="MLU: architecture. [default: mtp_372]"),
    Option("--cluster-num", metavar="N[,N...]", multiple=True, help="MLU: clusters to optimise for. [default: 2,6,8]"),
    Option(
        "--computation-preference",
        type=_choice(ComputationPreference),
        help="MLU: optimise for speed or precision. [default: auto]",
    ),
    Option(
        "--conv-scale-fold/--no-conv-scale-fold",
        default=None,
        help="MLU: fold scales into convolutions. [default: fold]",
    ),
    Option("--text-rows", type=click.IntRange(min=1), help="MLU, joint layout: number of texts. [default: 100]"),
    Option("--toolchain", "--toolchain-path", metavar="DIR", help="MLU: cross-compiler for the edge part tp_322."),
    Option(
        "--build-config",
        type=PATH,
        metavar="FILE",
        help="MLU: JSON configuration for the SDK; it overrides other options.",
    ),
    device_option,
)


_SET_BY_SWEEP: dict[str, Any] = {
    "precision": Precision.FORCE_FLOAT32.value,
    "batch_size": 32,
    "dynamic_shape": True,
    "max_batch": None,
}
"""Options that a sweep does not have, with placeholders; the sweep sets them for each bundle."""


def _options_from(given: Mapping[str, Any]) -> CompileOptions:
    from clipmlu.backends import SessionOptions
    from clipmlu.compile.plan import CompileOptions

    return CompileOptions(
        target=given["target"],
        precision=Precision(given["precision"]),
        batch_size=given["batch_size"],
        dynamic_shape=given["dynamic_shape"],
        max_batch=given["max_batch"],
        text_target=given["text_target"],
        mlu=_mlu_build(given),
        quantisation=_quantisation(given),
        calibration=_CALIBRATION.build(given),
        calibration_server=given["calib_server"],
        min_cosine=given["min_cosine"],
        min_agreement=given["min_agreement"],
        check=given["check"],
        uint8_input=given["uint8_input"],
        session=SessionOptions(device=given["device"], busy_wait=False),
    )


def _mlu_build(given: Mapping[str, Any]) -> MluBuild | None:
    """Build options for cards; None if none was given."""
    from clipmlu.specs import MluBuild

    chosen: dict[str, Any] = {
        "computation_preference": given["computation_preference"],
        "conv_scale_fold": given["conv_scale_fold"],
        "text_rows": given["text_rows"],
        "toolchain": given["toolchain"],
        "build_config": None if given["build_config"] is None else _read_build_config(given["build_config"]),
    }
    if given["mlu_arch"] or given["cluster_num"]:
        default = MluBuild().archs
        counts = _counts(given["cluster_num"]) if given["cluster_num"] else next(iter(default.values()))
        chosen["archs"] = dict.fromkeys(given["mlu_arch"] or default, counts)
    chosen = {name: value for name, value in chosen.items() if value is not None}
    return MluBuild(**chosen) if chosen else None


def _quantisation(given: Mapping[str, Any]) -> QuantisationChoice | None:
    """The choice of quantisation options; None if no option was given."""
    from clipmlu.compile.quantisation import QuantisationChoice

    changes: dict[str, Any] = {
        "granularity": given["granularity"],
        "activation": given["activation_quant"],
        "algorithm": given["calib_algo"],
        "percentile": given["calib_percentile"],
        "smooth_alpha": _smoothing(given["smooth_alpha"]) if given["smooth_alpha"] else None,
        "keep_float": given["keep_float"] or None,
        "weight_rounding": given["weight_rounding"],
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    if given["quantisation"] is None and not changes:
        return None
    return QuantisationChoice(name=given["quantisation"] or "recommended", changes=changes)


def _smoothing(texts: tuple[str, ...]) -> dict[str, SmoothingStrength]:
    """Map each role to its strength. A value without a role is for all roles; later values replace earlier ones."""
    chosen: dict[str, SmoothingStrength] = {}
    for text in texts:
        role, equals, strength = text.rpartition("=")
        try:
            value: SmoothingStrength = AUTO_SMOOTHING if strength == AUTO_SMOOTHING else float(strength)
        except ValueError:
            value = math.nan
        if value != AUTO_SMOOTHING and not math.isfinite(value):
            raise OptionError(f"smoothing strength is '{text}'; expected such as 0.5, mlp_in=0.5 or {AUTO_SMOOTHING}")
        chosen.update(dict.fromkeys([role.replace("-", "_")] if equals else SMOOTHED_ROLES, value))
    return chosen


def _counts(texts: tuple[str, ...]) -> tuple[int, ...]:
    pieces = comma_separated(*texts)
    if not all(piece.isdigit() and int(piece) > 0 for piece in pieces):
        raise OptionError(f"cluster number is '{','.join(texts)}'; expected numbers such as 6 or 2,6,8")
    return tuple(int(piece) for piece in pieces)


def _read_build_config(path: Path) -> dict[str, Any]:
    try:
        return read_json(path, dict[str, Any])
    except OSError as error:
        raise InputError(f"Cannot read the build configuration '{path}': {error.strerror}.") from error
    except msgspec.DecodeError as error:
        raise InputError(
            f"The build configuration '{path}' cannot be used: {first_line(error)}. Expected a JSON object: {{...}}."
        ) from error


compile_options = OptionGroup("options", _OPTIONS, _options_from)
"""Adds the compiling options; the command gets ``options``, a ``CompileOptions`` without overwriting."""

sweep_options = OptionGroup(
    "options",
    (option for option in _OPTIONS if option.name not in _SET_BY_SWEEP),
    lambda given: _options_from({**given, **_SET_BY_SWEEP}),
)
"""As ``compile_options``, for a command that compiles several times: without precision, batch sizes and shape."""
