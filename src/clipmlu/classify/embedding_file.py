"""Embeddings on disk: a NumPy file and the ids of its rows, written as they come and published together."""

from __future__ import annotations

import io
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

import numpy as np

from clipmlu.files import output_errors

if TYPE_CHECKING:
    from clipmlu.classify.encoder import FloatArray

_HEADER_BYTES = 128  # of the .npy format for two axes of any length, which np.lib.format pads to


class EmbeddingFile:
    """Writes ``PATH.npy`` (float32, shape (N, D)) and ``PATH.ids.json`` (a list of N strings) without holding them.

    Both are temporary siblings until ``publish``; leaving the block removes what is left of them.

    Args:
        path: where to; its suffix is replaced.
        embedding_dim: D.

    Attributes:
        rows: written so far.

    Raises:
        OutputError: the files cannot be written.
    """

    def __init__(self, path: Path, embedding_dim: int) -> None:
        self._path = path
        self._dim = embedding_dim
        self.rows = 0
        mark = f"{os.getpid()}-{secrets.token_hex(4)}.tmp"
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._staged = {kind: path.with_name(f".{path.name}.{kind}.{mark}") for kind in ("npy", "ids.json")}
            self._array: IO[bytes] = self._staged["npy"].open("wb")
            self._ids: IO[bytes] = self._staged["ids.json"].open("wb")
            self._array.write(bytes(_HEADER_BYTES))
            self._ids.write(b"[")

    def __enter__(self) -> EmbeddingFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in (self._array, self._ids):
            try:
                stream.close()
            except OSError:  # a full disk, which the write that filled it has told already; the file goes
                continue
        for temporary in self._staged.values():
            temporary.unlink(missing_ok=True)

    def append(self, embeddings: FloatArray, ids: Sequence[str]) -> None:
        """Write rows.

        Args:
            embeddings: float32, shape (N, D).
            ids: one per row.

        Raises:
            OutputError: the disk is full, or the like.
        """
        with output_errors(self._path):
            self._array.write(np.ascontiguousarray(embeddings, "<f4").tobytes())
            for name in ids:
                separator = "," if self.rows else ""
                self._ids.write(f"{separator}\n{json.dumps(name, ensure_ascii=False)}".encode())
                self.rows += 1

    def publish(self, *, partial: bool = False) -> Path:
        """Rename both files into place, and return the path of the first.

        Args:
            partial: under a name that says so, ``PATH.partial.npy``, so that nothing whole is replaced.

        Raises:
            OutputError: a file cannot be written.
        """
        stem = self._path.with_suffix(".partial" if partial else "")
        targets = {kind: stem.with_name(f"{stem.name}.{kind}") for kind in self._staged}
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f4", "fortran_order": False, "shape": (self.rows, self._dim)}
        )
        assert len(header.getvalue()) == _HEADER_BYTES
        with output_errors(self._path):
            for target in targets.values():
                if target.is_dir():
                    raise IsADirectoryError(21, f"'{target}' is a directory")
            self._ids.write(b"\n]\n")
            self._array.seek(0)
            self._array.write(header.getvalue())
            self._array.close()
            self._ids.close()
            for kind, target in targets.items():
                self._staged[kind].replace(target)
        return targets["npy"]
