"""The options of the commands that compile, as ``CompileOptions``."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
import msgspec

from clipmlu.cli._datasets import calibration_names_options
from clipmlu.cli._shared import PATH, Decorated, Number, device_option, max_pixels_option
from clipmlu.errors import InputError, OptionError, first_line
from clipmlu.files.read import read_json
from clipmlu.specs import (
    MLU_ARCHS,
    SMOOTHED_ROLES,
    ActivationQuantisation,
    CalibrationAlgorithm,
    ComputationPreference,
    Granularity,
    Precision,
)

if TYPE_CHECKING:
    from clipmlu.compile.compiler import CompileOptions
    from clipmlu.data.calibration import CalibrationOptions
    from clipmlu.specs import MluBuild, QuantisationOptions

_SWITCHES = {
    "--dynamic-shape": {"true": "--dynamic-shape", "false": "--static-shape"},
    "--conv-scale-fold": {"true": "--conv-scale-fold", "false": "--no-conv-scale-fold"},
}
"""Options without a value here that have one in the vendor's scripts."""
_LISTS: dict[str, Callable[[str], bool]] = {"--cluster-num": str.isdigit, "--mlu-arch": MLU_ARCHS.__contains__}
"""Options that take several values in the vendor's scripts, and what such a value is."""


class CompilingCommand(click.Command):
    """A command that also takes options as the vendor's scripts write them (magicmind_cloud, python_common/build_param.py).

    ``--batch_size 8 --dynamic_shape true --cluster_num 2 6 8`` means ``--batch-size 8 --dynamic-shape --cluster-num 2
    --cluster-num 6 --cluster-num 8``.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Turn them into ours first."""
        return super().parse_args(ctx, _rewritten(args))


def _rewritten(args: list[str]) -> list[str]:
    result: list[str] = []
    values_of = ""  # the option whose values we are among
    for argument in args:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            values_of = name.replace("_", "-")
            result.append(values_of + equals + value)
        elif values_of in _SWITCHES and result[-1] == values_of and argument.lower() in ("true", "false"):
            result[-1] = _SWITCHES[values_of][argument.lower()]
        elif values_of in _LISTS and result[-1] != values_of and _LISTS[values_of](argument):
            result += [values_of, argument]
        else:
            values_of = values_of if result and result[-1] == values_of else ""
            result.append(argument)
    return result


def _choice(values: Any) -> click.Choice[str]:
    return click.Choice(list(get_args(values)))


