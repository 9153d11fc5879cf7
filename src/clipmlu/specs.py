"""Small immutable values that several stages share; most are stored in a bundle's manifest."""

from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

import msgspec

from clipmlu.arguments import check_fields
from clipmlu.errors import OptionError, wrong_choice

MODULE_KEY = "clipmlu.module"
"""Metadata key of a graph's node: path of its module, such as ``visual.transformer.resblocks.3.mlp.c_fc``."""

TEXT_AXIS = "text_batch"
"""Name of the text axis of the joint layout; all other variable axes are batches of images, or of one tower's inputs."""

LARGEST_SIZE = 2**31 - 1
"""Largest allowed size of a tensor axis."""

PositiveInt = Annotated[int, msgspec.Meta(ge=1, le=LARGEST_SIZE)]
NaturalInt = Annotated[int, msgspec.Meta(ge=0)]
Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]
TokenId = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
LARGEST_LOGIT = 1000.0
"""Largest absolute logit scale and bias. CLIP's training limits the scale to 100; SigLIP's models have scales of 112
to 118 and biases down to -17.
"""
LogitScale = Annotated[float, msgspec.Meta(ge=1 / LARGEST_LOGIT, le=LARGEST_LOGIT)]
LogitBias = Annotated[float, msgspec.Meta(ge=-LARGEST_LOGIT, le=LARGEST_LOGIT)]
Triple = tuple[float, float, float]

TowerName = Literal["image", "text", "joint"]
Layout = Literal["towers", "joint"]
Target = Literal["auto", "cpu", "openvino", "mlu", "emulated-mlu"]
TextTarget = Literal["cpu", "openvino"]
ResizeMode = Literal["shortest", "longest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]
RgbConversion = Literal["last", "first", "white"]
CropRounding = Literal["even", "down"]
TextCleaning = Literal["lower", "whitespace", "canonicalize", "siglip", "none"]
Granularity = Literal["per_tensor", "per_axis"]
ActivationQuantisation = Literal["symmetric", "asymmetric"]
CalibrationAlgorithm = Literal["linear", "eqnm", "percentile", "entropy"]
WeightRounding = Literal["nearest", "gptq"]
SmoothingStrength = float | Literal["auto"]
NodeType = Literal["float32", "float16"]
ComputationPreference = Literal["auto", "fast", "high_precision"]

SYMMETRIC_ALGORITHMS: tuple[CalibrationAlgorithm, ...] = ("eqnm", "entropy")
"""Calibration algorithms that find symmetric ranges only; the SDK's documentation says so of eqnm (docs/magicmind-api.md,
section 3).
"""

SMOOTHED_ROLES = ("qkv", "attention_output", "mlp_in", "mlp_out", "pooling", "projection")
"""Roles whose inputs can be smoothed: the inputs follow a LayerNorm, are the output projection's values, or an MLP's hidden layer."""

AUTO_SMOOTHING: Literal["auto"] = "auto"
"""Smoothing strength that is chosen for each tensor by the calibration data; see ``graph.quantisation.outliers``."""

MAX_SIDE = 1 << 13
"""Largest image height and width in pixels: more than any model uses, and still small enough for memory."""

Side = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)]

MAX_CONTEXT = 1 << 16
"""Largest number of token ids of a text: more than any text tower uses."""

_LARGEST_SHIFT = 1e6

