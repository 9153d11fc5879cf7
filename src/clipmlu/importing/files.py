"""Which files of a model are read: its graphs, and the folder of its JSON files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from clipmlu.arguments import as_path, is_there
from clipmlu.bundle.manifest import GRAPH_SUFFIX, MANIFEST_NAME
from clipmlu.bundle.other_folders import GRAPH_FOLDER, next_step
from clipmlu.errors import InputError, OptionError

_FUSED = ("model",)
_IMAGE = ("vision_model", "image_model", "visual", "image")
_TEXT = ("text_model", "textual", "text")
_FLOAT_VARIANTS = ("", "_fp16")
"""Suffixes of the names of graphs with float weights, the best first; all others are quantised (``_quantized``, ``_int8``,
``_uint8``, ``_q4``, ``_q4f16``, ``_bnb4``).
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The files of one model.

    Attributes:
        graphs: one fused graph, or two towers in any order.
        folder: the folder of the JSON files.
        name: the model's name.
        note: a line for the user about the choice among several graphs, or an empty text.
    """

    graphs: tuple[Path, ...]
    folder: Path
    name: str
    note: str = ""


def find_model_files(given: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> ModelFiles:
    """Find the files of a model.

    Args:
        given: a graph with both towers, two graphs, or a directory in the layout of Optimum (``model.onnx``, or
            ``vision_model.onnx`` and ``text_model.onnx``) or of transformers.js (the same in the folder ``onnx``).

    Raises:
        OptionError: more than two paths are given, or a directory and a file.
        InputError: a path is missing, or the directory has no graph with float weights.
    """
    listed = [given] if isinstance(given, (str, os.PathLike)) else list(given)
    paths = [as_path(each, "the graph") for each in listed]
    if not 1 <= len(paths) <= 2:
        raise OptionError(f"{len(paths)} files are given; expected one with both towers, two towers, or a directory")
    for path in paths:
        if not is_there(path):
            raise InputError(f"No such file '{path}'. Expected an ONNX file, or a directory with some.")
    if any(is_there(path, folder=True) for path in paths):
        if len(paths) == 2:
            raise OptionError(f"'{paths[0]}' and '{paths[1]}' are given; expected two ONNX files, or one directory")
        return _in_folder(paths[0])
    folder = paths[0].parent
    name = paths[0].stem if len(paths) == 1 else f"{paths[0].stem}+{paths[1].stem}"
    return ModelFiles(graphs=tuple(paths), folder=folder.parent if folder.name == GRAPH_FOLDER else folder, name=name)


def _in_folder(folder: Path) -> ModelFiles:
    if (folder / MANIFEST_NAME).is_file():
        raise InputError(f"'{folder}' is a bundle already. Go on with it: clipmlu compile, or clipmlu info.")
    present = [*sorted((folder / GRAPH_FOLDER).glob(f"*{GRAPH_SUFFIX}")), *sorted(folder.glob(f"*{GRAPH_SUFFIX}"))]
    if not present:
        step = next_step(folder)
        expected = (
            f"Expected model.onnx, or vision_model.onnx and text_model.onnx, in it or in its folder '{GRAPH_FOLDER}'."
        )
        raise InputError(f"'{folder}' has no ONNX files. {step or expected}")
    for graphs in _choices(present):
        left = [path.name for path in present if path not in graphs]
        taken = " and ".join(f"'{path.relative_to(folder).as_posix()}'" for path in graphs)
        note = f"taking {taken}, not {', '.join(left)}" if left else ""
        return ModelFiles(graphs=graphs, folder=folder, name=folder.resolve().name, note=note)
    raise InputError(
        f"'{folder}' has the graphs {', '.join(path.name for path in present)}; expected float weights: model.onnx, or "
        "vision_model.onnx and text_model.onnx, or with _fp16. Give other files by name: IMAGE.onnx TEXT.onnx."
    )


def _choices(present: Sequence[Path]) -> Iterator[tuple[Path, ...]]:
    """Yield the graphs that can be taken, the best first: a fused graph holds the logit scale as well."""
    by_stem = {path.stem: path for path in reversed(present)}
    for variant in _FLOAT_VARIANTS:
        for stem in _FUSED:
            if stem + variant in by_stem:
                yield (by_stem[stem + variant],)
        image, text = (
            next((by_stem[stem + variant] for stem in stems if stem + variant in by_stem), None)
            for stems in (_IMAGE, _TEXT)
        )
        if image is not None and text is not None:
            yield image, text
