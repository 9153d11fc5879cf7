"""The tokenizer and the preprocessing of an imported model: as given, as JSON files beside the graphs say, or as the graph has them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import onnx

from clipmlu.bundle.directory import open_bundle
from clipmlu.bundle.manifest import MANIFEST_NAME, TOKENIZER_NAME
from clipmlu.data.preprocess import spec_from_open_clip
from clipmlu.data.processor_config import PROCESSOR_FILES, read_processor, spec_from_processor
from clipmlu.data.tokenizer import START_OF_TEXT
from clipmlu.errors import BundleError, ExportError, OptionError, reason_of
from clipmlu.export.source import tokenizer_file
from clipmlu.export.tokenizers import SpecialTokens
from clipmlu.export.transformers_tokenizer import TRAINED_LENGTHS
from clipmlu.files.read import read_json
from clipmlu.graph.shapes import get_shape
from clipmlu.importing.interface import first_arithmetic
from clipmlu.importing.options import ImportOptions
from clipmlu.importing.reading import describe
from clipmlu.specs import MAX_CONTEXT, PreprocessSpec, TokenizerSpec

_CLIP_TOKENS = 49408  # of CLIP's own tokenizer, with both special tokens
_CONFIG = "config.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"


def preprocess_spec(
    model: onnx.ModelProto,
    pixels: onnx.ValueInfoProto,
    folder: Path,
    options: ImportOptions,
    on_note: Callable[[str], None],
) -> PreprocessSpec:
    """Return the preprocessing of images.

    Args:
        model: the graph.
        pixels: the graph's input.
        folder: folder of the JSON files.
        options: the user's values, which have precedence.
        on_note: called with a line about each assumption.

    Raises:
        OptionError: the image size is missing, or contradicts the graph; or mean and standard deviation are missing, and the
            graph itself may normalise.
        ExportError: a JSON file cannot be read.
    """
    fixed = _fixed_size(pixels)
    given = (options.image_size,) * 2 if isinstance(options.image_size, int) else options.image_size
    written = _written_spec(folder)
    if written is not None:
        on_note(f"images are prepared as '{written.path.name}' says")
    size = given or fixed or (None if written is None else (written.spec.height, written.spec.width))
    if size is None:
        raise OptionError("the image size is missing, and the graph takes any; give --image-size, such as 224")
    if fixed is not None and size != fixed:
        raise OptionError(
            f"image size is {size[0]} x {size[1]}, but the graph takes {fixed[0]} x {fixed[1]} (height x width)"
        )
    names = ("mean", "std", "interpolation", "resize_mode")
    values = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if written is None:
        if not {"mean", "std"} <= set(values):
            _refuse_own_normalisation(model, pixels.name)
            on_note(
                "mean and standard deviation of the pixels are assumed to be CLIP's; give --mean and --std if they are others"
            )
        return _with_values(spec_from_open_clip({}), {"height": size[0], "width": size[1], **values})
    if size != (written.spec.height, written.spec.width):
        raise OptionError(
            f"image size is {size[0]} x {size[1]}, but '{written.path}' says {written.spec.height} x {written.spec.width}; "
            "move that file away if it belongs to another model"
        )
    return _with_values(written.spec, values)


def _with_values(spec: PreprocessSpec, values: Mapping[str, Any]) -> PreprocessSpec:
    """Return a specification with other values, which are checked."""
    try:
        return msgspec.convert({**msgspec.structs.asdict(spec), **values}, PreprocessSpec)
    except msgspec.ValidationError as error:
        raise OptionError(f"images cannot be prepared so: {error}") from error


def _refuse_own_normalisation(model: onnx.ModelProto, pixels: str) -> None:
    node = first_arithmetic(model, pixels)
    if node is not None:
        raise OptionError(
            f"mean and standard deviation of the pixels are missing, and the graph begins with the {describe(node)}, so that it may "
            "normalise them itself; give --mean and --std: 0,0,0 and 1,1,1 if it takes values of 0..1, or 0,0,0 and 0.00392157 three "
            "times if it takes 0..255"
        )


class _Written(NamedTuple):
    """The preprocessing that a JSON file describes."""

    path: Path
    spec: PreprocessSpec


def _written_spec(folder: Path) -> _Written | None:
    if not any((folder / name).is_file() for name in PROCESSOR_FILES):
        return None
    path, settings = read_processor(folder)
    try:
        return _Written(path, spec_from_processor(settings))
    except ValueError as error:
        raise ExportError(f"Cannot prepare images as '{path}' says: {error}.") from error


def _fixed_size(pixels: onnx.ValueInfoProto) -> tuple[int, int] | None:
    shape = get_shape(pixels)
    return None if shape is None or -1 in shape[2:] else (shape[2], shape[3])


def copy_tokenizer(
    tokens: onnx.ValueInfoProto, folder: Path, destination: Path, options: ImportOptions, on_note: Callable[[str], None]
) -> TokenizerSpec:
    """Copy the ``tokenizer.json``, and return the other settings.

    Args:
        tokens: the graph's input.
        folder: folder of the JSON files.
        destination: the file to write.
        options: the user's values, which have precedence.
        on_note: called with a line about each assumption.

    Raises:
        OptionError: there is no tokenizer, or the context length is missing or contradicts the graph.
        InputError, ExportError: a file is missing or cannot be read.
    """
    if options.tokenizer is None and not (folder / TOKENIZER_NAME).is_file():
        raise OptionError(
            f"the tokenizer is missing; give --tokenizer with a {TOKENIZER_NAME}, or a directory that has one"
        )
    file = tokenizer_file(folder if options.tokenizer is None else options.tokenizer)
    special = SpecialTokens(file)
    shutil.copyfile(file, destination)
    known = _spec_of_bundle(file.parent) or _spec_of_file(special, options, on_note)
    changes: dict[str, Any] = {
        name: getattr(options, name) for name in ("clean", "pad_id") if getattr(options, name) is not None
    }
    length = _context_length(tokens, folder, file, options)
    return msgspec.structs.replace(known, context_length=length, **changes)


def _spec_of_bundle(folder: Path) -> TokenizerSpec | None:
    """Return the settings of a bundle's tokenizer, or None if the folder is no bundle."""
    if not (folder / MANIFEST_NAME).is_file():
        return None
    try:
        return open_bundle(folder, verify=False).manifest.tokenizer
    except BundleError:
        return None


