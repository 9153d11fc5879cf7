"""Content of ``index.json``: the segments of an index, where they come from, and the model that embeds queries."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from clipmlu.bundle.manifest import FileRecord
from clipmlu.bundle.space import EmbeddingSpace
from clipmlu.data.finding import JOB_FILE
from clipmlu.errors import InputError, reason_of
from clipmlu.file_names import name_from_path, text_from_name
from clipmlu.files.read import decode_json, read_small_file
from clipmlu.jobs.rows import EmbeddingDtype
from clipmlu.specs import NaturalInt, PositiveInt, Spec

INDEX_FILE, SEGMENTS_FOLDER = "index.json", "segments"
INDEX_SCHEMA = 1
_MOST_BYTES = 1 << 30  # about a million segments
_MAKE_AGAIN = "Make it again with 'clipmlu index ... --overwrite'."


class FileTime(Spec, frozen=True, kw_only=True):
    """Size in bytes and time of the last change in nanoseconds of a file whose digest was compared."""

    size: NaturalInt
    mtime_ns: int


class Segment(Spec, frozen=True, kw_only=True):
    """The rows of one shard: an embedding file in the folder of the index.

    Attributes:
        name: its file is ``segments/NAME.npy``, with the ids in ``NAME.ids.json``.
        shard: name of the shard in its source.
        key: digest of the content of the shard's files.
        rows: number of rows.
        left_out: rows of the shard that have no embedding: images that could not be read, NaN or a zero vector.
        files: digests of its own files, by suffix.
        times: sizes and times of the shard's files, by name; while they are equal the digests are not computed again.
    """

    name: str
    shard: str
    key: str
    rows: NaturalInt
    left_out: NaturalInt
    files: dict[str, FileRecord]
    times: dict[str, FileTime]


class Source(Spec, frozen=True, kw_only=True):
    """A job, or an embedding file, whose shards are in an index.

    Attributes:
        path: the folder or file, relative to the index if the index lies in it, else absolute; as a name.
        kind: what it is.
        images_folder: absolute path of the folder to which relative names of images refer, as a name.
        emulated: the emulated vendor SDK computed the embeddings.
        segments: one for each shard, in order.
    """

    path: str
    kind: Literal["job", "file"]
    images_folder: str
    emulated: bool
    segments: tuple[Segment, ...]

    def place(self, index: Path) -> Path:
        """Return the absolute path of the source of an index."""
        return Path(os.path.normpath(os.path.abspath(index) / Path(text_from_name(self.path))))

    def is_at(self, place: Path) -> bool:
        """Return whether a job, or a file, is at the place of the source: an index that was copied has a relative path to another folder."""
        return (place / JOB_FILE).is_file() if self.kind == "job" else place.is_file()


class ApproximateRecord(Spec, frozen=True, kw_only=True):
    """The approximate index beside the exact one, and what it was measured to find.

    Attributes:
        name: its file in the folder of the index.
        file: digest of the file.
        slots: name of the segment of each slot of its ids; empty for a free slot.
        trained_rows: rows that the index had when the clusters were computed.
        lists: number of clusters.
        probes: clusters that a query searches.
        wanted_recall: the recall for which ``probes`` was chosen.
        recall: share of the 10 best rows of the exact search that is found, for held rows as queries, 0..1.
        queries: number of held queries: rows from which no clusters were computed.
        text_recall: the same for texts; None if the bundle could not be opened.
    """

    name: str
    file: FileRecord
    slots: tuple[str, ...]
    trained_rows: PositiveInt
    lists: PositiveInt
    probes: PositiveInt
    wanted_recall: float
    recall: float
    queries: PositiveInt
    text_recall: float | None


class IndexManifest(Spec, frozen=True, kw_only=True):
    """Content of ``index.json``.

    Attributes:
        schema_version: version of this layout; newer ones are refused.
        embedding_dim: elements of a row.
        dtype: dtype of the rows.
        bundle: absolute path of the bundle that embeds queries, as a name; None if it is not known.
        space: embedding space of the rows; None if it is not known.
        sources: where the rows come from.
        tool_versions: versions of the tools that wrote the index.
        approximate: the approximate index; None without one.
    """

    schema_version: int = INDEX_SCHEMA
    embedding_dim: PositiveInt
    dtype: EmbeddingDtype
    bundle: str | None
    space: EmbeddingSpace | None
    sources: tuple[Source, ...]
    tool_versions: dict[str, str]
    approximate: ApproximateRecord | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(segment.rows for segment in self.segments())

    @property
    def emulated(self) -> bool:
        """Whether the emulated vendor SDK computed some of the rows."""
        return any(source.emulated for source in self.sources)

    def segments(self) -> Iterator[Segment]:
        """Yield the segments in the order of the rows."""
        return (segment for source in self.sources for segment in source.segments)


def read_index_manifest(folder: Path) -> IndexManifest | None:
    """Return the content of ``index.json``; None if there is none.

    Raises:
        InputError: it cannot be read, is damaged, or a newer version wrote it.
    """
    path = folder / INDEX_FILE
    try:
        content = read_small_file(path, _MOST_BYTES)
        version = decode_json(content, _Version).schema_version
        if version > INDEX_SCHEMA:
            raise InputError(
                f"Index '{name_from_path(folder)}' has schema {version}; this clipmlu reads up to {INDEX_SCHEMA}."
            )
        return decode_json(content, IndexManifest)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"Cannot read '{name_from_path(path)}': {reason_of(error)}. {_MAKE_AGAIN}") from error


class _Version(msgspec.Struct):
    """The version of a manifest, whatever else is in it."""

    schema_version: int
