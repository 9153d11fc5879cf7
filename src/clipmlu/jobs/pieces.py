"""Pieces of the input of a job; each is the input of one shard and can be opened in any process that has the same paths."""

from __future__ import annotations

from typing import NamedTuple

from clipmlu.keys import value_digest
from clipmlu.specs import Spec


class FileEntry(Spec, frozen=True, kw_only=True):
    """An image file as it was when the input was listed.

    Attributes:
        name: the image's path or URL as text; see ``name_from_path``.
        size: bytes; None if the file could not be read, or is named by a URL.
        mtime_ns: time of the last change in nanoseconds; None if the file could not be read, or is named by a URL.
        error: why the entry cannot be read, such as an empty folder, or None.
    """

    name: str
    size: int | None = None
    mtime_ns: int | None = None
    error: str | None = None


class FilesPiece(Spec, frozen=True, kw_only=True, tag="files"):
    """Image files.

    Attributes:
        files: the files, in the order of the input.
    """

    files: tuple[FileEntry, ...]


Piece = FilesPiece
"""A piece of any kind: a tagged union."""


class Shard(NamedTuple):
    """One part of a job.

    Attributes:
        number: position, from 0.
        piece: its input.
    """

    number: int
    piece: Piece

    @property
    def name(self) -> str:
        """Name of its files without suffix; it depends on the position only."""
        return shard_name(self.number)

    @property
    def digest(self) -> str:
        """Digest of the piece."""
        return value_digest(self.piece)


def shard_name(number: int) -> str:
    """Return the name of a shard's files without suffix."""
    return f"part-{number:08d}"
