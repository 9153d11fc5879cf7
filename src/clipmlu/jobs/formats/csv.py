"""CSV as of RFC 4180: a header, one line per row; cells of images that could not be read are empty, besides id and error.

Numbers have as many digits as their dtype needs to be read back unchanged. The shortest such text takes three times as long
and saves a tenth of the bytes.
"""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from clipmlu.backends.provenance import Provenance
from clipmlu.data.class_names import distinct_names
from clipmlu.files.read import open_regular
from clipmlu.jobs.formats.checks import check_values, read_errors
from clipmlu.jobs.rows import RowSchema, ShardRows

_FACTS = ("id", "width", "height", "error")
_EMULATED = "emulated"
_NUMBER = {"float32": "%.9g", "float16": "%.5g"}
_LINE_END = "\r\n"


class CsvFormat:
    """See ``ShardFormat``."""

    suffixes = (".csv",)

    def check(self) -> None:
        """Check nothing: it needs no optional package."""

    @contextlib.contextmanager
    def open(
        self, schema: RowSchema, provenance: Provenance, paths: Sequence[Path]
    ) -> Iterator[Callable[[ShardRows], None]]:
        """Yield a function that appends rows."""
        (path,) = paths
        with path.open("w", encoding="utf-8", newline="") as stream:
            stream.write(_line(_columns(schema, emulated=provenance.emulated)))
            yield lambda rows: stream.writelines(_lines(rows, schema, emulated=provenance.emulated))

    def read(self, schema: RowSchema, paths: Sequence[Path]) -> ShardRows:
        """Read the rows."""
        (path,) = paths
        with read_errors(path, csv.Error), open_regular(path) as stream:
            _check_end(stream)
            reader = csv.reader(io.TextIOWrapper(stream, encoding="utf-8", newline=""), strict=True)
            columns = next(reader, [])
            if columns not in (_columns(schema, emulated=False), _columns(schema, emulated=True)):
                raise ValueError("its columns are not those of this job")
            return check_values(_rows(list(reader), schema, emulated=_EMULATED in columns))


def _rank_count(schema: RowSchema) -> int:
    return min(schema.top_k or 0, len(schema.class_names or ()))


def _columns(schema: RowSchema, *, emulated: bool) -> list[str]:
    ranks = range(1, _rank_count(schema) + 1)
    return [
        *_FACTS,
        *([_EMULATED] if emulated else []),
        *(f"{column}_{rank}" for rank in ranks for column in ("class", "score")),
        *(f"e{place}" for place in range(schema.embedding_dim or 0)),
    ]


def _line(cells: Sequence[object]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator=_LINE_END).writerow(cells)
    return buffer.getvalue()


def _lines(rows: ShardRows, schema: RowSchema, *, emulated: bool) -> Iterator[str]:
    names = distinct_names(schema.class_names or ())
    form = (f",{_NUMBER[schema.embedding_dtype]}" * (schema.embedding_dim or 0)) + _LINE_END
    absent = "," * (schema.embedding_dim or 0) + _LINE_END
    for place, error in enumerate(rows.errors):
        cells = [rows.ids[place], rows.widths[place], rows.heights[place], error, *(["true"] if emulated else [])]
        if rows.classes is not None and rows.scores is not None:
            for index, score in zip(rows.classes[place], rows.scores[place], strict=True):
                cells += [names[index], _NUMBER["float32"] % score] if error is None else [None, None]
        end = absent if error is not None or rows.embeddings is None else form % tuple(rows.embeddings[place].tolist())
        yield _line(cells).removesuffix(_LINE_END) + end


def _check_end(stream: io.BufferedIOBase | object) -> None:
    """Raise ``ValueError`` if the last line has no end."""
    assert isinstance(stream, io.BufferedReader)
    size = stream.seek(0, 2)
    stream.seek(max(0, size - len(_LINE_END)))
    if stream.read() != _LINE_END.encode():
        raise ValueError("its last line has no end")
    stream.seek(0)


def _rows(lines: list[list[str]], schema: RowSchema, *, emulated: bool) -> ShardRows:
    names = {name: index for index, name in enumerate(distinct_names(schema.class_names or ()))}
    ranks, width = _rank_count(schema), schema.embedding_dim or 0
    begin = len(_FACTS) + emulated
    classes, scores = np.full((len(lines), ranks), -1, np.int32), np.full((len(lines), ranks), np.nan, np.float32)
    embeddings = np.full((len(lines), width), np.nan, schema.embedding_dtype)
    for place, cells in enumerate(lines):
        if len(cells) != begin + 2 * ranks + width or (emulated and cells[begin - 1] != "true"):
            raise ValueError(f"row {place + 1} has not the cells of the header")
        ranked, elements = cells[begin : begin + 2 * ranks], cells[begin + 2 * ranks :]
        if cells[3]:
            if any(ranked) or any(elements):
                raise ValueError(f"row {place + 1} has both an error and results")
            continue
        if unknown := [name for name in ranked[::2] if name not in names]:
            raise ValueError(f"row {place + 1} names the class '{unknown[0]}', which the job does not have")
        classes[place] = [names[name] for name in ranked[::2]]
        scores[place] = list(map(float, ranked[1::2]))
        embeddings[place] = list(map(float, elements))
    return ShardRows(
        ids=[cells[0] for cells in lines],
        widths=[_whole(cells[1]) for cells in lines],
        heights=[_whole(cells[2]) for cells in lines],
        errors=[cells[3] or None for cells in lines],
        embeddings=None if schema.embedding_dim is None else embeddings,
        classes=None if schema.class_names is None else classes,
        scores=None if schema.class_names is None else scores,
    )


def _whole(cell: str) -> int | None:
    if cell and not (cell.isascii() and cell.isdecimal()):
        raise ValueError(f"'{cell}' is no number of pixels")
    return int(cell) if cell else None
