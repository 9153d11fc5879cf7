"""Small frozen values that several stages share; most of them are stored in a bundle's manifest."""

from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

import msgspec

from clipmlu.arguments import check_fields
from clipmlu.errors import OptionError

MODULE_KEY = "clipmlu.module"
"""Metadata of a graph's node: path of the module that it belongs to, such as ``visual.transformer.resblocks.3.mlp.c_fc``."""

LARGEST_SIZE = 2**31 - 1
"""Of any axis of a tensor."""

PositiveInt = Annotated[int, msgspec.Meta(ge=1, le=LARGEST_SIZE)]
NaturalInt = Annotated[int, msgspec.Meta(ge=0)]
TokenId = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
LARGEST_LOGIT = 1000.0
"""Of scale and bias: CLIP's training clips the scale at 100, SigLIP's models have 112 to 118 and biases down to -17."""
LogitScale = Annotated[float, msgspec.Meta(ge=1 / LARGEST_LOGIT, le=LARGEST_LOGIT)]
LogitBias = Annotated[float, msgspec.Meta(ge=-LARGEST_LOGIT, le=LARGEST_LOGIT)]
Triple = tuple[float, float, float]

TowerName = Literal["image", "text", "joint"]
Layout = Literal["towers", "joint"]
ResizeMode = Literal["shortest", "longest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]
TextCleaning = Literal["lower", "whitespace", "canonicalize"]
Granularity = Literal["per_tensor", "per_axis"]
ActivationQuantisation = Literal["symmetric", "asymmetric"]
CalibrationAlgorithm = Literal["linear", "eqnm", "percentile", "entropy"]
NodeType = Literal["float32", "float16"]
ComputationPreference = Literal["auto", "fast", "high_precision"]

SMOOTHED_ROLES = ("qkv", "attention_output", "mlp_in", "pooling", "projection")
"""Roles whose inputs may be smoothed: those behind a LayerNorm, and the output projection behind the values."""

MAX_SIDE = 1 << 13
"""Pixels: larger inputs than any model has; an array of that size is still made."""

MAX_CONTEXT = 1 << 16
"""Token ids of a text: more than any text tower takes."""

_LARGEST_SHIFT = 1e6

MLU_ARCHS = ("mtp_372", "mtp_592", "tp_322")
"""MLU370, MLU590 and the edge part: what the vendor's samples accept (docs/magicmind-api.md, section 5)."""


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the stored values: immutable, keyword-only, unknown keys refused."""


class Precision(str, enum.Enum):
    """The arithmetic of a compiled bundle, named as the vendor's SDK names its modes, and ``force_bfloat16`` like them."""

    FORCE_FLOAT32 = "force_float32"
    FORCE_FLOAT16 = "force_float16"
    QINT8_MIXED_FLOAT16 = "qint8_mixed_float16"
    QINT8_MIXED_FLOAT32 = "qint8_mixed_float32"
    QINT16_MIXED_FLOAT16 = "qint16_mixed_float16"
    QINT16_MIXED_FLOAT32 = "qint16_mixed_float32"
    FORCE_BFLOAT16 = "force_bfloat16"

    @property
    def bits(self) -> int | None:
        """Bits of quantised operands, or None in a mode that quantises nothing."""
        return {"qint8": 8, "qint16": 16}.get(self.value.partition("_")[0])

    @property
    def float_type(self) -> NodeType:
        """Type of what is not quantised, in the graph; ``force_bfloat16`` is an affair of the runtime, its graph is float32."""
        return "float16" if self.value.endswith("_float16") else "float32"


VENDOR_PRECISIONS: tuple[Precision, ...] = tuple(each for each in Precision if each is not Precision.FORCE_BFLOAT16)
"""The six modes of the vendor's SDK (docs/magicmind-api.md), which its cards, the emulated SDK and the CPU offer."""


class TensorSpec(Spec, frozen=True, kw_only=True):
    """One input or output of a graph.

    Attributes:
        name: the tensor's name in the graph.
        dtype: NumPy's name of the element type, such as ``"float32"`` or ``"int64"``.
        shape: one entry for each axis: a fixed size, or a name such as ``"batch"`` for an axis that may vary.
    """

    name: str
    dtype: str
    shape: tuple[PositiveInt | str, ...]


class PreprocessSpec(Spec, frozen=True, kw_only=True):
    """How an image becomes an input tensor, with the meanings that open_clip's ``PreprocessCfg`` gives the fields.

    Attributes:
        height: rows of the input tensor in pixels.
        width: columns of the input tensor in pixels.
        mean: red, green, blue; subtracted after scaling pixels to 0..1.
        std: red, green, blue; what the difference is divided by.
        resize_mode: ``shortest`` fits the shorter side and crops the centre, ``longest`` fits the longer side and
            pads, ``squash`` ignores the aspect ratio.
        interpolation: Pillow's filter of that name.
        fill_color: grey level, 0..255, of the padding in mode ``longest``.
    """

    height: Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)]
    width: Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)]
    mean: Triple
    std: Triple
    resize_mode: ResizeMode = "shortest"
    interpolation: Interpolation = "bicubic"
    fill_color: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0

    def __post_init__(self) -> None:
        """Refuse a normalisation whose results would be no numbers.

        Raises:
            OptionError: what is wrong.
        """
        if not all(abs(value) <= _LARGEST_SHIFT for value in self.mean):
            raise OptionError(
                f"mean is {list(self.mean)}; expected numbers between -{_LARGEST_SHIFT:g} and {_LARGEST_SHIFT:g}"
            )
        if not all(1 / _LARGEST_SHIFT <= value <= _LARGEST_SHIFT for value in self.std):
            raise OptionError(
                f"standard deviation is {list(self.std)}; expected numbers between {1 / _LARGEST_SHIFT:g} and {_LARGEST_SHIFT:g}"
            )


