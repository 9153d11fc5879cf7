"""Keywords of calibration and of compilation, and the options that they make."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import msgspec

from clipmlu.arguments import as_path, check_argument
from clipmlu.backends import SessionOptions
from clipmlu.compile.plan import CompileOptions, LowerTarget
from clipmlu.compile.quantisation import QuantisationChoice, QuantisationName
from clipmlu.data.calibration import CalibrationOptions
from clipmlu.data.class_names import FolderNames
from clipmlu.data.prompts import Templates
from clipmlu.errors import InputError, OptionError, first_line
from clipmlu.files.read import read_json
from clipmlu.specs import (
    AUTO_SMOOTHING,
    SMOOTHED_ROLES,
    ActivationQuantisation,
    CalibrationAlgorithm,
    ComputationPreference,
    Granularity,
    Layout,
    MluBuild,
    NaturalInt,
    PositiveInt,
    Precision,
    SmoothingStrength,
    WeightRounding,
)

if TYPE_CHECKING:
    from clipmlu.compile.lowering import LowerOptions


class ReadingKeywords(TypedDict, total=False):
    """Keywords about reading images.

    Attributes:
        max_pixels: largest width x height of an image that is decoded; 178,956,970 by default.
        offline: download nothing; use local files only.
    """

    max_pixels: PositiveInt
    offline: bool


class CalibrationKeywords(TypedDict, total=False):
    """Keywords of calibration data.

    Attributes:
        calib: data to calibrate with, for the modes that quantise: a dataset, whose train split is used (``cifar100``, ``cifar10``,
            ``demo``, ``imagefolder:PATH``), a folder of images, or a set of ``calibrate_bundle``.
        calib_samples: images to calibrate with; 1000 by default.
        calib_seed: seed of the image selection; 0 by default.
        calib_data_dir: folder that holds the dataset.
        calib_class_names: names for the classes: a file, a list in the order of the classes, or a map folder -> name.
        calib_folder_names: take the names of class folders even if they look like ids or splits.
    """

    calib: str | os.PathLike[str] | None
    calib_samples: PositiveInt
    calib_seed: NaturalInt
    calib_data_dir: str | os.PathLike[str] | None
    calib_class_names: FolderNames | None
    calib_folder_names: bool


class ShapeKeywords(TypedDict, total=False):
    """Keywords of the precision and the batches of a compilation.

    Attributes:
        precision: arithmetic of the compiled graphs, such as ``"fp16"``.
        batch_size: rows of a batch.
        dynamic_shape: accept batches of 1 to ``max_batch`` rows; False: exactly ``batch_size``, smaller ones are padded.
        max_batch: largest batch of a dynamic shape; None for 64, or ``batch_size`` if that is larger.
    """

    precision: Precision | str
    batch_size: PositiveInt
    dynamic_shape: bool
    max_batch: PositiveInt | None


class QuantisationKeywords(TypedDict, total=False):
    """Keywords of the modes that quantise.

    Attributes:
        quantisation: ``"recommended"`` options of the target, or those of the ``"vendor"``'s sample; the following ones
            replace single ones.
        calib_algo: algorithm that chooses ranges.
        calib_percentile: percentage of values in the range, above 0 to 100, for ``calib_algo="percentile"``.
        smooth_alpha: strength of smoothing, 0 (off) to 1 or ``"auto"``: for all roles, or a map role -> strength, or texts
            such as ``"mlp_in=0.5"``.
        keep_float: operators that are not quantised, such as ``"mlp_out"`` or ``["qkv:0-2,11"]``.
        granularity: scales of quantised weights.
        activation_quant: quantisation of activations.
        weight_rounding: integers of weights.
    """

    quantisation: QuantisationName | None
    calib_algo: CalibrationAlgorithm | None
    calib_percentile: float | None
    smooth_alpha: float | str | Mapping[str, float | Literal["auto"]] | Sequence[str] | None
    keep_float: str | Sequence[str] | None
    granularity: Granularity | None
    activation_quant: ActivationQuantisation | None
    weight_rounding: WeightRounding | None


class TargetKeywords(QuantisationKeywords, total=False):
    """Keywords of a compilation, except for those of ``ShapeKeywords`` and ``CalibrationKeywords``.

    Attributes:
        target: ``cpu``, ``openvino``, ``mlu``, ``emulated-mlu``, or ``auto`` for the first available target that offers the
            precision.
        text_target: ``cpu`` or ``openvino``: compile the text tower for it, in float32; None for ``target``.
        uint8_input: accept uint8 pixels and normalise them in the graph.
        min_cosine: gate: smallest cosine similarity of compiled and float32 embeddings, -1 to 1; None for the precision's.
        min_agreement: gate: smallest share of images with the same best class as in float32, 0 to 1; None for the precision's.
        check: run the compiled graphs and compare them with float32; False to build without a card.
        calib_server: ``ip:port`` of a card of another host for calibration.
        mlu_arch: MLU: one or more architectures; ``mtp_372`` by default.
        cluster_num: MLU: numbers of clusters to optimise for; 2, 6 and 8 by default.
        computation_preference: MLU: optimise for speed or precision.
        conv_scale_fold: MLU: fold scales into convolutions.
        text_rows: MLU, joint layout: number of texts.
        toolchain: MLU: directory of the cross-compiler for the edge part tp_322.
        build_config: MLU: configuration for the SDK, a map or a JSON file; it overrides other options.
        device: index of the MLU card.
    """

    target: str
    text_target: str | None
    uint8_input: bool
    min_cosine: float | None
    min_agreement: float | None
    check: bool
    calib_server: str | None
    mlu_arch: str | Sequence[str] | None
    cluster_num: int | str | Sequence[int] | Sequence[str] | None
    computation_preference: ComputationPreference | None
    conv_scale_fold: bool | None
    text_rows: PositiveInt | None
    toolchain: str | os.PathLike[str] | None
    build_config: str | os.PathLike[str] | Mapping[str, Any] | None
    device: NaturalInt


class SearchKeywords(TargetKeywords, ShapeKeywords, CalibrationKeywords, ReadingKeywords, total=False):
    """Keywords of ``search_bundle``.

    Attributes:
        max_drop: search quantisation options that lose at most this much top-1 accuracy against float32: a fraction such as
            0.01. ``precision`` limits the search to one mode.
        search_pairs: judge the search by recall@1 in both directions instead: files of images and texts, as for
            ``evaluate_retrieval``.
        search_image_column: of ``search_pairs``, as ``image_column`` of ``evaluate_retrieval``.
        search_text_column: of ``search_pairs``, as ``text_column`` there.
        search_image_root: of ``search_pairs``, as ``image_root`` there.
        search_split: of ``search_pairs``, as ``split`` there.
        search_samples: held-out images to evaluate on; None for 1000 to 5000, by ``max_drop``.
        search_templates: prompts to evaluate on.
        overwrite: replace existing output.
    """

    max_drop: float | None
    search_pairs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None
    search_image_column: str | None
    search_text_column: str | None
    search_image_root: str | os.PathLike[str] | None
    search_split: str | None
    search_samples: PositiveInt | None
    search_templates: Templates
    overwrite: bool


class CompileKeywords(SearchKeywords, total=False):
    """Keywords of ``compile_bundle``.

    Attributes:
        recipe: use the quantisation options of a search (its ``recipe.json``) or of a compiled bundle.
    """

    recipe: str | os.PathLike[str] | None


class LowerKeywords(ShapeKeywords, QuantisationKeywords, CalibrationKeywords, ReadingKeywords, total=False):
    """Keywords of ``lower``.

    Attributes:
        target: the target whose parser reads the graphs: ``"mlu"``.
        layout: ``"towers"`` for one graph per tower, ``"joint"`` for the fused graph of the vendor's sample, to which two towers
            are joined; None for the layout of the bundle.
        text_rows: texts of the fused graph; None for 100, or the number of labels.
        labels: class names: a file, or a list; the token ids of their prompts are written too.
        templates: one template of the prompts.
        overwrite: replace existing output.
    """

    target: LowerTarget
    layout: Layout | None
    text_rows: PositiveInt | None
    labels: str | os.PathLike[str] | Sequence[str] | None
    templates: Templates | None
    overwrite: bool


class CalibrateKeywords(CalibrationKeywords, ReadingKeywords, total=False):
    """Keywords of ``calibrate_bundle``.

    Attributes:
        overwrite: replace existing output.
    """

    overwrite: bool


_FIELDS = (
    "target",
    "precision",
    "batch_size",
    "dynamic_shape",
    "max_batch",
    "text_target",
    "min_cosine",
    "min_agreement",
    "check",
    "uint8_input",
    "overwrite",
)
"""Keywords that are fields of ``CompileOptions``."""


def compile_options(keywords: Mapping[str, Any]) -> CompileOptions:
    """Return the options of a compilation.

    Args:
        keywords: of ``TargetKeywords``, ``ShapeKeywords``, ``CalibrationKeywords`` and ``ReadingKeywords``; a value of None counts
            as not given, and other keywords are left out.

    Raises:
        OptionError: a value is wrong, or two exclude each other.
        InputError: the build configuration cannot be read.
    """
    given = {name: value for name, value in keywords.items() if value is not None}
    return CompileOptions(
        **{name: given[name] for name in _FIELDS if name in given},
        mlu=_mlu_build(given),
        quantisation=_quantisation(given),
        calibration=calibration_options(given),
        calibration_server=given.get("calib_server"),
        session=SessionOptions(device=given.get("device", 0), busy_wait=False),
    )


def lower_options(keywords: Mapping[str, Any]) -> LowerOptions:
    """Return the options of ``lower_bundle`` from ``LowerKeywords``; a value of None counts as not given.

    Raises:
        OptionError: a value is wrong, or two exclude each other.
    """
    from clipmlu.compile.lowering import LowerOptions  # imports onnx, which pipeline does without

    given = {name: value for name, value in keywords.items() if value is not None}
    own = {name: given.pop(name) for name in ("target", "layout", "labels", "templates") if name in given}
    return LowerOptions(**own, compile=compile_options(given))


def calibration_options(keywords: Mapping[str, Any]) -> CalibrationOptions | None:
    """Return the options of calibration data; None without ``calib``.

    Args:
        keywords: as for ``compile_options``.

    Raises:
        OptionError: a value is wrong, or it describes data that are not given.
    """
    given = {name: value for name, value in keywords.items() if value is not None}
    if "calib" not in given:
        if "calib_class_names" in given or given.get("calib_folder_names"):
            raise OptionError(
                "--calib-class-names and --calib-folder-names are about the images of --calib; give that too"
            )
        return None
    named = {"samples": "calib_samples", "seed": "calib_seed", "data_dir": "calib_data_dir"}
    named |= {"class_names": "calib_class_names", "folder_names": "calib_folder_names", "max_pixels": "max_pixels"}
    return CalibrationOptions(
        dataset=os.fspath(given["calib"]),
        download=not given.get("offline", False),
        **{field: given[name] for field, name in named.items() if name in given},
    )


def _mlu_build(given: Mapping[str, Any]) -> MluBuild | None:
    """Build options for cards; None if none was given."""
    chosen = {name: given[name] for name in ("computation_preference", "conv_scale_fold", "text_rows") if name in given}
    if "toolchain" in given:
        chosen["toolchain"] = os.fspath(given["toolchain"])
    if "build_config" in given:
        chosen["build_config"] = _build_config(given["build_config"])
    if given.get("mlu_arch") or given.get("cluster_num"):
        default = MluBuild().archs
        counts = _counts(given["cluster_num"]) if given.get("cluster_num") else next(iter(default.values()))
        chosen["archs"] = dict.fromkeys(_several(given.get("mlu_arch") or default), counts)
    return MluBuild(**chosen) if chosen else None


_QUANTISATION_FIELDS = {
    "granularity": "granularity",
    "activation_quant": "activation",
    "calib_algo": "algorithm",
    "calib_percentile": "percentile",
    "weight_rounding": "weight_rounding",
}
"""Maps a keyword to its field of ``QuantisationOptions``."""


def _quantisation(given: Mapping[str, Any]) -> QuantisationChoice | None:
    """The choice of quantisation options; None if no option was given."""
    changes: dict[str, Any] = {field: given[name] for name, field in _QUANTISATION_FIELDS.items() if name in given}
    if given.get("smooth_alpha", ()) != ():
        changes["smooth_alpha"] = _smoothing(given["smooth_alpha"])
    if given.get("keep_float"):
        changes["keep_float"] = _selections(given["keep_float"])
    if "quantisation" not in given and not changes:
        return None
    return QuantisationChoice(name=given.get("quantisation", "recommended"), changes=changes)


def _selections(given: Any) -> tuple[str, ...]:
    """Return selections of operators whose syntax and roles are right; the blocks are compared with the model later."""
    from clipmlu.graph.selection import parse_selection

    texts = tuple(_several(given))
    for text in texts:
        parse_selection(check_argument(text, str, "keep float"))
    return texts


def _smoothing(given: Any) -> dict[str, SmoothingStrength]:
    """Map each role to its strength. A value without a role is for all roles; later values replace earlier ones."""
    if isinstance(given, Mapping):
        return {str(role).replace("-", "_"): strength for role, strength in given.items()}
    chosen: dict[str, SmoothingStrength] = {}
    for text in map(str, [given] if isinstance(given, str | int | float) else given):
        role, equals, strength = text.rpartition("=")
        try:
            value: SmoothingStrength = AUTO_SMOOTHING if strength == AUTO_SMOOTHING else float(strength)
        except ValueError:
            value = math.nan
        if value != AUTO_SMOOTHING and not math.isfinite(value):
            raise OptionError(f"smoothing strength is '{text}'; expected such as 0.5, mlp_in=0.5 or {AUTO_SMOOTHING}")
        chosen.update(dict.fromkeys([role.replace("-", "_")] if equals else SMOOTHED_ROLES, value))
    return chosen


def _counts(given: Any) -> tuple[int, ...]:
    pieces = [piece.strip() for each in _several(given) for piece in str(each).split(",")]
    if not all(piece.isdigit() and int(piece) > 0 for piece in pieces):
        raise OptionError(
            f"cluster number is '{','.join(map(str, _several(given)))}'; expected numbers such as 6 or 2,6,8"
        )
    return tuple(int(piece) for piece in pieces)


def _several(given: Any) -> list[Any]:
    return [given] if isinstance(given, str | int) else list(given)


def _build_config(given: Any) -> dict[str, Any]:
    if isinstance(given, Mapping):
        return dict(given)
    path: Path = as_path(given, "the build configuration")
    try:
        return read_json(path, dict[str, Any])
    except OSError as error:
        raise InputError(f"Cannot read the build configuration '{path}': {error.strerror}.") from error
    except msgspec.DecodeError as error:
        raise InputError(
            f"The build configuration '{path}' cannot be used: {first_line(error)}. Expected a JSON object: {{...}}."
        ) from error
