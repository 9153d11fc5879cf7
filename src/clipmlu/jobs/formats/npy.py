"""``.npy`` for the embeddings and JSON lines for the rest; line i belongs to row i."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipmlu.jobs.rows import RowSchema, ShardRows


class NpyFormat:
    """See ``ShardFormat``."""

    suffixes = (".npy", ".jsonl")

    def write(self, rows: ShardRows, schema: RowSchema, paths: Sequence[Path]) -> None:
        """Write the rows."""
        array, lines = paths
        embeddings = np.zeros((len(rows.ids), 0), np.float32) if rows.embeddings is None else rows.embeddings
        with array.open("wb") as stream:
            np.lib.format.write_array(stream, np.ascontiguousarray(embeddings), version=(1, 0), allow_pickle=False)
        with lines.open("w", encoding="utf-8", newline="\n") as text:
            for position in range(len(rows.ids)):
                text.write(json.dumps(_line(rows, schema, position), ensure_ascii=False) + "\n")

    def read(self, schema: RowSchema, paths: Sequence[Path]) -> ShardRows:
        """Read the rows."""
        raise NotImplementedError


def _line(rows: ShardRows, schema: RowSchema, position: int) -> dict[str, Any]:
    line: dict[str, Any] = {
        "id": rows.ids[position],
        "width": rows.widths[position],
        "height": rows.heights[position],
        "error": rows.errors[position],
    }
    if schema.class_names is not None and rows.errors[position] is None:
        assert rows.classes is not None
        assert rows.scores is not None
        line["classes"] = [schema.class_names[index] for index in rows.classes[position]]
        line["scores"] = [float(score) for score in rows.scores[position]]
    return line
