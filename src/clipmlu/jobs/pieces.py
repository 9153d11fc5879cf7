"""Pieces of the input of a job; each is the input of one shard and can be opened in any process that has the same paths."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Self

from clipmlu.data.url.location import is_url
from clipmlu.files.read import decode_json
from clipmlu.keys import value_digest
from clipmlu.specs import NaturalInt, PositiveInt, Spec


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

    @property
    def reason(self) -> str | None:
        """Why it cannot be read, or None; the content, and what a URL leads to, are not known yet."""
        if self.size is not None or (self.error is None and is_url(self.name)):
            return None
        return self.error or f"Cannot read '{self.name}': there is no such file, or it is not accessible."


class FilesPiece(Spec, frozen=True, kw_only=True, tag="files"):
    """Image files.

    Attributes:
        files: the files, in the order of the input.
    """

    files: tuple[FileEntry, ...]

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.files)

    @property
    def parts(self) -> tuple[FileEntry, ...]:
        """The parts of the input that it holds."""
        return self.files


class _OnePart(Spec, frozen=True, kw_only=True):
    """A piece that holds one part of the input."""

    @property
    def parts(self) -> tuple[Self]:
        """The piece itself."""
        return (self,)


class TarPiece(_OnePart, frozen=True, kw_only=True, tag="tar"):
    """All images of a tar archive.

    Attributes:
        file: the archive.
    """

    file: FileEntry

    @property
    def images(self) -> None:
        """The number of images is known only when the archive is read."""
        return

    @property
    def name(self) -> str:
        """Name of the archive."""
        return self.file.name

    @property
    def reason(self) -> str | None:
        """Why it cannot be read, or None."""
        return self.file.reason


class RowsPiece(_OnePart, frozen=True, kw_only=True, tag="rows"):
    """Rows of a Parquet or Arrow file.

    Attributes:
        file: the file.
        kind: format of the file.
        image_column: column of the images; see ``Columns``.
        id_column: column of the ids, or None for row numbers.
        first: number of the first row, from 0.
        images: number of rows.
        current_folder: the current folder when the input was listed, in which relative paths in the rows are looked up, too;
            None if the column holds no paths.
    """

    file: FileEntry
    kind: Literal["parquet", "arrow"]
    image_column: str
    id_column: str | None
    first: NaturalInt
    images: PositiveInt
    current_folder: str | None = None

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.file.name

    @property
    def reason(self) -> None:
        """Its metadata were read."""
        return


class DatasetPiece(_OnePart, frozen=True, kw_only=True, tag="dataset"):
    """Images of a labelled dataset.

    Attributes:
        dataset: the dataset; see ``DatasetChoice``.
        split: its split.
        data_dir: folder of its files, or None.
        size: number of images of a generated dataset, or None.
        seed: seed of a generated dataset.
        max_pixels: largest width x height of an image.
        first: index of the first image.
        images: number of images.
        digest: digest of their keys, by which a changed folder of images is noticed.
    """

    dataset: str
    split: str | None
    data_dir: str | None
    size: PositiveInt | None
    seed: NaturalInt
    max_pixels: PositiveInt
    first: NaturalInt
    images: PositiveInt
    digest: str

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return self.dataset

    @property
    def reason(self) -> None:
        """It was opened."""
        return


Piece = FilesPiece | TarPiece | RowsPiece | DatasetPiece
"""A piece of any kind: a tagged union."""

Part = FileEntry | TarPiece | RowsPiece | DatasetPiece
"""A part of the input that is compared as a whole."""


def decode_piece(line: bytes) -> Piece:
    """Return a piece from its JSON.

    Raises:
        msgspec.DecodeError: it is damaged.
    """
    kind: Any = Piece
    piece: Piece = decode_json(line, kind)
    return piece


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
