"""Inputs as users give them: files, folders, glob patterns, URLs, or a list on stdin."""

from __future__ import annotations

import glob
import io
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TextIO

from clipmlu.data.finding import Found, SkippedFiles, find_images, find_matches
from clipmlu.data.url.found import FoundUrl
from clipmlu.data.url.location import is_url
from clipmlu.data.url.options import UrlOptions
from clipmlu.errors import InputError
from clipmlu.file_names import expand_home, name_from_path

STDIN = "-"
_CHUNK_BYTES = 1 << 16


def find_inputs(
    inputs: Iterable[str], skipped_files: SkippedFiles, urls: UrlOptions | None = None
) -> Iterator[Found | FoundUrl]:
    """Yield the image files of all inputs, lazily; folders in sorted order.

    An input that is wrong, such as a missing path or an empty folder, becomes an entry that fails when it is read. It
    is then reported like an unreadable image, and the other inputs are processed.

    Args:
        inputs: inputs as given by the user.
        skipped_files: counts files in folders that are not images.
        urls: limits for fetching URLs; None if that is not allowed.
    """
    for text in inputs:
        yield from _listed(skipped_files, urls) if text == STDIN else _found(text, skipped_files, urls)


def _listed(skipped_files: SkippedFiles, urls: UrlOptions | None) -> Iterator[Found | FoundUrl]:
    """Images of the list on stdin; an empty list or a closed stdin becomes an entry with an error."""
    lines = iter(()) if sys.stdin is None else _lines(sys.stdin)
    found = chain.from_iterable(_found(line, skipped_files, urls) for line in lines)
    message = "standard input is closed." if sys.stdin is None else "the list on standard input has no paths."
    return _require(found, Path(STDIN), message)


def _lines(stream: TextIO) -> Iterator[str]:
    """Lines that are not blank, or the entries between zero bytes, as ``find -print0`` writes them.

    Bytes that are not UTF-8 are kept, as in file names.
    """
    raw = getattr(stream, "buffer", None)
    if raw is not None and not hasattr(raw, "peek"):
        raw = io.BufferedReader(raw)
    start = b"" if raw is None else raw.peek()
    if raw is not None and start.count(b"\0") > start.count(b"\n"):  # one zero byte: a damaged line
        yield from map(os.fsdecode, filter(None, _between_zeros(raw)))
        return
    for line in stream if raw is None else map(os.fsdecode, raw):
        if line.strip():
            yield line.rstrip("\r\n")


def _between_zeros(raw: io.BufferedReader) -> Iterator[bytes]:
    rest = b""
    while chunk := raw.read1(_CHUNK_BYTES):
        *whole, rest = (rest + chunk).split(b"\0")
        yield from whole
    yield rest


def _found(text: str, skipped_files: SkippedFiles, urls: UrlOptions | None) -> Iterator[Found | FoundUrl]:
    if is_url(text.lstrip()):
        return iter((FoundUrl(text.strip(), urls),))
    path = expand_home(text)
    if os.path.isdir(path):
        return _require(find_images(path, skipped_files), path, "it holds no images.")
    if glob.has_magic(text) and not os.path.lexists(path):
        return _require(
            find_matches(str(path), skipped_files), path, "the file does not exist, and the pattern matches no image."
        )
    return iter((Found(path),))


def _require(found: Iterator[Found | FoundUrl], path: Path, message: str) -> Iterator[Found | FoundUrl]:
    """The found images, or an entry with an error if there are none."""
    first = next(found, None)
    if first is None:
        return iter((Found(path, InputError(f"Cannot read '{name_from_path(path)}': {message}")),))
    return chain((first,), found)
