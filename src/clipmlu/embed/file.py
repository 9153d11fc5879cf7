"""Embeddings on disk: a NumPy file and the ids of its rows, written as they come and published together."""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from clipmlu.errors import OptionError
from clipmlu.files.publish import StagedFiles, check_files_free, output_errors

if TYPE_CHECKING:
    from clipmlu.embed.encoder import FloatArray

SUFFIX = ".npy"
_HEADER_BYTES = 128  # of the .npy format for two axes of any length, which np.lib.format pads to


def check_embedding_output(path: Path, *, overwrite: bool) -> None:
    """Refuse a path that ``EmbeddingFile`` would not write to, before anything slow begins.

    Raises:
        OptionError: it has another suffix than ``.npy``.
        OutputExistsError: there are embeddings or ids already, and overwriting was not asked for.
        OutputError: nothing can be written there.
    """
    if path.suffix != SUFFIX:
        raise OptionError(f"output is '{path}'; expected a name that ends in {SUFFIX}, the one format of embeddings")
    check_files_free(_targets(path), overwrite=overwrite)


def _targets(path: Path) -> list[Path]:
    """The file of the rows and that of their ids."""
    return [path, path.with_suffix(".ids.json")]


class EmbeddingFile:
    """Writes ``NAME.npy`` (float32, shape (N, D)) and ``NAME.ids.json`` (a list of N strings) without holding them.

    Nothing is to be seen of them until ``publish``; leaving the block removes what is left of them. The ids are the last to
    appear, and the first to go when both are replaced: where there are ids, they are those of the rows beside them.

    Args:
        path: ``NAME.npy``.
        embedding_dim: D.
        overwrite: replace what is there.

    Attributes:
        rows: written so far.

    Raises:
        OptionError, OutputExistsError, OutputError: as ``check_embedding_output``.
    """

    def __init__(self, path: Path, embedding_dim: int, *, overwrite: bool = False) -> None:
        check_embedding_output(path, overwrite=overwrite)
        self._path = path
        self._overwrite = overwrite
        self._dim = embedding_dim
        self.rows = 0
        self._staged = StagedFiles(_targets(path), overwrite=overwrite)
        try:
            with output_errors(path):
                # Unbuffered: when the disk is full, what is in a file is what was written to it.
                self._array, self._ids = (io.FileIO(staged, "w") for staged in self._staged.paths)
                _write_all(self._array, bytes(_HEADER_BYTES))
                _write_all(self._ids, b"[")
        except BaseException:
            self._staged.discard()
            raise
        self._ends = (_HEADER_BYTES, 1)

    def __enter__(self) -> EmbeddingFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._array.close()
        self._ids.close()
        self._staged.discard()

    def append(self, embeddings: FloatArray, ids: Sequence[str]) -> None:
        """Write rows, all or none.

        Args:
            embeddings: float32, shape (N, D).
            ids: one per row.

        Raises:
            OutputError: the disk is full, or the like.
        """
        lines = [f"\n{json.dumps(name, ensure_ascii=False)}".encode() for name in ids]
        with output_errors(self._path):
            self._seek_to_end()
            _write_all(self._array, np.ascontiguousarray(embeddings, "<f4").tobytes())
            _write_all(self._ids, (b"," if self.rows and ids else b"") + b",".join(lines))
            self._ends = (self._array.tell(), self._ids.tell())
            self.rows += len(ids)

    def publish(self, *, partial: bool = False) -> Path:
        """Give both files their names, and return the first.

        Args:
            partial: under a name that says so, ``NAME.partial.npy``, so that nothing whole is replaced, and what an earlier
                interrupted run left there only with ``overwrite``: else under ``NAME.partial-2.npy``, and so on.

        Raises:
            OutputExistsError: a file of that name was made meanwhile.
            OutputError: a file cannot be written.
        """
        path = self._partial_path() if partial else self._path
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f4", "fortran_order": False, "shape": (self.rows, self._dim)}
        )
        assert len(header.getvalue()) == _HEADER_BYTES
        with output_errors(path):
            self._seek_to_end()
            _write_all(self._ids, b"\n]\n")
            self._array.seek(0)
            _write_all(self._array, header.getvalue())
            self._array.close()
            self._ids.close()
        self._staged.publish(_targets(path))
        return path

    def _partial_path(self) -> Path:
        """``NAME.partial.npy``, or ``NAME.partial-2.npy`` and so on while an earlier run's is there, unless that may go."""
        endings = itertools.chain(("",), (f"-{number}" for number in itertools.count(2)))
        paths = (self._path.with_suffix(f".partial{ending}{SUFFIX}") for ending in endings)
        return next(path for path in paths if self._overwrite or not any(map(os.path.lexists, _targets(path))))

    def _seek_to_end(self) -> None:
        """Cut off what an append that failed has written."""
        for stream, end in zip((self._array, self._ids), self._ends, strict=True):
            stream.seek(end)
            stream.truncate()


def _write_all(stream: io.FileIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[stream.write(rest) :]
