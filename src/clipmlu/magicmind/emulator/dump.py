"""Dumping a context's tensors (api 2.14)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clipmlu.magicmind.emulator.types import Array, DumpMode, FileFormat

if TYPE_CHECKING:
    from clipmlu.magicmind.emulator.ports import ModelInfo


class _Fields:
    """The editable fields of ``info.val`` (YX magicmind_model.py)."""

    def __init__(
        self, path: str, tensor_name: list[str], dump_mode: DumpMode | int, file_format: FileFormat | int
    ) -> None:
        self.path = path
        self.tensor_name = tensor_name
        self.dump_mode = dump_mode
        self.file_format = file_format


class DumpInfo:
    """``Context.ContextDumpInfo``: tensors to dump, and the path (S#33294089808); takes enums or their numbers.

    Attributes:
        val: the fields: path, tensor_name, dump_mode (-1 off, 0 named, 1 all, 2 outputs), file_format (0 pb, 1 pbtxt).
    """

    def __init__(
        self,
        path: str = "",
        tensor_name: list[str] | None = None,
        dump_mode: DumpMode | int = DumpMode.kOff,
        file_format: FileFormat | int = FileFormat.kBinary,
    ) -> None:
        self.val = _Fields(path, tensor_name or [], dump_mode, file_format)


def write_dump(info: DumpInfo, model: ModelInfo, results: list[Array]) -> None:
    """Write outputs as ``.npy`` files; the vendor's format is not public, and inner tensors are not dumped."""
    fields = info.val
    mode = DumpMode(fields.dump_mode) if isinstance(fields.dump_mode, int) else fields.dump_mode
    if mode is DumpMode.kOff:
        return
    folder = Path(fields.path or ".")
    folder.mkdir(parents=True, exist_ok=True)
    for port, array in zip(model.outputs, results, strict=True):
        if mode is not DumpMode.kSpecificTensors or port.name in fields.tensor_name:
            np.save(folder / f"emulated_{port.name.replace('/', '_')}.npy", array)
