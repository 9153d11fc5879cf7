"""The input of a job: what the user gave, and how it is cut into pieces."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Literal

from clipmlu.arguments import check_fields
from clipmlu.data.containers.arrow import read_arrow_counts
from clipmlu.data.containers.kinds import container_kind
from clipmlu.data.containers.parquet import read_parquet_footer
from clipmlu.data.datasets.choice import DatasetChoice
from clipmlu.data.finding import Found, SkippedFiles
from clipmlu.data.listing import find_inputs
from clipmlu.data.url.found import FoundUrl
from clipmlu.data.url.options import UrlOptions
from clipmlu.errors import InputError
from clipmlu.file_names import name_from_path, path_from_name
from clipmlu.jobs.dataset_input import cut_dataset
from clipmlu.jobs.pieces import FileEntry, FilesPiece, Piece, RowsPiece, TarPiece


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobInput:
    """What a command reads, in this order.

    Attributes:
        paths: files, folders, glob patterns, URLs, or ``-`` for a list on stdin. Tar, Parquet and Arrow files hold many images each; a
            job finds them in folders, too.
        files_from: a file that lists more of them, or ``-`` for stdin; see ``find_inputs``.
        dataset: a labelled dataset.
        image_column: column of the images in Parquet and Arrow files; None to find it; see ``choose_columns``.
        id_column: column of the ids in Parquet and Arrow files; None for the file and the row number.

    Raises:
        OptionError: a field has another type.
    """

    paths: Sequence[str] = ()
    files_from: str | None = None
    dataset: DatasetChoice | None = None
    image_column: str | None = None
    id_column: str | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)

    @property
    def given(self) -> bool:
        """Whether it names any images."""
        return bool(self.paths) or self.files_from is not None or self.dataset is not None


def cut_inputs(
    inputs: JobInput, shard_size: int, skipped_files: SkippedFiles, urls: UrlOptions | None = None
) -> Iterator[Piece]:
    """Cut all inputs of a user into pieces, lazily.

    Consecutive image files, rows of a table and images of a dataset are cut into pieces of ``shard_size``; a tar archive is one piece.
    A table is cut between row groups, if they are not larger than that. A table whose metadata cannot be read is an entry with an error.

    Args:
        inputs: the inputs.
        shard_size: images per piece; the last one of a folder, a table or a dataset may be shorter.
        skipped_files: counts files in folders that are not images.
        urls: limits for fetching URLs; None if that is not allowed.

    Raises:
        UnknownNameError, OptionError, InputError: the dataset cannot be opened.
        OptionError: a chosen column has another type.
        MissingDependencyError: pyarrow is not installed, and a table is among the inputs.
    """
    found = find_inputs(inputs.paths, skipped_files, urls, containers=True, files_from=inputs.files_from)
    yield from cut_found(found, inputs, shard_size)
    if inputs.dataset is not None:
        yield from cut_dataset(inputs.dataset, shard_size)


def cut_found(found: Iterable[Found | FoundUrl], inputs: JobInput, shard_size: int) -> Iterator[Piece]:
    """Cut files and URLs into pieces; see ``cut_inputs``."""
    waiting: list[FileEntry] = []
    for each in found:
        entry = _entry(each)
        kind = None if entry.size is None else container_kind(entry.name)
        if kind is None:
            waiting.append(entry)
        else:
            if waiting:
                yield FilesPiece(files=tuple(waiting))
            waiting.clear()
            if kind == "tar":
                yield TarPiece(file=entry)
            else:
                waiting += yield from _cut_table(entry, kind, inputs, shard_size)
        if len(waiting) == shard_size:
            yield FilesPiece(files=tuple(waiting))
            waiting.clear()
    if waiting:
        yield FilesPiece(files=tuple(waiting))


def _cut_table(
    entry: FileEntry, kind: Literal["parquet", "arrow"], inputs: JobInput, shard_size: int
) -> Generator[Piece, None, list[FileEntry]]:
    """Yield the pieces of a table, and return an entry for what cannot be read."""
    read = read_parquet_footer if kind == "parquet" else read_arrow_counts
    try:
        columns, groups = read(path_from_name(entry.name), inputs.image_column, inputs.id_column)
    except InputError as error:
        return [FileEntry(name=entry.name, error=str(error))]
    for first, count in cut_rows(groups.counts, shard_size):
        yield RowsPiece(
            file=entry,
            kind=kind,
            image_column=columns.image,
            id_column=columns.id,
            first=first,
            images=count,
            current_folder=_current_folder() if columns.paths else None,
        )
    return [] if groups.error is None else [FileEntry(name=entry.name, error=str(groups.error))]


def _current_folder() -> str | None:
    """Return the current folder; None if it was removed, so that no relative path leads anywhere."""
    try:
        return name_from_path(os.getcwd())
    except OSError:
        return None


def cut_rows(groups: Iterable[int], shard_size: int) -> Iterator[tuple[int, int]]:
    """Yield (first row, number of rows) of each piece: groups that fit together, and parts of a group that is too large.

    Args:
        groups: number of rows of each group.
        shard_size: largest number of rows of a piece.
    """
    first = count = 0
    for group in groups:
        if count and count + group > shard_size:
            yield first, count
            first, count = first + count, 0
        count += group
        while count > shard_size:
            yield first, shard_size
            first, count = first + shard_size, count - shard_size
    if count:
        yield first, count


def _entry(found: Found | FoundUrl) -> FileEntry:
    if found.error is not None:
        return FileEntry(name=found.name, error=str(found.error))
    if isinstance(found, FoundUrl):
        return FileEntry(name=found.name)
    try:
        facts = os.stat(found.path)
    except (OSError, ValueError):  # reading it reports the reason
        return FileEntry(name=found.name)
    return FileEntry(name=found.name, size=facts.st_size, mtime_ns=facts.st_mtime_ns)
