"""Options of ``import_onnx``."""

from __future__ import annotations

import dataclasses
import os

from clipmlu.arguments import as_path, check_fields
from clipmlu.errors import OptionError
from clipmlu.graph.parity import FLOAT32_MIN_COSINE, FLOAT32_TOLERANCE
from clipmlu.specs import (
    Interpolation,
    LogitBias,
    LogitScale,
    PositiveInt,
    ResizeMode,
    TextCleaning,
    TokenId,
    Triple,
)

DEFAULT_LOGIT_SCALE = 100.0
"""The logit scale that CLIP's training reaches (https://arxiv.org/abs/2103.00020, section 2.5: it is clipped at 100)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of an import; validated on construction. None stands for what the files say.

    Attributes:
        tokenizer: a ``tokenizer.json``, or a directory with one, such as another bundle.
        context_length: ids per text.
        pad_id: id of padding.
        clean: text cleaning before the tokenizer.
        image_size: height and width in pixels, or one number for both.
        mean: red, green, blue; subtracted from pixel values in 0..1.
        std: red, green, blue; divisor after the subtraction.
        interpolation: resampling filter.
        resize_mode: how an image of another aspect ratio is fitted; see ``PreprocessSpec``.
        logit_scale: multiplier of cosine similarities.
        logit_bias: added to the scaled similarities.
        image_output: name of the image graph's output that is the embedding.
        text_output: the same of the text graph.
        name: name of the model in the bundle; None for the name of the files.
        overwrite: replace a bundle at the output path.
        max_abs_diff: gate: allowed difference of an embedding's element between the given file and the bundle's graph; for
            float16 files the bound of that type is used instead if it is larger.
        min_cosine: gate: smallest allowed cosine similarity of two embeddings of the same input, with the same exception.

    Raises:
        OptionError: a value is out of range.
    """

    tokenizer: str | os.PathLike[str] | None = None
    context_length: PositiveInt | None = None
    pad_id: TokenId | None = None
    clean: TextCleaning | None = None
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    mean: Triple | None = None
    std: Triple | None = None
    interpolation: Interpolation | None = None
    resize_mode: ResizeMode | None = None
    logit_scale: LogitScale | None = None
    logit_bias: LogitBias | None = None
    image_output: str | None = None
    text_output: str | None = None
    name: str | None = None
    overwrite: bool = False
    max_abs_diff: float = FLOAT32_TOLERANCE
    min_cosine: float = FLOAT32_MIN_COSINE

    def __post_init__(self) -> None:
        if self.tokenizer is not None:
            as_path(self.tokenizer, "the tokenizer")
        check_fields(self)
        if self.name is not None and not self.name.strip():
            raise OptionError("name is empty; give the model's name, or leave it out")
        if not self.max_abs_diff > 0 or not -1 <= self.min_cosine <= 1:
            raise OptionError(
                f"parity bounds are {self.max_abs_diff} and {self.min_cosine}; expected a positive difference and a cosine"
            )
