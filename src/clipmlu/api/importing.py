"""The public function that imports ONNX files of other programs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypedDict, Unpack

from clipmlu.bundle.directory import ExportedBundle
from clipmlu.importing import require_packages
from clipmlu.importing.options import ImportOptions
from clipmlu.keywords import check_keywords, refuse_both, with_keywords
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
from clipmlu.steps import StartStep, no_steps


class ImportKeywords(TypedDict, total=False):
    """Keywords of ``import_onnx``; without one, the files and the JSON files beside them decide.

    Attributes:
        tokenizer: a ``tokenizer.json``, or a directory with one, such as another bundle.
        context_length: token ids per text.
        pad_id: id of padding.
        clean: text cleaning before the tokenizer: ``"lower"``, ``"whitespace"``, ``"canonicalize"``, ``"siglip"`` or
            ``"none"``, the default for tokenizers of other programs.
        image_size: height and width in pixels, or one number for both.
        mean: red, green, blue; subtracted from pixel values in 0..1.
        std: red, green, blue; divisor after the subtraction.
        interpolation: resampling filter, ``"bicubic"`` or ``"bilinear"``.
        resize_mode: how an image of another aspect ratio is fitted: ``"shortest"``, ``"longest"`` or ``"squash"``.
        logit_scale: multiplier of cosine similarities; a fused graph has its own.
        logit_bias: added to the scaled similarities; a fused graph has its own.
        image_output: name of the image graph's output that is the embedding, if it has several.
        text_output: the same of the text graph.
        name: name of the model in the bundle; None for the name of the files.
        overwrite: replace a bundle at the output path.
        max_abs_diff: gate: largest difference of an embedding's element between the given file and the bundle's graph.
        min_cosine: gate: smallest cosine similarity of two embeddings of the same input.
    """

    tokenizer: str | os.PathLike[str] | None
    context_length: PositiveInt | None
    pad_id: TokenId | None
    clean: TextCleaning | None
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None
    mean: Triple | None
    std: Triple | None
    interpolation: Interpolation | None
    resize_mode: ResizeMode | None
    logit_scale: LogitScale | None
    logit_bias: LogitBias | None
    image_output: str | None
    text_output: str | None
    name: str | None
    overwrite: bool
    max_abs_diff: float
    min_cosine: float


@with_keywords(ImportKeywords, defaults=ImportOptions)
def import_onnx(
    files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    options: ImportOptions | None = None,
    *,
    on_note: Callable[[str], None] | None = None,
    on_step: StartStep = no_steps,
    **keywords: Unpack[ImportKeywords],
) -> ExportedBundle:
    """Make an exported bundle of ONNX files that another program wrote, as ``clipmlu import`` does; without torch.

    Args:
        files: an ONNX file with both towers, a list of two files, or a directory as Optimum and transformers.js have them.
        output: directory of the exported bundle.
        options: an options object instead of the keywords.
        on_note: called with a line for the user about each choice and assumption; None for a log warning.
        on_step: begins each step that may take seconds; see ``clipmlu.steps``.

    Returns:
        The published bundle, opened.

    Raises:
        UnknownNameError: there is no such keyword.
        MissingDependencyError: the packages that read graphs and tokenizers are not installed.
        InputError: a file is missing.
        OptionError: a value is wrong, is missing, or contradicts the files.
        BundleExistsError: the output path already exists.
        OutputError: the output cannot be written.
        ParityError: the bundle's graphs differ from the given files; nothing is published.
        ExportError: a file is damaged, or a graph is not understood; the message names the node.
    """
    require_packages()
    from clipmlu.importing import importer

    refuse_both(options, keywords, "import_onnx")
    if options is None:
        options = ImportOptions(**check_keywords(keywords, ImportKeywords, "import_onnx"))
    return importer.import_onnx(files, output, options, on_note=on_note or importer.LOG.warning, on_step=on_step)
