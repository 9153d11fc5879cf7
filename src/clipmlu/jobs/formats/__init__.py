"""Formats of shard files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol

from clipmlu.backends.provenance import Provenance
from clipmlu.jobs.formats.csv import CsvFormat
from clipmlu.jobs.formats.jsonl import JsonLinesFormat
from clipmlu.jobs.formats.npy import NpyFormat
from clipmlu.jobs.formats.parquet import ParquetFormat
from clipmlu.jobs.rows import RowSchema, ShardRows

FormatName = Literal["parquet", "npy", "csv", "jsonl"]


class ShardFormat(Protocol):
    """Writes and reads the files of one shard."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of the files, such as ``(".npy", ".jsonl")``."""

    def check(self) -> None:
        """Check that the format can be used.

        Raises:
            MissingDependencyError: it needs an optional package.
        """

    def open(
        self, schema: RowSchema, provenance: Provenance, paths: Sequence[Path]
    ) -> AbstractContextManager[Callable[[ShardRows], None]]:
        """Return a context manager that yields a function, which appends rows; the files are complete when it ends.

        Equal calls give equal bytes.

        Args:
            schema: columns of the rows.
            provenance: what computed them; the files say it where the format has a place for it.
            paths: one for each suffix.

        Raises:
            OSError: a file cannot be written.
            MissingDependencyError: the format needs an optional package.
        """

    def read(self, schema: RowSchema, paths: Sequence[Path]) -> ShardRows:
        """Read the rows.

        Raises:
            InputError: a file is damaged, or is not of this schema.
            MissingDependencyError: the format needs an optional package.
        """


FORMATS: dict[FormatName, ShardFormat] = {
    "parquet": ParquetFormat(),
    "npy": NpyFormat(),
    "csv": CsvFormat(),
    "jsonl": JsonLinesFormat(),
}
