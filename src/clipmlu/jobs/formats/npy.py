"""``.npy`` for the embeddings and JSON lines for the rest; line i belongs to row i."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipmlu.backends.provenance import Provenance
from clipmlu.data.class_names import distinct_names
from clipmlu.jobs.rows import RowSchema, ShardRows


class NpyFormat:
    """See ``ShardFormat``."""

    suffixes = (".npy", ".jsonl")

    @contextlib.contextmanager
    def open(
        self, schema: RowSchema, provenance: Provenance, paths: Sequence[Path]
    ) -> Iterator[Callable[[ShardRows], None]]:
        """Yield a function that appends rows."""
        array, lines = paths
        names = None if schema.class_names is None else distinct_names(schema.class_names)
        mark = {"emulated": True} if provenance.emulated else {}
        with array.open("wb") as stream, lines.open("w", encoding="utf-8", newline="\n") as text:
            count = 0
            _write_header(stream, schema, count)

            def append(rows: ShardRows) -> None:
                nonlocal count
                if rows.embeddings is not None:
                    stream.write(np.ascontiguousarray(rows.embeddings, _dtype(schema)).tobytes())
                for position in range(len(rows.ids)):
                    text.write(json.dumps({**_line(rows, names, position), **mark}, ensure_ascii=False) + "\n")
                count += len(rows.ids)

            yield append
            stream.seek(0)
            _write_header(stream, schema, count)

    def read(self, schema: RowSchema, paths: Sequence[Path]) -> ShardRows:
        """Read the rows."""
        raise NotImplementedError


def _dtype(schema: RowSchema) -> np.dtype[Any]:
    return np.dtype(schema.embedding_dtype).newbyteorder("<")


def _write_header(stream: Any, schema: RowSchema, count: int) -> None:
    """Write the header, which has the same length for every count."""
    shape = (count, schema.embedding_dim or 0)
    header = {"descr": np.lib.format.dtype_to_descr(_dtype(schema)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)


def _line(rows: ShardRows, names: Sequence[str] | None, position: int) -> dict[str, Any]:
    line: dict[str, Any] = {
        "id": rows.ids[position],
        "width": rows.widths[position],
        "height": rows.heights[position],
        "error": rows.errors[position],
    }
    if names is not None and rows.errors[position] is None:
        assert rows.classes is not None
        assert rows.scores is not None
        line["classes"] = [names[index] for index in rows.classes[position]]
        line["scores"] = [float(score) for score in rows.scores[position]]
    return line
