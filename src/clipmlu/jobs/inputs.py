"""The input of a job: what the user gave, how it is cut into pieces, and how a piece is opened."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice

from clipmlu.data.finding import Found, SkippedFiles
from clipmlu.data.images import ImageSource
from clipmlu.data.listing import find_inputs
from clipmlu.data.url.found import FoundUrl
from clipmlu.data.url.location import is_url
from clipmlu.data.url.options import UrlOptions
from clipmlu.embed.items import ImageItem
from clipmlu.errors import InputError
from clipmlu.file_names import path_from_name, text_from_name
from clipmlu.jobs.pieces import FileEntry, FilesPiece, Piece


def cut_inputs(
    inputs: Iterable[str], shard_size: int, skipped_files: SkippedFiles, urls: UrlOptions | None = None
) -> Iterator[Piece]:
    """Cut all inputs of a user into pieces, lazily.

    Args:
        inputs: files, folders, glob patterns, URLs, or ``-`` for a list on stdin.
        shard_size: images per piece; the last one may be shorter.
        skipped_files: counts files in folders that are not images.
        urls: limits for fetching URLs; None if that is not allowed.
    """
    return cut_files(find_inputs(inputs, skipped_files, urls), shard_size)


def cut_files(found: Iterator[Found | FoundUrl], shard_size: int) -> Iterator[Piece]:
    """Cut image files into pieces of ``shard_size`` files, lazily; the last one may be shorter."""
    while files := tuple(map(_entry, islice(found, shard_size))):
        yield FilesPiece(files=files)


def open_piece(piece: Piece, urls: UrlOptions | None = None) -> Iterator[ImageItem]:
    """Yield the images of a piece; an entry that cannot be read is an item whose ``load`` raises ``InputError``.

    Args:
        piece: the piece.
        urls: limits for fetching URLs; None if that is not allowed.
    """
    for entry in piece.files:
        yield _item(entry, urls)


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


def _item(entry: FileEntry, urls: UrlOptions | None) -> ImageItem:
    def load() -> ImageSource:
        if entry.error is not None:
            raise InputError(entry.error)
        if is_url(entry.name):
            return FoundUrl(text_from_name(entry.name), urls).source()
        return path_from_name(entry.name)

    return ImageItem(entry.name, load)
