"""Formats of shard files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from clipmlu.jobs.formats.npy import NpyFormat
from clipmlu.jobs.rows import RowSchema, ShardRows

FormatName = Literal["npy"]


class ShardFormat(Protocol):
    """Writes and reads the files of one shard."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of the files, such as ``(".npy", ".jsonl")``."""

    def write(self, rows: ShardRows, schema: RowSchema, paths: Sequence[Path]) -> None:
        """Write the rows; equal rows give equal bytes.

        Args:
            rows: the rows.
            schema: their columns.
            paths: one for each suffix.

        Raises:
            OSError: a file cannot be written.
        """

    def read(self, schema: RowSchema, paths: Sequence[Path]) -> ShardRows:
        """Read the rows.

        Raises:
            InputError: a file is damaged, or is not of this schema.
        """


FORMATS: dict[FormatName, ShardFormat] = {"npy": NpyFormat()}
