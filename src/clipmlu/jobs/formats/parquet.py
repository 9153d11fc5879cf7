"""Parquet: one file with all columns, which says what computed it.

Each column is stored as measured: embeddings neither compress (8 % with zstd) nor repeat, so they are plain; texts are
compressed. A failed image has an embedding of NaN, not null: pyarrow 18 to 23 cannot read a null among lists of fixed size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipmlu.backends.provenance import Provenance
from clipmlu.data.class_names import distinct_names
from clipmlu.files.read import open_regular
from clipmlu.host import require
from clipmlu.jobs.formats.checks import check_values, failed_rows, read_errors
from clipmlu.jobs.rows import RowSchema, ShardRows

_ROWS_IN_GROUP = 16_384  # 34 MB of 512 float32: what a reader of a large file holds at least
_PURPOSE = "Parquet"


class ParquetFormat:
    """See ``ShardFormat``."""

    suffixes = (".parquet",)

    def check(self) -> None:
        """Check that pyarrow is installed."""
        require("pyarrow.parquet", "bulk", _PURPOSE)

    @contextlib.contextmanager
    def open(
        self, schema: RowSchema, provenance: Provenance, paths: Sequence[Path]
    ) -> Iterator[Callable[[ShardRows], None]]:
        """Yield a function that appends rows."""
        parquet = require("pyarrow.parquet", "bulk", _PURPOSE)
        (path,) = paths
        columns = arrow_schema(schema)
        texts = [name for name in _LEAVES if name.partition(".")[0] in columns.names and name != _EMBEDDING]
        with (
            path.open("wb") as stream,
            parquet.ParquetWriter(
                stream,
                columns.with_metadata(_describe(provenance)),
                use_dictionary=[name for name in ("classes.list.element", "error") if name in texts],
                compression={**dict.fromkeys(texts, "zstd"), **({_EMBEDDING: "none"} if schema.embedding_dim else {})},
                write_statistics=["id"],
                write_page_checksum=True,
            ) as writer,
        ):
            yield lambda rows: writer.write_table(_table(rows, schema, columns), row_group_size=_ROWS_IN_GROUP)

    def read(self, schema: RowSchema, paths: Sequence[Path]) -> ShardRows:
        """Read the rows."""
        pyarrow, parquet = (require(name, "bulk", _PURPOSE) for name in ("pyarrow", "pyarrow.parquet"))
        (path,) = paths
        with read_errors(path, pyarrow.ArrowException):
            with open_regular(path) as stream:
                file = parquet.ParquetFile(stream, page_checksum_verification=True)
                columns = arrow_schema(schema)
                _check_columns(file.schema_arrow, columns)
                # pyarrow 18 reads no file without row groups. Arrow's threads may release the stream when Python ends, which
                # aborts the process (github.com/apache/arrow/issues/34314, seen once in 250 runs): none are used.
                table = file.read(use_threads=False) if file.num_row_groups else columns.empty_table()
            table.validate(full=True)
            return check_values(_rows(table, schema))


_EMBEDDING = "embedding.list.element"
_LEAVES = ("id", "width", "height", "error", _EMBEDDING, "classes.list.element", "scores.list.element")


def arrow_schema(schema: RowSchema) -> Any:
    """Return the columns as a ``pyarrow.Schema``."""
    pa = require("pyarrow", "bulk", _PURPOSE)
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("error", pa.string()),
    ]
    if schema.embedding_dim is not None:
        element = pa.field("element", pa.type_for_alias(schema.embedding_dtype), nullable=False)
        fields.append(pa.field("embedding", pa.list_(element, schema.embedding_dim), nullable=False))
    if schema.class_names is not None:
        for name, kind in (("classes", pa.string()), ("scores", pa.float32())):
            fields.append(pa.field(name, pa.list_(pa.field("element", kind, nullable=False))))
    return pa.schema(fields)


def _describe(provenance: Provenance) -> dict[str, str]:
    """Return what the file says about itself; it depends on what decides the results only."""
    return {
        "clipmlu.model": str(provenance.model),
        "clipmlu.bundle_digest": provenance.bundle_digest,
        "clipmlu.target": provenance.target,
        "clipmlu.precision": "" if provenance.precision is None else provenance.precision.value,
        "clipmlu.emulated": "true" if provenance.emulated else "false",
        "clipmlu.version": provenance.tool_versions["clipmlu"],
    }


def _table(rows: ShardRows, schema: RowSchema, columns: Any) -> Any:
    pa = require("pyarrow", "bulk", _PURPOSE)
    values = [rows.ids, rows.widths, rows.heights, rows.errors]
    arrays = [pa.array(given, columns.field(place).type) for place, given in enumerate(values)]
    if rows.embeddings is not None:
        flat = pa.array(np.ascontiguousarray(rows.embeddings).reshape(-1))
        arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=columns.field("embedding").type))
    if schema.class_names is not None:
        arrays += _class_lists(rows, schema.class_names, columns)
    return pa.Table.from_arrays(arrays, schema=columns)


def _class_lists(rows: ShardRows, class_names: Sequence[str], columns: Any) -> list[Any]:
    """Return the columns of classes and scores."""
    pa = require("pyarrow", "bulk", _PURPOSE)
    assert rows.classes is not None
    assert rows.scores is not None
    failed = failed_rows(rows.errors)
    ends = np.cumsum(np.where(failed, 0, rows.classes.shape[1]), dtype=np.int32)
    offsets, mask = pa.array(np.concatenate([np.zeros(1, np.int32), ends])), pa.array(failed)
    names = pa.array(distinct_names(class_names), pa.string())
    elements = {
        "classes": names.take(pa.array(rows.classes[~failed].reshape(-1))),
        "scores": pa.array(rows.scores[~failed].reshape(-1)),
    }
    return [
        pa.ListArray.from_arrays(offsets, values, type=columns.field(name).type, mask=mask)
        for name, values in elements.items()
    ]


def _check_columns(found: Any, expected: Any) -> None:
    if not found.equals(expected):
        names = [f"{field.name}: {field.type}" for field in found]
        wanted = [f"{field.name}: {field.type}" for field in expected]
        raise ValueError(f"it has the columns {', '.join(names) or 'none'}; expected {', '.join(wanted)}")


def _rows(table: Any, schema: RowSchema) -> ShardRows:
    errors = table["error"].to_pylist()
    failed = failed_rows(errors)
    embeddings = classes = scores = None
    if schema.embedding_dim is not None:
        elements = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        embeddings = elements.astype(schema.embedding_dtype, copy=False).reshape(-1, schema.embedding_dim)
    if schema.class_names is not None:
        compute = require("pyarrow.compute", "bulk", _PURPOSE)
        pa = require("pyarrow", "bulk", _PURPOSE)
        names = pa.array(distinct_names(schema.class_names), pa.string())
        width = min(schema.top_k or 0, len(names))
        found, scored = (_lists(table[name], failed, width) for name in ("classes", "scores"))
        indices = compute.index_in(found, value_set=names)
        if indices.null_count:
            raise ValueError("it names a class that the job does not have")
        classes = _spread(indices.to_numpy(), failed, width, np.int32(-1))
        scores = _spread(scored.to_numpy(), failed, width, np.float32(np.nan))
    return ShardRows(
        ids=table["id"].to_pylist(),
        widths=table["width"].to_pylist(),
        heights=table["height"].to_pylist(),
        errors=errors,
        embeddings=embeddings,
        classes=classes,
        scores=scores,
    )


def _lists(column: Any, failed: npt.NDArray[np.bool_], width: int) -> Any:
    """Return the elements of the lists, which must have ``width`` each, and be null for failed images."""
    compute = require("pyarrow.compute", "bulk", _PURPOSE)
    lists = column.combine_chunks()
    lengths = compute.fill_null(compute.list_value_length(lists), -1).to_numpy(zero_copy_only=False)
    if not np.array_equal(lengths, np.where(failed, -1, width)):
        raise ValueError(f"its classes are not {width} for each image")
    return lists.flatten()


def _spread(values: npt.NDArray[Any], failed: npt.NDArray[np.bool_], width: int, absent: Any) -> npt.NDArray[Any]:
    """Return one row for each image; those of failed ones hold ``absent``."""
    rows = np.full((len(failed), width), absent)
    rows[~failed] = values.reshape(-1, width)
    return rows