class TokenizerSpec(Spec, frozen=True, kw_only=True):
    """How a text becomes token ids, on top of what ``tokenizer.json`` says itself.

    Attributes:
        kind: ``clip_bpe`` for CLIP's own byte-pair tokenizer, ``huggingface`` for any other fast tokenizer.
        clean: the text cleaning of open_clip that runs first.
        context_length: ids per text; shorter texts are padded, longer ones truncated.
        pad_id: the id that fills the rest.
        zero_id: an id that is replaced by 0 after tokenising (open_clip's ``strip_sep_token``), or None.
        class_token_id: an id that is put at the end of every row (open_clip's ``clips`` mode), or None.
        bos_id: first id of every row in ``clips`` mode, else None.
        eos_id: id after the text in ``clips`` mode, else None.
        stand_in: True when the model's own tokenizer could not be had and random weights made it irrelevant.
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
        """Refuse what contradicts itself.

        Raises:
            OptionError: what is wrong.
        """
        if self.class_token_id is not None and (self.bos_id is None or self.eos_id is None):
            raise OptionError("a tokenizer with a class token at the end ('clips' mode) needs bos_id and eos_id too")
        if self.kind == "clip_bpe" and (self.class_token_id is not None or self.zero_id is not None):
            raise OptionError(
                "class_token_id and zero_id belong to kind 'huggingface'; CLIP's own tokenizer has neither"
            )


class ModelId(Spec, frozen=True, kw_only=True):
    """Which model a bundle holds.

    Attributes:
        name: as given to ``clipmlu export``: an open_clip name, ``hf-hub:org/name``, ``local-dir:PATH`` or ``demo``.
        pretrained: open_clip's tag of the weights, or None where the name already decides them.
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
    """How a graph is built for MLU cards; the defaults are those of the vendor's CLIP sample.

    Attributes:
        archs: architecture -> numbers of clusters to optimise for; an empty tuple names none.
        computation_preference: how operators compute.
        conv_scale_fold: fold what follows a convolution into its weights.
        node_types: exact node name -> ``"float32"`` or ``"float16"``, whatever the precision mode says.
        text_rows: texts of the joint layout, a fixed number.
        build_config: further configuration of the SDK, merged last, so that it wins.
        toolchain: path of the cross-compiler for the edge part, or None.
    """

    archs: dict[str, tuple[PositiveInt, ...]] = msgspec.field(default_factory=lambda: {"mtp_372": (2, 6, 8)})
    computation_preference: ComputationPreference = "auto"
    conv_scale_fold: bool = True
    node_types: dict[str, NodeType] = {}
    text_rows: PositiveInt = 100
    build_config: dict[str, Any] = {}
    toolchain: str | None = None

    def __post_init__(self) -> None:
        """Refuse what the SDK is known not to take.

        Raises:
            OptionError: what is wrong.
        """
        check_fields(self)
        unknown = sorted(set(self.archs) - set(MLU_ARCHS))
        if unknown or not self.archs:
            named = ", ".join(unknown) or "none"
            raise OptionError(f"MLU architecture is '{named}'; expected one or more of {', '.join(MLU_ARCHS)}")