MLU_ARCHS = ("mtp_372", "mtp_592", "tp_322")
"""Architecture names of MLU370, MLU590 and the edge device that the vendor's samples accept (docs/magicmind-api.md,
section 5).
"""


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base class of the stored values: immutable, keyword-only; unknown keys are errors."""


class Precision(enum.StrEnum):
    """The arithmetic of a compiled bundle: the six modes of the vendor's SDK, and ``force_bfloat16``.

    ``Precision("fp16")`` and the other names of ``PRECISION_ALIASES``, in any case, give the mode that they stand for.
    """

    FORCE_FLOAT32 = "force_float32"
    FORCE_FLOAT16 = "force_float16"
    QINT8_MIXED_FLOAT16 = "qint8_mixed_float16"
    QINT8_MIXED_FLOAT32 = "qint8_mixed_float32"
    QINT16_MIXED_FLOAT16 = "qint16_mixed_float16"
    QINT16_MIXED_FLOAT32 = "qint16_mixed_float32"
    FORCE_BFLOAT16 = "force_bfloat16"

    @classmethod
    def _missing_(cls, value: object) -> Precision | None:
        if not isinstance(value, str):
            return None
        name = PRECISION_ALIASES.get(value.lower(), value.lower())
        return next((mode for mode in cls if mode.value == name), None)

    @classmethod
    def short_names(cls) -> tuple[str, ...]:
        """Return the short names of the usual modes."""
        return ("fp32", "fp16", "bf16", "int8", "int16")

    @property
    def bits(self) -> int | None:
        """Number of bits of quantised operands, or None if the mode does not quantise."""
        return {"qint8": 8, "qint16": 16}.get(self.value.partition("_")[0])

    @property
    def float_type(self) -> NodeType:
        """Float type of the operators that are not quantised.

        ``float32`` for ``force_bfloat16``, because its runtime converts the float32 graph.
        """
        return "float16" if self.value.endswith("_float16") else "float32"


PRECISION_ALIASES: dict[str, str] = {
    "fp32": "force_float32",
    "float32": "force_float32",
    "fp16": "force_float16",
    "float16": "force_float16",
    "bf16": "force_bfloat16",
    "bfloat16": "force_bfloat16",
    "int8": "qint8_mixed_float32",
    "int16": "qint16_mixed_float32",
}
"""Maps other names of a precision, in lower case, to the vendor's; a manifest holds the vendor's."""

VENDOR_PRECISIONS: tuple[Precision, ...] = tuple(each for each in Precision if each is not Precision.FORCE_BFLOAT16)
"""The six modes of the vendor's SDK (docs/magicmind-api.md); MLU cards, the emulated SDK and the CPU offer them."""


class TensorSpec(Spec, frozen=True, kw_only=True):
    """One input or output of a graph.

    Attributes:
        name: the tensor's name in the graph.
        dtype: NumPy's name of the element type, such as ``"float32"`` or ``"int64"``.
        shape: one entry for each axis: a fixed size, or a name such as ``"batch"`` for a variable size.
    """

    name: str
    dtype: str
    shape: tuple[PositiveInt | str, ...]


class PreprocessSpec(Spec, frozen=True, kw_only=True):
    """The preprocessing from an image to an input tensor.

    The fields up to ``fill_color`` mean the same as in open_clip's ``PreprocessCfg``; the others are needed for models of the
    transformers library, and their defaults are what open_clip does.

    Attributes:
        height: rows of the input tensor in pixels.
        width: columns of the input tensor in pixels.
        mean: red, green, blue; subtracted from pixel values in 0..1.
        std: red, green, blue; divisor after the subtraction.
        resize_mode: ``shortest`` fits the shorter side and crops the centre, ``longest`` fits the longer side and
            pads, ``squash`` ignores the aspect ratio.
        interpolation: name of Pillow's resampling filter.
        fill_color: grey level of the padding in mode ``longest``, 0..255.
        to_rgb: conversion of images of other modes to RGB: ``last``, after the resize, and transparency is dropped; ``first``,
            before it, and transparency is dropped; ``white``, before it, and transparent images are laid on white.
        crop_rounding: how half a pixel of the place of the central crop is rounded: ``even`` to the even number, or ``down``.
        resize_to: rows and columns that the resize fits the image to, if these are more than those of the input tensor, which
            is then the centre; None for the input tensor's own.
    """

    height: Side
    width: Side
    mean: Triple
    std: Triple
    resize_mode: ResizeMode = "shortest"
    interpolation: Interpolation = "bicubic"
    fill_color: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0
    to_rgb: RgbConversion = "last"
    crop_rounding: CropRounding = "even"
    resize_to: tuple[Side, Side] | None = None

    @property
    def resized(self) -> tuple[int, int]:
        """Rows and columns that the resize fits the image to."""
        return self.resize_to or (self.height, self.width)

    def __post_init__(self) -> None:
        """Check that mean and std give finite results, and that the resized image covers the input tensor.

        Raises:
            OptionError: a value of mean, std or resize_to is out of range.
        """
        if (
            self.resized[0] < self.height
            or self.resized[1] < self.width
            or (self.resize_to and self.resize_mode == "longest")
        ):
            raise OptionError(
                f"images are resized to {list(self.resized)} in mode '{self.resize_mode}'; expected at least the {self.height} rows "
                f"and {self.width} columns of the input, and mode 'shortest' or 'squash'"
            )
        if not all(abs(value) <= _LARGEST_SHIFT for value in self.mean):
            raise OptionError(
                f"mean is {list(self.mean)}; expected numbers between -{_LARGEST_SHIFT:g} and {_LARGEST_SHIFT:g}"
            )
        if not all(1 / _LARGEST_SHIFT <= value <= _LARGEST_SHIFT for value in self.std):
            raise OptionError(
                f"standard deviation is {list(self.std)}; expected numbers between {1 / _LARGEST_SHIFT:g} and {_LARGEST_SHIFT:g}"
            )


