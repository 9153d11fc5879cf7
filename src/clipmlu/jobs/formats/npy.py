"""``.npy`` for the embeddings and JSON lines for the rest; line i belongs to row i."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipmlu.backends.provenance import Provenance
from clipmlu.files.read import open_regular
from clipmlu.jobs.formats.checks import check_values, read_errors
from clipmlu.jobs.formats.jsonl import encode_lines, read_lines, rows_from_lines
from clipmlu.jobs.rows import RowSchema, ShardRows


class NpyFormat:
    """See ``ShardFormat``."""

    suffixes = (".npy", ".jsonl")

    def check(self) -> None:
        """Check nothing: it needs no optional package."""

    @contextlib.contextmanager
    def open(
        self, schema: RowSchema, provenance: Provenance, paths: Sequence[Path]
    ) -> Iterator[Callable[[ShardRows], None]]:
        """Yield a function that appends rows."""
        array, lines = paths
        with array.open("wb") as stream, lines.open("wb") as text:
            count = 0
            stream.write(_header(count, schema))

            def append(rows: ShardRows) -> None:
                nonlocal count
                if rows.embeddings is not None:
                    stream.write(np.ascontiguousarray(rows.embeddings, _dtype(schema)).data)
                text.writelines(encode_lines(rows, schema, provenance, embeddings=False))
                count += len(rows.ids)

            yield append
            stream.seek(0)
            stream.write(_header(count, schema))

    def read(self, schema: RowSchema, paths: Sequence[Path]) -> ShardRows:
        """Read the rows; the embeddings are a read-only memory map."""
        array, text = paths
        with read_errors(text):
            lines = list(read_lines(text))
        with read_errors(array):
            embeddings = _map_array(array, len(lines), schema)
        with read_errors(text):
            rows = rows_from_lines(lines, schema, None if schema.embedding_dim is None else embeddings)
        with read_errors(array):
            return check_values(rows)


def _dtype(schema: RowSchema) -> np.dtype[Any]:
    return np.dtype(schema.embedding_dtype).newbyteorder("<")


def _header(count: int, schema: RowSchema) -> bytes:
    """Return the header of version 1.0, which has the same length for every count."""
    shape = (count, schema.embedding_dim or 0)
    header = {"descr": np.lib.format.dtype_to_descr(_dtype(schema)), "fortran_order": False, "shape": shape}
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


def _map_array(path: Path, count: int, schema: RowSchema) -> npt.NDArray[np.floating]:
    """Map an array with ``count`` rows.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such array.
    """
    shape, dtype, header = (count, schema.embedding_dim or 0), _dtype(schema), _header(count, schema)
    with open_regular(path) as stream:
        if stream.read(len(header)) != header:
            raise ValueError(f"it is not an array of {dtype} of the shape {shape}")
        size, expected = stream.seek(0, 2), len(header) + shape[0] * shape[1] * dtype.itemsize
        if size != expected:
            raise ValueError(f"it has {size:,} bytes; its shape {shape} needs {expected:,}")
        if size == len(header):
            return np.zeros(shape, dtype)
        return np.memmap(stream, dtype, "r", len(header), shape)