class QuantisationOptions(Spec, frozen=True, kw_only=True):
    """How a mode that quantises does it; the defaults are those of the vendor's CLIP sample.

    Attributes:
        granularity: one scale for each weight tensor, or for each of its output channels.
        activation: whether ranges of activations are centred on zero.
        algorithm: how calibration finds the ranges of activations: ``linear`` takes the smallest and the largest value,
            ``eqnm`` the least quantisation noise, ``percentile`` a share of the values, ``entropy`` the least loss of
            information. The SDK knows the first two; the others clip in the graph itself, on every target.
        percentile: of the values that ``percentile`` keeps, above 0 and up to 100.
        smooth_alpha: role -> how much of the outliers of its inputs moves into its weights, 0..1; roles that are not named
            are not smoothed. See ``graph.quantisation.smoothing``.
        keep_float: operators that stay in the mode's float type, each ``ROLE`` or ``ROLE:BLOCKS``; see
            ``graph.roles``.
    """

    granularity: Granularity = "per_tensor"
    activation: ActivationQuantisation = "symmetric"
    algorithm: CalibrationAlgorithm = "linear"
    percentile: float = 99.99
    smooth_alpha: dict[str, float] = {}
    keep_float: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no target takes.

        Raises:
            OptionError: what is wrong.
        """
        check_fields(self)
        if self.algorithm in ("eqnm", "entropy") and self.activation == "asymmetric":
            raise OptionError(f"the calibration algorithm {self.algorithm} works with symmetric activations only")
        if not 0 < self.percentile <= 100:
            raise OptionError(f"calibration percentile is {self.percentile:g}; expected more than 0 and up to 100")
        unknown = sorted(set(self.smooth_alpha) - set(SMOOTHED_ROLES))
        if unknown:
            raise OptionError(f"role to smooth is '{unknown[0]}'; expected one of {', '.join(SMOOTHED_ROLES)}")
        wrong = [alpha for alpha in self.smooth_alpha.values() if not 0 <= alpha <= 1]
        if wrong:
            raise OptionError(f"smoothing strength is {wrong[0]:g}; expected 0 (off) to 1")


class TensorQuantisation(Spec, frozen=True, kw_only=True):
    """How one tensor became integers: ``round(x / scale) + zero_point``, cut to the signed range of ``bits`` bits.

    Attributes:
        bits: 8 or 16.
        scale: one number, or one for each channel along ``axis``.
        zero_point: 0 when symmetric.
        axis: of the scales, or None for one scale.
        minimum: smallest value of an activation's calibrated range, or of a weight.
        maximum: the largest.
    """

    bits: PositiveInt
    scale: tuple[float, ...]
    zero_point: int
    axis: NaturalInt | None
    minimum: float
    maximum: float


class GraphQuantisation(Spec, frozen=True, kw_only=True):
    """How one graph was quantised.

    Attributes:
        tensors: tensor of the lowered graph -> how; empty where the SDK does not tell.
        smoothing: tensor -> what its channels were divided by, along the last axis.
        clipped: tensor -> smallest and largest value that it was clipped to in the graph.
        float_nodes: operators that could be quantised and were kept in the float type.
        macs: multiply-accumulate operations of all convolutions and matrix products, for one row.
        quantised_macs: those with integer operands among them.
    """

    tensors: dict[str, TensorQuantisation] = {}
    smoothing: dict[str, tuple[float, ...]] = {}
    clipped: dict[str, tuple[float, float]] = {}
    float_nodes: tuple[str, ...] = ()
    macs: NaturalInt
    quantised_macs: NaturalInt


class CalibrationRecord(Spec, frozen=True, kw_only=True):
    """Which data a bundle was calibrated with.

    Attributes:
        dataset: the dataset's name.
        split: which part of it.
        samples: number of images.
        seed: of the choice of images.
        texts: number of prompts.
        digest: SHA-256 over the images and the prompts; the same data give the same digest.
    """

    dataset: str
    split: str
    samples: PositiveInt
    seed: NaturalInt
    texts: PositiveInt
    digest: str = ""