class TokenizerSpec(Spec, frozen=True, kw_only=True):
    """The conversion of a text to token ids, in addition to the content of ``tokenizer.json``.

    Attributes:
        kind: ``clip_bpe`` for CLIP's own byte-pair tokenizer, ``huggingface`` for any other fast tokenizer.
        clean: the text cleaning, applied first: open_clip's function, ``siglip`` for the canonical form of transformers' SigLIP, or
            ``none``.
        context_length: ids per text; shorter texts are padded, longer ones truncated.
        pad_id: the id of padding.
        zero_id: an id that is replaced by 0 after tokenising (open_clip's ``strip_sep_token``), or None.
        class_token_id: an id that is put at the end of every row (open_clip's ``clips`` mode), or None.
        bos_id: first id of every row in ``clips`` mode, else None.
        eos_id: id after the text in ``clips`` mode, else None.
        stand_in: True if another tokenizer replaces the model's own, which is allowed with random weights only.
    """

    kind: Literal["clip_bpe", "huggingface"]
    clean: TextCleaning
    context_length: Annotated[int, msgspec.Meta(ge=1, le=MAX_CONTEXT)]
    pad_id: TokenId = 0
    zero_id: TokenId | None = None
    class_token_id: TokenId | None = None
    bos_id: TokenId | None = None
    eos_id: TokenId | None = None
    stand_in: bool = False

    def __post_init__(self) -> None:
        """Check that the fields are consistent.

        Raises:
            OptionError: two fields contradict each other.
        """
        if self.class_token_id is not None and (self.bos_id is None or self.eos_id is None):
            raise OptionError("a tokenizer with a class token at the end ('clips' mode) needs bos_id and eos_id too")
        if self.kind == "clip_bpe" and (self.class_token_id is not None or self.zero_id is not None):
            raise OptionError(
                "class_token_id and zero_id belong to kind 'huggingface'; CLIP's own tokenizer has neither"
            )


class ModelId(Spec, frozen=True, kw_only=True):
    """The identity of a bundle's model.

    Attributes:
        name: as given to ``clipmlu export``: an open_clip name, ``hf-hub:org/name``, ``hf:org/name``, ``ms:org/name``, ``local-dir:PATH`` or ``demo``.
        pretrained: open_clip's tag of the weights, or None if the name alone identifies them.
        random_seed: the seed of untrained weights, or None for a trained model.
    """

    name: str
    pretrained: str | None = None
    random_seed: int | None = None

    def __str__(self) -> str:
        if self.random_seed is not None:
            return f"{self.name} (random weights, seed {self.random_seed})"
        return f"{self.name}::{self.pretrained}" if self.pretrained else self.name