def _spec_of_file(special: SpecialTokens, options: ImportOptions, on_note: Callable[[str], None]) -> TokenizerSpec:
    if special.has(START_OF_TEXT) and special.count >= _CLIP_TOKENS:
        return TokenizerSpec(kind="clip_bpe", clean="lower", context_length=1)
    pad_id = _pad_id(special, on_note) if options.pad_id is None else options.pad_id
    return TokenizerSpec(kind="huggingface", clean="none", context_length=1, pad_id=pad_id)


def _pad_id(special: SpecialTokens, on_note: Callable[[str], None]) -> int:
    found = special.pad_id(-1)
    if found < 0:
        on_note("the id of padding is assumed to be 0; give --pad-id if it is another")
    return max(found, 0)


def _context_length(tokens: onnx.ValueInfoProto, folder: Path, file: Path, options: ImportOptions) -> int:
    shape = get_shape(tokens)
    fixed = None if shape is None or shape[1] < 0 else shape[1]
    if fixed is not None and options.context_length not in (None, fixed):
        raise OptionError(f"context length is {options.context_length}, but the graph takes {fixed} token ids")
    known = [fixed, options.context_length, *_written_lengths(folder, file)]
    length = next((each for each in known if each is not None), None)
    if length is None:
        raise OptionError("the context length is missing, and the graph takes any; give --context-length, such as 77")
    if length > MAX_CONTEXT:
        raise OptionError(f"context length is {length}; expected {MAX_CONTEXT} at most")
    return length


def _written_lengths(folder: Path, file: Path) -> list[int]:
    """Return the lengths that models of this kind are trained with, or their configurations state; the first one counts."""
    config = _read(folder / _CONFIG)
    text = config.get("text_config")
    stated = [
        TRAINED_LENGTHS.get(str(config.get("model_type"))),
        _read(file.with_name(_TOKENIZER_CONFIG)).get("model_max_length"),
        text.get("max_position_embeddings") if isinstance(text, dict) else None,
    ]
    return [each for each in stated if isinstance(each, int) and 0 < each <= MAX_CONTEXT]


def _read(path: Path) -> dict[str, Any]:
    """Read a JSON file; empty if there is none."""
    try:
        return read_json(path, dict[str, Any])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        raise ExportError(f"Cannot read '{path}': {reason_of(error)}. Get the file again, or move it away.") from error
