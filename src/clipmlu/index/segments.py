"""Segments: the rows of one shard as an embedding file of unit vectors, written once and then only read."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from clipmlu.bundle.manifest import FileRecord
from clipmlu.bundle.verify import file_record
from clipmlu.embed.file import EmbeddingFile
from clipmlu.errors import InputError, reason_of
from clipmlu.file_names import name_from_path
from clipmlu.files.read import Decoded, decode_json, open_regular
from clipmlu.index.manifest import Segment

SUFFIXES = (".npy", ".ids.json")
_ROWS_AT_ONCE = 8192
_NORM_SLACK = 2e-3  # of vectors that are taken as unit vectors; float16 rounds by less
_NEWLINE = ord("\n")


class RowBlock(NamedTuple):
    """Rows of a source.

    Attributes:
        ids: names of the images.
        embeddings: float16, float32 or float64, shape (N, D).
    """

    ids: Sequence[str]
    embeddings: npt.NDArray[np.floating]


class WrittenRows(NamedTuple):
    """What was written of a shard: numbers of rows, of those without direction that were left out, and of those that had another norm than 1."""

    rows: int
    left_out: int
    normalised: int


def write_segment(path: Path, block: RowBlock, dim: int, dtype: str) -> WrittenRows:
    """Write the rows of a shard; the files appear when they are complete.

    Args:
        path: ``segments/NAME.npy``.
        block: the rows of the shard.
        dim: elements of a row.
        dtype: dtype of the file.

    Raises:
        OutputError: the files cannot be written.
    """
    left_out = normalised = 0
    with EmbeddingFile(path, dim, dtype=dtype, overwrite=True) as file:
        for start in range(0, len(block.ids), _ROWS_AT_ONCE):
            part = block.embeddings[start : start + _ROWS_AT_ONCE]
            units, good, changed = unit_rows(part)
            ids = block.ids[start : start + _ROWS_AT_ONCE]
            file.append(units[good], [name for name, kept in zip(ids, good, strict=True) if kept])
            left_out += int((~good).sum())
            normalised += changed
        file.publish()
        return WrittenRows(file.rows, left_out, normalised)


def unit_rows(rows: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], int]:
    """Return rows of unit norm.

    Args:
        rows: shape (N, D).

    Returns:
        float32 rows, in which those of about unit norm are unchanged; which of them have a direction, being finite and not zero; and
        the number of rows that had another norm.
    """
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(rows.astype(np.float64), axis=1)
        good = np.isfinite(norms) & (norms > 0)
        other = good & ~(np.abs(norms - 1) <= _NORM_SLACK)
        units = rows.astype(np.float32)
        units[other] = rows[other].astype(np.float64) / norms[other, None]
    return units, good, int(other.sum())


def record_files(path: Path) -> dict[str, FileRecord]:
    """Return the digests of the files of a segment, by suffix.

    Raises:
        OSError: one cannot be read.
    """
    return {suffix: file_record(path.with_suffix(suffix)) for suffix in SUFFIXES}


def adopt_rows(path: Path, dim: int, dtype: str) -> int | None:
    """Return the number of rows of a segment that an earlier run wrote completely; None if there is none or it is damaged."""
    try:
        with open_regular(path) as stream:
            np.lib.format.read_magic(stream)
            (rows, *_), _fortran, _dtype = np.lib.format.read_array_header_1_0(stream)
        map_rows(path, rows, dim, dtype)
        return rows if len(list(IdTable(path.with_suffix(SUFFIXES[1]), rows))) == rows else None
    except (OSError, ValueError, InputError):
        return None


def has_whole_files(path: Path, segment: Segment) -> bool:
    """Return whether the files of a segment are there with their sizes."""
    try:
        return all(path.with_suffix(name).stat().st_size == record.size for name, record in segment.files.items())
    except OSError:
        return False


class IdTable:
    """The ids of a segment, read one by one from the file, which has one on a line.

    Args:
        path: ``NAME.ids.json``.
        rows: number of ids.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is empty.
    """

    def __init__(self, path: Path, rows: int) -> None:
        self._path = path
        self._rows = rows
        with open_regular(path) as stream:
            self._text = np.memmap(stream, np.uint8, "r")

    @functools.cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        """Places of the line feeds; found when an id is first needed, since an index may have billions."""
        ends = np.flatnonzero(self._text == _NEWLINE)
        if len(ends) != self._rows + 2:  # the first line is '[', the last one ']'
            raise _damaged(self._path, f"it has not {self._rows:,} ids")
        return ends

    def __getitem__(self, row: int) -> str:
        line = self._text[self._ends[row] + 1 : self._ends[row + 1]].tobytes()
        return self._decode(line.removesuffix(b","), str)

    def __iter__(self) -> Iterator[str]:
        return iter(self._decode(self._text.tobytes(), list[str]))

    def _decode(self, text: bytes, kind: type[Decoded]) -> Decoded:
        try:
            return decode_json(text, kind)
        except msgspec.DecodeError as error:
            raise _damaged(self._path, str(error)) from error


def map_rows(path: Path, rows: int, dim: int, dtype: str) -> npt.NDArray[np.floating]:
    """Map the rows of a segment into memory, read-only.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such array, or was cut.
    """
    wanted = np.dtype(dtype).newbyteorder("<")
    with open_regular(path) as stream:
        np.lib.format.read_magic(stream)
        shape, fortran, found = np.lib.format.read_array_header_1_0(stream)
        if shape != (rows, dim) or fortran or found != wanted:
            raise ValueError(f"it is not an array of {dtype} of the shape {(rows, dim)}")
        begin, size = stream.tell(), stream.seek(0, 2)
        if size != begin + rows * dim * wanted.itemsize:
            raise ValueError(f"it has {size:,} bytes; its shape needs {begin + rows * dim * wanted.itemsize:,}")
        return np.memmap(stream, wanted, "r", begin, shape) if rows else np.zeros(shape, wanted)


class OpenSegment:
    """A segment in memory maps; threads may share it.

    Args:
        path: ``segments/NAME.npy``.
        segment: its record.
        dim: elements of a row.
        dtype: dtype of the rows.

    Attributes:
        vectors: the rows, read-only.

    Raises:
        FileNotFoundError: a file is missing.
        InputError: a file is damaged.
    """

    def __init__(self, path: Path, segment: Segment, dim: int, dtype: str) -> None:
        self._ids_path = path.with_suffix(SUFFIXES[1])
        try:
            self.vectors = map_rows(path, segment.rows, dim, dtype)
            path = self._ids_path
            self.ids = IdTable(path, segment.rows)
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise _damaged(path, reason_of(error)) from error


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(
        f"Cannot read '{name_from_path(path)}': {reason}. The same 'clipmlu index' that made the index mends it."
    )
