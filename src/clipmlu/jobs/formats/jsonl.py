"""JSON lines: one object per row; an image that could not be read has neither classes nor an embedding."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import UNSET, UnsetType

from clipmlu.backends.provenance import Provenance
from clipmlu.data.class_names import distinct_names
from clipmlu.files.read import decode_json, open_regular
from clipmlu.jobs.formats.checks import check_values, read_errors
from clipmlu.jobs.rows import RowSchema, ShardRows
from clipmlu.specs import NaturalInt, Spec


class RowLine(Spec, frozen=True, kw_only=True):
    """One row; see ``ShardRows``. ``emulated`` is there only if it is True."""

    id: str
    width: NaturalInt | None
    height: NaturalInt | None
    error: Annotated[str, msgspec.Meta(min_length=1)] | None
    emulated: bool | UnsetType = UNSET
    classes: tuple[str, ...] | UnsetType = UNSET
    scores: tuple[float, ...] | UnsetType = UNSET
    embedding: tuple[float, ...] | UnsetType = UNSET


class JsonLinesFormat:
    """See ``ShardFormat``."""

    suffixes = (".jsonl",)

    def check(self) -> None:
        """Check nothing: it needs no optional package."""

    @contextlib.contextmanager
    def open(
        self, schema: RowSchema, provenance: Provenance, paths: Sequence[Path]
    ) -> Iterator[Callable[[ShardRows], None]]:
        """Yield a function that appends rows."""
        (path,) = paths
        with path.open("wb") as stream:
            yield lambda rows: stream.writelines(encode_lines(rows, schema, provenance, embeddings=True))

    def read(self, schema: RowSchema, paths: Sequence[Path]) -> ShardRows:
        """Read the rows."""
        (path,) = paths
        with read_errors(path):
            lines = list(read_lines(path))
            return check_values(rows_from_lines(lines, schema, _embeddings(lines, schema)))


def encode_lines(rows: ShardRows, schema: RowSchema, provenance: Provenance, *, embeddings: bool) -> Iterator[bytes]:
    """Yield the line of each row.

    Args:
        rows: the rows.
        schema: their columns.
        provenance: what computed them.
        embeddings: whether the lines hold the embeddings.
    """
    names = distinct_names(schema.class_names or ())
    encode = msgspec.json.Encoder().encode
    for place, error in enumerate(rows.errors):
        good = error is None
        line = RowLine(
            id=rows.ids[place],
            width=rows.widths[place],
            height=rows.heights[place],
            error=error,
            emulated=provenance.emulated or UNSET,
            classes=UNSET if rows.classes is None or not good else tuple(names[each] for each in rows.classes[place]),
            scores=UNSET if rows.scores is None or not good else tuple(rows.scores[place].tolist()),
            embedding=tuple(rows.embeddings[place].tolist())
            if embeddings and good and rows.embeddings is not None
            else UNSET,
        )
        yield encode(line) + b"\n"


def read_lines(path: Path) -> Iterator[RowLine]:
    """Yield the lines of a file.

    Raises:
        OSError: it cannot be read.
        ValueError: a line is damaged.
    """
    with open_regular(path) as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                raise ValueError(f"line {number} has no end")
            try:
                yield decode_json(line, RowLine)
            except msgspec.DecodeError as error:
                raise ValueError(f"line {number}: {error}") from error


def rows_from_lines(
    lines: Sequence[RowLine], schema: RowSchema, embeddings: npt.NDArray[np.floating] | None
) -> ShardRows:
    """Return the rows of lines.

    Args:
        lines: the lines.
        schema: their columns.
        embeddings: the embeddings, or None if the job stores none.

    Raises:
        ValueError: the classes of a line are not those of the schema.
    """
    names = {name: index for index, name in enumerate(distinct_names(schema.class_names or ()))}
    width = min(schema.top_k or 0, len(names))
    classes, scores = np.full((len(lines), width), -1, np.int32), np.full((len(lines), width), np.nan, np.float32)
    for place, line in enumerate(lines):
        expected = width if schema.class_names is not None and line.error is None else None
        for found in (line.classes, line.scores):
            if (None if found is UNSET else len(found)) != expected:
                raise ValueError(f"line {place + 1} has not {expected or 'no'} classes and scores")
        if line.classes is not UNSET and line.scores is not UNSET:
            unknown = [name for name in line.classes if name not in names]
            if unknown:
                raise ValueError(f"line {place + 1} names the class '{unknown[0]}', which the job does not have")
            classes[place], scores[place] = [names[name] for name in line.classes], line.scores
    return ShardRows(
        ids=[line.id for line in lines],
        widths=[line.width for line in lines],
        heights=[line.height for line in lines],
        errors=[line.error for line in lines],
        embeddings=embeddings,
        classes=None if schema.class_names is None else classes,
        scores=None if schema.class_names is None else scores,
    )


def _embeddings(lines: Sequence[RowLine], schema: RowSchema) -> npt.NDArray[np.floating] | None:
    """Return the embeddings of lines, or None if the job stores none.

    Raises:
        ValueError: a line has another number of elements.
    """
    if schema.embedding_dim is None:
        return None
    found = np.full((len(lines), schema.embedding_dim), np.nan, schema.embedding_dtype)
    for place, line in enumerate(lines):
        elements = None if line.embedding is UNSET else line.embedding
        if (None if elements is None else len(elements)) != (schema.embedding_dim if line.error is None else None):
            raise ValueError(f"line {place + 1} has not {schema.embedding_dim} elements of an embedding")
        if elements is not None:
            found[place] = elements
    return found
