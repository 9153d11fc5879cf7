"""Reading named weights from a file with any nesting, without running code from the file."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipmlu.errors import ExportError
from clipmlu.export.filetypes import Format, error_text, unusable_weights
from clipmlu.export.nested import nested_values
from clipmlu.export.options import PURPOSE
from clipmlu.export.torchscript import read_script
from clipmlu.host import require

_AGAIN = "Download or copy it again."

# Types that occur beside weights (training arguments, metrics); constructing them runs no code.
_PLAIN_TYPES = (
    argparse.Namespace,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
    np.dtype,
    *map(type, map(np.dtype, "?bhilqefd")),
)
_SCALAR_NAMES = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")

_FOREIGN_OBJECT = re.compile(r"(?:GLOBAL|class|function|Unsupported global:)\s+`?([A-Za-z_][\w]*(?:\.[\w]+)+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The flattened content of a weights file: ``{"state_dict": {"a": t}}`` has the tensor ``state_dict.a``.

    Attributes:
        path: the file.
        tensors: all tensors by their path.
        nests: maps each tensor to the part of its path that names the enclosing dictionary.
        facts: all numbers, booleans and strings by their path.
    """

    path: Path
    tensors: Mapping[str, Any]
    nests: Mapping[str, str]
    facts: Mapping[str, str | float | bool]


def read_checkpoint(path: Path, form: Format) -> Checkpoint:
    """Read all weights of a file.

    Args:
        path: the file.
        form: ``safetensors``, ``torch`` or ``script``, the result of ``identify_weights``.

    Raises:
        ExportError: the file is damaged, holds objects that require running code, or has no weights.
    """
    facts: dict[str, str | float | bool] = {}
    if form == "safetensors":
        content, metadata = _read_safetensors(path)
        facts.update({f"metadata.{name}": value for name, value in metadata.items()})
    else:
        content = read_script(path) if form == "script" else _read_torch(path)
    tensors: dict[str, Any] = {}
    nests: dict[str, str] = {}
    torch = require("torch", "export", PURPOSE)
    try:
        for nest, key, value in nested_values(content):
            if isinstance(value, torch.Tensor):
                tensors[nest + key], nests[nest + key] = value, nest
            elif isinstance(value, (bool, int, float, str)):
                facts[nest + key] = value
    except ValueError as error:
        raise unusable_weights(path, f"it cannot be read: {error}. Save model.state_dict() alone.") from error
    if not tensors:
        found = f"it holds {', '.join(map(repr, list(content)[:4]))}" if isinstance(content, dict) and content else ""
        raise unusable_weights(
            path, f"it has no weights by name{': ' if found else ''}{found}. Save model.state_dict()."
        )
    return Checkpoint(path=path, tensors=tensors, nests=nests, facts=facts)


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    safetensors = require("safetensors", "export", PURPOSE)
    try:
        with safetensors.safe_open(str(path), framework="pt", device="cpu") as archive:
            return {name: archive.get_tensor(name) for name in archive.keys()}, dict(archive.metadata() or {})  # noqa: SIM118 - no mapping
    except Exception as error:  # SafetensorError, or a torch error for an unsupported type
        raise unusable_weights(path, f"it is a damaged safetensors file: {error_text(error)}. {_AGAIN}") from error


def _read_torch(path: Path) -> Any:
    torch = require("torch", "export", PURPOSE)
    scalar = np.float64(0).__reduce__()[0]
    plain = [*_PLAIN_TYPES, *((scalar, name) for name in _SCALAR_NAMES)]
    try:
        with torch.serialization.safe_globals(plain):
            # Mapped, so that an optimizer's state, twice the size of the weights, is never read; files of old torch cannot be.
            mapped = zipfile.is_zipfile(path)
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapped)
    except (
        Exception
    ) as error:  # UnpicklingError, RuntimeError, EOFError, KeyError, ...: a damaged file can raise anything
        raise refusal_of_pickle(path, error) from error


def refusal_of_pickle(path: Path, error: Exception) -> ExportError:
    """Return the error for a file of torch that ``torch.load`` refused; it names an object whose making could run code."""
    objects = _FOREIGN_OBJECT.findall(str(error)) if "nsupported" in str(error) else []
    if not objects:
        return unusable_weights(path, f"it is damaged or not complete: {error_text(error)}. {_AGAIN}")
    return unusable_weights(
        path,
        f"beside or instead of weights it holds the Python object '{objects[0]}', and making that could run any code. "
        "If you trust the file, open it with the program that wrote it, and save the weights alone there: "
        "torch.save(model.state_dict(), FILE).",
    )