_OPTIONS = (
    click.option(
        "--target",
        default="auto",
        show_default=True,
        help="cpu, openvino, mlu, emulated-mlu, or auto for the first of mlu, openvino, cpu that can be used here and offers the precision.",
    ),
    click.option(
        "--precision",
        type=click.Choice([precision.value for precision in Precision]),
        default=Precision.FORCE_FLOAT32.value,
        show_default=True,
        help="Arithmetic of the compiled graphs; force_bfloat16 needs --target openvino and a CPU that has it.",
    ),
    click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Rows of a batch."),
    click.option(
        "--dynamic-shape/--static-shape",
        default=True,
        show_default=True,
        help="Take any batch up to --max-batch, or exactly --batch-size (partial ones are padded).",
    ),
    click.option(
        "--max-batch", type=click.IntRange(min=1), default=None, help="Largest batch of a dynamic shape. [default: 64]"
    ),
    click.option(
        "--uint8-input",
        is_flag=True,
        help="Take pixels as uint8 and normalise them in the graph: a quarter of the bytes.",
    ),
    click.option("--text-target", metavar="TARGET", help="cpu or openvino: run the text tower there, in float32."),
    click.option(
        "--min-cosine",
        type=Number(-1, 1),
        help="Gate: least cosine of a compiled embedding and its float32 reference. [default: by precision]",
    ),
    click.option(
        "--min-agreement",
        type=Number(0, 1),
        help="Gate: least share of images with the same best class as in float32. [default: by precision]",
    ),
    click.option(
        "--check/--no-check",
        default=True,
        show_default=True,
        help="Run the compiled graphs before they are published, or build for a card that is not here.",
    ),
    click.option(
        "--calib",
        metavar="DATASET|FOLDER|SET",
        help="Calibrate (qint precisions) with the train split of a dataset, a folder of images, or a set of 'clipmlu calibrate'.",
    ),
    click.option(
        "--calib-samples", type=click.IntRange(min=1), default=1000, show_default=True, help="Images to calibrate with."
    ),
    click.option(
        "--calib-seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of their choice."
    ),
    click.option("--calib-data-dir", type=PATH, help="Folder that holds the calibration dataset."),
    *calibration_names_options,
    max_pixels_option,
    click.option(
        "--calib-server",
        "--rpc-server",
        metavar="IP:PORT",
        help="A card elsewhere that calibrates for a host without one.",
    ),
    click.option(
        "--calib-algo",
        "--calibration-algo",
        type=_choice(CalibrationAlgorithm),
        help="How calibration finds ranges. [default: linear]",
    ),
    click.option(
        "--calib-percentile",
        type=Number(0, 100, min_open=True),
        help="Values kept by --calib-algo percentile. [default: 99.99]",
    ),
    click.option(
        "--smooth-alpha",
        metavar="ALPHA|ROLE=ALPHA",
        multiple=True,
        help="Move outliers of activations into weights, 0 (off) to 1, for all roles or one. [default: 0]",
    ),
    click.option(
        "--keep-float",
        metavar="ROLE[:BLOCKS]",
        multiple=True,
        help="Operators that are not quantised, such as mlp_out or qkv:0-2,11.",
    ),
    click.option(
        "--granularity",
        "--weight-quant-granularity",
        type=_choice(Granularity),
        help="Scales of quantised weights. [default: per_tensor]",
    ),
    click.option(
        "--activation-quant",
        "--activation-quant-algo",
        type=_choice(ActivationQuantisation),
        help="Quantisation of activations. [default: symmetric]",
    ),
    click.option(
        "--mlu-arch", type=click.Choice(MLU_ARCHS), multiple=True, help="MLU: architecture. [default: mtp_372]"
    ),
    click.option(
        "--cluster-num", metavar="N[,N...]", multiple=True, help="MLU: clusters to optimise for. [default: 2,6,8]"
    ),
    click.option(
        "--computation-preference",
        type=_choice(ComputationPreference),
        help="MLU: how operators compute. [default: auto]",
    ),
    click.option(
        "--conv-scale-fold/--no-conv-scale-fold",
        default=None,
        help="MLU: fold scales into convolutions. [default: fold]",
    ),
    click.option("--text-rows", type=click.IntRange(min=1), help="MLU, joint layout: number of texts. [default: 100]"),
    click.option(
        "--toolchain", "--toolchain-path", metavar="DIR", help="MLU: cross-compiler for the edge part tp_322."
    ),
    click.option("--build-config", type=PATH, metavar="FILE", help="MLU: JSON for the SDK, merged last."),
    device_option,
)


def compile_options(command: Decorated) -> Decorated:
    """The options of a command that compiles; it gets ``options``, a ``CompileOptions`` that overwrites nothing."""
    return _with_options(command, {})


def sweep_options(command: Decorated) -> Decorated:
    """The same for a command that compiles several times: without precision, batch sizes and shape, which it sets itself."""
    return _with_options(command, _SET_BY_SWEEP)


def _with_options(command: Decorated, left_out: dict[str, Any]) -> Decorated:
    reads_images = "max_pixels" in inspect.signature(command).parameters

    @functools.wraps(command)
    def wrapped(**parameters: Any) -> Any:
        given = {name: left_out[name] if name in left_out else parameters.pop(name) for name in _NAMES}
        if reads_images:
            parameters["max_pixels"] = given["max_pixels"]
        return command(**parameters, options=_options_from(given))

    decorated: Callable[..., Any] = wrapped
    for name, option in reversed(list(zip(_NAMES, _OPTIONS, strict=True))):
        if name not in left_out:
            decorated = option(decorated)
    return decorated  # type: ignore[return-value]


