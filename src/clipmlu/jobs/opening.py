"""The images of pieces, in any process that has the same paths, and of a command without pieces."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from clipmlu.data.containers.arrow import arrow_entries
from clipmlu.data.containers.columns import Columns
from clipmlu.data.containers.entry import Entry
from clipmlu.data.containers.parquet import parquet_entries
from clipmlu.data.containers.tar import tar_entries
from clipmlu.data.finding import SkippedFiles
from clipmlu.data.images import ImageSource
from clipmlu.data.listing import find_inputs
from clipmlu.data.url.found import Download, FoundUrl
from clipmlu.data.url.location import is_url
from clipmlu.data.url.options import UrlOptions
from clipmlu.embed.items import ImageItem
from clipmlu.errors import InputError
from clipmlu.file_names import name_from_path, path_from_name, text_from_name
from clipmlu.jobs.dataset_input import cut_dataset, dataset_items
from clipmlu.jobs.inputs import JobInput, cut_found
from clipmlu.jobs.options import DEFAULT_SHARD_SIZE
from clipmlu.jobs.pieces import DatasetPiece, FileEntry, FilesPiece, Piece, RowsPiece, TarPiece

_log = logging.getLogger(__name__)


def input_items(inputs: JobInput, skipped_files: SkippedFiles, urls: UrlOptions | None = None) -> Iterator[ImageItem]:
    """Yield the images of a command that is no job, lazily; files in folders that hold many images are left out.

    Args:
        inputs: the inputs.
        skipped_files: counts files in folders that are not images.
        urls: limits for fetching URLs; None if that is not allowed.

    Raises:
        ClipmluError: as for ``cut_inputs``.
    """
    for found in find_inputs(inputs.paths, skipped_files, urls, files_from=inputs.files_from):
        for piece in cut_found((found,), inputs, DEFAULT_SHARD_SIZE):
            yield from open_piece(piece, urls)
    if inputs.dataset is not None:
        for part in cut_dataset(inputs.dataset, DEFAULT_SHARD_SIZE):
            yield from open_piece(part)


def open_piece(piece: Piece, urls: UrlOptions | None = None) -> Iterator[ImageItem]:
    """Yield the images of a piece; an entry that cannot be read is an item whose ``load`` raises ``InputError``.

    ``load`` may be called once: an item lives until its shard is written, but not the content of its image.

    Args:
        piece: the piece.
        urls: limits for fetching URLs; None if that is not allowed.

    Raises:
        InputError: an archive, a table or a dataset has changed since the input was listed.
    """
    match piece:
        case FilesPiece():
            return (_file_item(entry, urls) for entry in piece.files)
        case TarPiece():
            return _items(_tar_entries(_unchanged(piece.file)))
        case RowsPiece():
            read = parquet_entries if piece.kind == "parquet" else arrow_entries
            columns = Columns(piece.image_column, piece.id_column)
            return _items(read(_unchanged(piece.file), columns, piece.first, piece.images, urls))
        case DatasetPiece():
            return dataset_items(piece)


def _unchanged(entry: FileEntry) -> Path:
    """Return the path of an archive or a table. The time of its last change may differ on another machine, and is not compared.

    Raises:
        InputError: it has another size than when the input was listed.
    """
    path = path_from_name(entry.name)
    with contextlib.suppress(OSError):  # reading it reports the reason
        size = os.stat(path).st_size
        if size != entry.size:
            raise InputError(
                f"'{entry.name}' has changed since the job began: it has {size:,} bytes, not {entry.size:,}. Give the command again, "
                "with --overwrite."
            )
    return path


def _file_item(entry: FileEntry, urls: UrlOptions | None) -> ImageItem:
    if entry.error is None and is_url(entry.name):
        return ImageItem(entry.name, FoundUrl(text_from_name(entry.name), urls).source)

    def load() -> ImageSource:
        if entry.error is not None:
            raise InputError(entry.error)
        return path_from_name(entry.name)

    return ImageItem(entry.name, load)


def _tar_entries(path: Path) -> Iterator[Entry]:
    skipped_files = SkippedFiles()
    yield from tar_entries(path, skipped_files)
    if (note := skipped_files.note()) is not None:
        _log.warning("'%s': %s", name_from_path(path), note)


def _items(entries: Iterable[Entry]) -> Iterator[ImageItem]:
    for entry in entries:
        # A download holds no content, and can be cancelled only if the pipeline sees it.
        yield ImageItem(entry.name, entry.load if isinstance(entry.load, Download) else _once(entry.load))


def _once(load: Callable[[], ImageSource]) -> Callable[[], ImageSource]:
    """Return a function that calls ``load`` and forgets it, with the content that it holds."""
    held = [load]

    def once() -> ImageSource:
        return held.pop()()

    return once
