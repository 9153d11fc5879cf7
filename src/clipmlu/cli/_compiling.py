"""Options of the commands that compile, converted to ``CompileOptions``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmlu.cli._datasets import calibration_options
from clipmlu.cli._groups import Option, OptionGroup, is_on_command_line, under
from clipmlu.cli._options import PATH, Choice, Integer, Number, PrecisionChoice, device_option, max_pixels_option
from clipmlu.keywords import pick_keywords
from clipmlu.specs import (
    MLU_ARCHS,
    ActivationQuantisation,
    CalibrationAlgorithm,
    ComputationPreference,
    Granularity,
    Precision,
    Target,
    TextTarget,
    WeightRounding,
)

if TYPE_CHECKING:
    from clipmlu.compile.lowering import LowerOptions
    from clipmlu.compile.plan import CompileOptions


_CALIBRATION = calibration_options(
    metavar="DATASET|FOLDER|SET",
    help="Calibrate (qint precisions) with the train split of a dataset, a folder of images, or a set of 'clipmlu calibrate'.",
)
_OPTIONS = (
    Option(
        "--target",
        type=Choice(Target),
        envvar="CLIPMLU_TARGET",
        default="auto",
        show_default=True,
        help="Where the bundle is to run; auto: the first of mlu, openvino, cpu that is available and offers the precision.",
    ),
    Option(
        "--precision",
        type=PrecisionChoice(),
        envvar="CLIPMLU_PRECISION",
        metavar="PRECISION",
        default=Precision.FORCE_FLOAT32.value,
        show_default=True,
        help="Arithmetic of the compiled graphs: fp32 (force_float32), fp16 (force_float16), bf16 (force_bfloat16), int8 (qint8_mixed_float32), "
        "int16 (qint16_mixed_float32), qint8_mixed_float16 or qint16_mixed_float16. bf16 needs --target openvino and a CPU that supports it; "
        "'clipmlu doctor' measures whether it is faster.",
    ),
    Option(
        "--batch-size",
        envvar="CLIPMLU_BATCH_SIZE",
        type=Integer(min=1),
        default=32,
        show_default=True,
        help="Rows of a batch.",
    ),
    Option(
        "--dynamic-shape/--static-shape",
        default=True,
        show_default=True,
        help="Accept batches up to --max-batch, or exactly --batch-size (smaller ones are padded).",
    ),
    Option("--max-batch", type=Integer(min=1), default=None, help="Largest batch of a dynamic shape. [default: 64]"),
    Option(
        "--uint8-input",
        is_flag=True,
        help="Accept uint8 pixels and normalise them in the graph; input has a quarter of the bytes.",
    ),
    Option("--text-target", type=Choice(TextTarget), help="Compile the text tower for this target, in float32."),
    *under(
        "Gates",
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
    ),
    *_CALIBRATION.options,
    *under(
        "Calibration",
        max_pixels_option,
        Option(
            "--calib-server",
            "--rpc-server",
            metavar="IP:PORT",
            help="Card of another host for calibration, if this host has no card.",
        ),
    ),
    *under(
        "Quantisation",
        Option(
            "--quantisation",
            type=Choice(["recommended", "vendor"]),
            help="Quantisation options: the recommended ones of the target, or those of the vendor's CLIP sample. The following options "
            "replace single ones. [default: recommended]",
        ),
        Option(
            "--calib-algo",
            "--calibration-algo",
            type=Choice(CalibrationAlgorithm),
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
            type=Choice(Granularity),
            help="Scales of quantised weights. [default: by --quantisation]",
        ),
        Option(
            "--activation-quant",
            "--activation-quant-algo",
            type=Choice(ActivationQuantisation),
            help="Quantisation of activations. [default: by --quantisation]",
        ),
        Option(
            "--weight-rounding",
            type=Choice(WeightRounding),
            help="Integers of weights: the nearest, or those that change the results of linear layers least on the calibration data. "
            "[default: by --quantisation]",
        ),
    ),
    *under(
        "MLU cards",
        Option("--mlu-arch", type=Choice(MLU_ARCHS), multiple=True, help="MLU: architecture. [default: mtp_372]"),
        Option(
            "--cluster-num", metavar="N[,N...]", multiple=True, help="MLU: clusters to optimise for. [default: 2,6,8]"
        ),
        Option(
            "--computation-preference",
            type=Choice(ComputationPreference),
            help="MLU: optimise for speed or precision. [default: auto]",
        ),
        Option(
            "--conv-scale-fold/--no-conv-scale-fold",
            default=None,
            help="MLU: fold scales into convolutions. [default: fold]",
        ),
        Option("--text-rows", type=Integer(min=1), help="MLU, joint layout: number of texts. [default: 100]"),
        Option("--toolchain", "--toolchain-path", metavar="DIR", help="MLU: cross-compiler for the edge part tp_322."),
        Option(
            "--build-config",
            type=PATH,
            metavar="FILE",
            help="MLU: JSON configuration for the SDK; it overrides other options.",
        ),
        device_option,
    ),
)


_SET_BY_SWEEP = ("precision", "batch_size", "dynamic_shape", "max_batch")
"""Options that a sweep does not have: it sets them for each bundle."""


def _options_from(given: Mapping[str, Any]) -> CompileOptions:
    from clipmlu.api import compile_keywords

    return compile_keywords.compile_options(pick_keywords(given, compile_keywords.CompileKeywords))


compile_options = OptionGroup("options", _OPTIONS, _options_from)
"""Adds the compiling options; the command gets ``options``, a ``CompileOptions`` without overwriting."""

sweep_options = OptionGroup(
    "options",
    (option for option in _OPTIONS if option.name not in _SET_BY_SWEEP),
    lambda given: _options_from({name: value for name, value in given.items() if name not in _SET_BY_SWEEP}),
)
"""As ``compile_options``, for a command that compiles several times: without precision, batch sizes and shape."""

_OF_THE_GRAPH = (
    "precision",
    "batch_size",
    "dynamic_shape",
    "max_batch",
    *(option.name for option in _CALIBRATION.options),
    "max_pixels",
    "quantisation",
    "calib_algo",
    "calib_percentile",
    "smooth_alpha",
    "keep_float",
    "granularity",
    "activation_quant",
    "weight_rounding",
    "text_rows",
)
"""Options on which a lowered graph, or its description, depends."""


def _lower_options_from(given: Mapping[str, Any]) -> LowerOptions:
    from clipmlu.api import compile_keywords

    keywords = pick_keywords(given, compile_keywords.LowerKeywords)
    if given.get("labels") is None and not is_on_command_line("templates"):
        keywords.pop("templates", None)  # of the environment, for other commands
    return compile_keywords.lower_options(keywords)


lower_options = OptionGroup(
    "options",
    (option for option in _OPTIONS if option.name in _OF_THE_GRAPH),
    _lower_options_from,
    reads=("target", "layout", "labels", "templates", "offline", "overwrite"),
)
"""Adds those compiling options that change a lowered graph; the command gets ``options``, a ``LowerOptions``."""


def commands_for_bundle(bundle: Path, *, demo: bool) -> list[tuple[str | Path, ...]]:
    """Return what people may do with a compiled bundle; the commands about the demo model need no files of theirs."""
    classify = ("datasets", "--write-samples", ".") if demo else ("classify", bundle, "photos/", "--labels", "cat,dog")
    return [("eval", bundle, "--dataset", "demo" if demo else "cifar100"), ("bench", bundle), classify]