def _names() -> tuple[str, ...]:
    """Parameter names of ``_OPTIONS``, as click makes them."""

    def nothing() -> None:
        """No command."""

    for option in _OPTIONS:
        option(nothing)
    return tuple(str(parameter.name) for parameter in nothing.__click_params__)  # type: ignore[attr-defined]


_NAMES = _names()
_SET_BY_SWEEP: dict[str, Any] = {
    "precision": Precision.FORCE_FLOAT32.value,
    "batch_size": 32,
    "dynamic_shape": True,
    "max_batch": None,
}
"""Options that a sweep does not have, and what stands for them until it sets its own."""


def _options_from(given: dict[str, Any]) -> CompileOptions:
    from clipmlu.backends import SessionOptions
    from clipmlu.compile.compiler import CompileOptions

    return CompileOptions(
        target=given["target"],
        precision=Precision(given["precision"]),
        batch_size=given["batch_size"],
        dynamic_shape=given["dynamic_shape"],
        max_batch=given["max_batch"],
        text_target=given["text_target"],
        mlu=_mlu_build(given),
        quantisation=_quantisation(given),
        calibration=_calibration(given),
        calibration_server=given["calib_server"],
        min_cosine=given["min_cosine"],
        min_agreement=given["min_agreement"],
        check=given["check"],
        uint8_input=given["uint8_input"],
        session=SessionOptions(device=given["device"], busy_wait=False),
    )


def _mlu_build(given: dict[str, Any]) -> MluBuild | None:
    """None when no option about building for cards was given."""
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


def _quantisation(given: dict[str, Any]) -> QuantisationOptions | None:
    """None when no option about quantisation was given."""
    from clipmlu.specs import QuantisationOptions

    chosen = {
        "granularity": given["granularity"],
        "activation": given["activation_quant"],
        "algorithm": given["calib_algo"],
        "percentile": given["calib_percentile"],
        "smooth_alpha": _smoothing(given["smooth_alpha"]) or None,
        "keep_float": given["keep_float"] or None,
    }
    chosen = {name: value for name, value in chosen.items() if value is not None}
    return QuantisationOptions(**chosen) if chosen else None


def _smoothing(texts: tuple[str, ...]) -> dict[str, float]:
    """Role -> strength; one without a role is for all of them, and later ones win."""
    chosen: dict[str, float] = {}
    for text in texts:
        role, equals, strength = text.rpartition("=")
        try:
            value = float(strength)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise OptionError(f"smoothing strength is '{text}'; expected such as 0.5 or mlp_in=0.5")
        chosen.update(dict.fromkeys([role.replace("-", "_")] if equals else SMOOTHED_ROLES, value))
    return {role: value for role, value in chosen.items() if value}


def _counts(texts: tuple[str, ...]) -> tuple[int, ...]:
    pieces = [piece.strip() for text in texts for piece in text.split(",")]
    if not all(piece.isdigit() and int(piece) > 0 for piece in pieces):
        raise OptionError(f"cluster number is '{','.join(texts)}'; expected numbers such as 6 or 2,6,8")
    return tuple(int(piece) for piece in pieces)


def _calibration(given: dict[str, Any]) -> CalibrationOptions | None:
    from clipmlu.data.calibration import CalibrationOptions

    if given["calib"] is None:
        if given["calib_class_names"] is not None or given["calib_folder_names"]:
            raise OptionError(
                "--calib-class-names and --calib-folder-names are about the images of --calib; give that too"
            )
        return None
    return CalibrationOptions(
        dataset=given["calib"],
        samples=given["calib_samples"],
        seed=given["calib_seed"],
        data_dir=given["calib_data_dir"],
        class_names=given["calib_class_names"],
        folder_names=given["calib_folder_names"],
        max_pixels=given["max_pixels"],
    )


def _read_build_config(path: Path) -> dict[str, Any]:
    try:
        return read_json(path, dict[str, Any])
    except OSError as error:
        raise InputError(f"Cannot read the build configuration '{path}': {error.strerror}.") from error
    except msgspec.DecodeError as error:
        raise InputError(
            f"The build configuration '{path}' cannot be used: {first_line(error)}. Expected a JSON object: {{...}}."
        ) from error