class MluBuild(Spec, frozen=True, kw_only=True):
    """Options for building a graph for MLU cards; the defaults are those of the vendor's CLIP sample.

    Attributes:
        archs: maps each architecture to the numbers of clusters to optimise for; an empty tuple gives no numbers.
        computation_preference: the SDK's choice between speed and precision of operators.
        conv_scale_fold: fold the scaling after a convolution into its weights.
        node_types: maps an exact node name to ``"float32"`` or ``"float16"``; overrides the precision mode.
        text_rows: fixed number of texts of the joint layout.
        build_config: additional SDK configuration; overrides all other fields.
        toolchain: path of the cross-compiler for the edge device, or None.
    """

    archs: dict[str, tuple[PositiveInt, ...]] = msgspec.field(default_factory=lambda: {"mtp_372": (2, 6, 8)})
    computation_preference: ComputationPreference = "auto"
    conv_scale_fold: bool = True
    node_types: dict[str, NodeType] = {}
    text_rows: PositiveInt = 100
    build_config: dict[str, Any] = {}
    toolchain: str | None = None

    def __post_init__(self) -> None:
        """Check the types and the architectures.

        Raises:
            OptionError: a field has a value that the SDK does not accept.
        """
        check_fields(self)
        unknown = sorted(set(self.archs) - set(MLU_ARCHS))
        if unknown or not self.archs:
            named = ", ".join(unknown) or "none"
            raise OptionError(wrong_choice("MLU architecture", named, MLU_ARCHS, "expected one or more of"))


class QuantisationOptions(Spec, frozen=True, kw_only=True):
    """Options of quantisation; the defaults are those of the vendor's CLIP sample.

    The recommended options of a target, which a compilation without quantisation options uses, are in
    ``compile.quantisation``.

    Attributes:
        granularity: one scale for each weight tensor, or for each of its output channels.
        activation: whether activation ranges are symmetric around zero.
        algorithm: how calibration finds activation ranges: ``linear`` takes the smallest and the largest value,
            ``eqnm`` minimises the quantisation noise, ``percentile`` keeps a share of the values, ``entropy`` minimises
            the loss of information. The SDK supports the first two; the other two add Clip nodes to the graph on every
            target.
        percentile: percentage of the values that ``percentile`` keeps, above 0 and up to 100.
        smooth_alpha: maps a role to the share of its input outliers that moves into its weights, 0..1, or to
            ``"auto"`` to smooth only those inputs whose calibration data have outlier channels; roles that are not
            listed are not smoothed. See ``graph.quantisation.smoothing``.
        keep_float: operators that stay in the mode's float type, each ``ROLE`` or ``ROLE:BLOCKS``, and with a ``?`` at the
            end if a model may have none; see ``graph.roles``.
        weight_rounding: the integers of weights: ``nearest``, or ``gptq`` for those that change the results of linear
            layers least on the calibration data; see ``graph.quantisation.weight_rounding``.
    """

    granularity: Granularity = "per_tensor"
    activation: ActivationQuantisation = "symmetric"
    algorithm: CalibrationAlgorithm = "linear"
    percentile: float = 99.99
    smooth_alpha: dict[str, SmoothingStrength] = {}
    keep_float: tuple[str, ...] = ()
    weight_rounding: WeightRounding = "nearest"

    def __post_init__(self) -> None:
        """Check the ranges and combinations of the fields.

        Raises:
            OptionError: a field has a value that no target accepts.
        """
        check_fields(self)
        if self.algorithm in SYMMETRIC_ALGORITHMS and self.activation == "asymmetric":
            raise OptionError(f"the calibration algorithm {self.algorithm} works with symmetric activations only")
        if self.algorithm == "eqnm" and self.weight_rounding == "gptq":
            raise OptionError(
                "the calibration algorithm eqnm clips weights, and weight rounding gptq must not; leave one out"
            )
        if not 0 < self.percentile <= 100:
            raise OptionError(f"calibration percentile is {self.percentile:g}; expected more than 0 and up to 100")
        unknown = sorted(set(self.smooth_alpha) - set(SMOOTHED_ROLES))
        if unknown:
            raise OptionError(wrong_choice("role to smooth", unknown[0], SMOOTHED_ROLES))
        wrong = [alpha for alpha in self.smooth_alpha.values() if alpha != AUTO_SMOOTHING and not 0 <= alpha <= 1]
        if wrong:
            raise OptionError(f"smoothing strength is {wrong[0]:g}; expected 0 (off) to 1, or {AUTO_SMOOTHING}")

    @property
    def is_smoothed(self) -> bool:
        """Whether a role has a strength of smoothing other than 0."""
        return any(self.smooth_alpha.values())

    @property
    def smoothing_text(self) -> str:
        """The strengths of smoothing as text: one value if all roles have it, else each role with its value."""
        strengths = {
            role: f"{alpha:g}" if isinstance(alpha, (int, float)) else alpha
            for role, alpha in self.smooth_alpha.items()
            if alpha
        }
        if strengths.keys() == set(SMOOTHED_ROLES) and len(set(strengths.values())) == 1:
            return next(iter(strengths.values()))
        return ", ".join(f"{role} {text}" for role, text in strengths.items())


class TensorQuantisation(Spec, frozen=True, kw_only=True):
    """The quantisation of one tensor: ``round(x / scale) + zero_point``, limited to the signed range of ``bits`` bits.

    Attributes:
        bits: 8 or 16.
        scale: one number, or one for each channel along ``axis``.
        zero_point: integer that stands for 0.0; 0 if symmetric.
        axis: axis of the scales, or None for a single scale.
        minimum: smallest value of an activation's calibrated range, or of a weight.
        maximum: largest value of the same.
    """

    bits: PositiveInt
    scale: tuple[float, ...]
    zero_point: int
    axis: NaturalInt | None
    minimum: float
    maximum: float


class PixelScaling(Spec, frozen=True, kw_only=True):
    """Factors and summands of normalised pixels before the first convolution; see ``graph.quantisation.pixel_scaling``.

    Attributes:
        scale: factor of each colour.
        shift: added to each colour after the multiplication.
    """

    scale: Triple
    shift: Triple


class GraphQuantisation(Spec, frozen=True, kw_only=True):
    """The quantisation of one graph.

    Attributes:
        tensors: maps a tensor of the lowered graph to its quantisation; empty if the SDK does not report it.
        smoothing: maps a tensor to the divisors of its channels along the last axis.
        pixel_scaling: scaling of the pixels, or None.
        clipped: maps a tensor to the smallest and largest value of its Clip node.
        rounded: names of the weights whose integers GPTQ chose.
        float_nodes: names of operators that could be quantised but were kept in the float type.
        macs: multiply-accumulate operations of all convolutions and matrix products, for one row.
        quantised_macs: the part of ``macs`` with integer operands.
    """

    tensors: dict[str, TensorQuantisation] = {}
    smoothing: dict[str, tuple[float, ...]] = {}
    pixel_scaling: PixelScaling | None = None
    clipped: dict[str, tuple[float, float]] = {}
    rounded: tuple[str, ...] = ()
    float_nodes: tuple[str, ...] = ()
    macs: NaturalInt
    quantised_macs: NaturalInt


class CalibrationRecord(Spec, frozen=True, kw_only=True):
    """The data that a bundle was calibrated with.

    Attributes:
        dataset: the dataset's name.
        split: name of the dataset's split.
        samples: number of images.
        seed: random seed of the image selection.
        texts: number of prompts.
        digest: SHA-256 of the images and the prompts; equal data give equal digests.
    """

    dataset: str
    split: str
    samples: PositiveInt
    seed: NaturalInt
    texts: PositiveInt
    digest: str = ""
