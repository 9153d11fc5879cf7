"""Inputs as users give them: files, folders, glob patterns, URLs, or a list on stdin."""

from __future__ import annotations

import codecs
import dataclasses
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
from clipmlu.errors import InputError, reason_of
from clipmlu.file_names import expand_home, name_from_path

STDIN = "-"
_CHUNK_BYTES = 1 << 16
_WIDE_BYTES = 8  # of a list are looked at: no list has four entries of one letter at its beginning


def find_inputs(
    inputs: Iterable[str],
    skipped_files: SkippedFiles,
    urls: UrlOptions | None = None,
    *,
    containers: bool = False,
    files_from: str | os.PathLike[str] | None = None,
) -> Iterator[Found | FoundUrl]:
    """Yield the image files of all inputs, lazily; folders in sorted order.

    An input that is wrong, such as a missing path or an empty folder, becomes an entry that fails when it is read. It
    is then reported like an unreadable image, and the other inputs are processed.

    Args:
        inputs: inputs as given by the user; ``-`` is a list on standard input.
        skipped_files: counts files in folders that are not images.
        urls: limits for fetching URLs; None if that is not allowed.
        containers: also yield the files in folders that hold many images; see ``find_images``.
        files_from: a file that lists more inputs, one per line or separated by zero bytes; ``-`` is standard input.
    """
    finder = _Finder(skipped_files, urls, containers)
    for text in inputs:
        yield from finder.listed(STDIN) if text == STDIN else finder.found(text)
    if files_from is not None:
        yield from finder.listed(os.fspath(files_from))


@dataclasses.dataclass(frozen=True)
class _Finder:
    """Finds the images of an input; the attributes are those of ``find_inputs``."""

    skipped_files: SkippedFiles
    urls: UrlOptions | None
    containers: bool

    def found(self, text: str) -> Iterator[Found | FoundUrl]:
        """Yield the images of one input."""
        if not text:  # such as of a variable that is not set; as a path it would be the current folder
            return iter((Found(Path(text), InputError("Cannot read '': the input is an empty text.")),))
        if is_url(text.lstrip()):
            return iter((FoundUrl(text.strip(), self.urls),))
        path = expand_home(text)
        if os.path.isdir(path):
            images = find_images(path, self.skipped_files, containers=self.containers)
            return _require(images, path, "it holds no images.")
        if glob.has_magic(text) and not os.path.lexists(path):
            matches = find_matches(str(path), self.skipped_files, containers=self.containers)
            return _require(matches, path, "the file does not exist, and the pattern matches no image.")
        return iter((Found(path),))

    def listed(self, place: str) -> Iterator[Found | FoundUrl]:
        """Yield the images of a list; one that is empty, closed or cannot be read becomes an entry with an error.

        Args:
            place: path of the list, or ``-`` for standard input.
        """
        if place == STDIN:
            message = "standard input is closed." if sys.stdin is None else "the list on standard input has no paths."
            yield from self._on_list(sys.stdin, place, message)
            return
        try:
            stream = expand_home(place).open(encoding="utf-8", errors="surrogateescape")
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            yield from _require(iter(()), Path(place), f"{reason_of(error)}. Expected a list of paths.")
            return
        with stream:
            yield from self._on_list(stream, place, "the list has no paths.")

    def _on_list(self, stream: TextIO | None, place: str, message: str) -> Iterator[Found | FoundUrl]:
        try:
            lines = iter(()) if stream is None else _lines(_as_bytes(stream))
        except InputError as error:
            return iter((Found(Path(place), InputError(f"Cannot read '{name_from_path(place)}': {error}")),))
        return _require(chain.from_iterable(map(self.found, lines)), Path(place), message)


def _as_bytes(stream: TextIO) -> io.BufferedReader | TextIO:
    """Return a stream's bytes, which can be looked at ahead; or the stream if it has none."""
    raw = getattr(stream, "buffer", None)
    if raw is None:
        return stream
    return raw if hasattr(raw, "peek") else io.BufferedReader(raw)


def _lines(stream: io.BufferedReader | TextIO) -> Iterator[str]:
    """Return the lines that are not blank, or the entries between zero bytes, as ``find -print0`` writes them.

    Bytes that are not UTF-8 are kept, as in file names.

    Raises:
        InputError: the list is in UTF-16 or UTF-32, whose zero bytes would cut it into single letters, ``/`` among them.
    """
    if not isinstance(stream, io.BufferedReader):
        return _full_lines(stream)
    start = stream.peek()
    if _is_wide(start[:_WIDE_BYTES]):
        raise InputError(
            "it is in UTF-16 or UTF-32. Expected UTF-8, or entries between zero bytes as 'find -print0' writes them."
        )
    if start.startswith(codecs.BOM_UTF8):  # as programs on Windows write it
        stream.read(len(codecs.BOM_UTF8))
    if start.count(b"\0") > start.count(b"\n"):  # one zero byte: a damaged line
        return map(os.fsdecode, filter(None, _between_zeros(stream)))
    return _full_lines(map(os.fsdecode, stream))


def _is_wide(start: bytes) -> bool:
    """Return whether a text begins in UTF-16 or UTF-32: with a mark, or with zero bytes at every second place."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        return True
    halves = (start[::2], start[1::2])
    return len(start) == _WIDE_BYTES and any(not any(half) for half in halves)


def _full_lines(lines: Iterable[str]) -> Iterator[str]:
    return (line.rstrip("\r\n") for line in lines if line.strip())


def _between_zeros(raw: io.BufferedReader) -> Iterator[bytes]:
    rest = b""
    while chunk := raw.read1(_CHUNK_BYTES):
        *whole, rest = (rest + chunk).split(b"\0")
        yield from whole
    yield rest


def _require(found: Iterator[Found | FoundUrl], path: Path, message: str) -> Iterator[Found | FoundUrl]:
    """The found images, or an entry with an error if there are none."""
    first = next(found, None)
    if first is None:
        return iter((Found(path, InputError(f"Cannot read '{name_from_path(path)}': {message}")),))
    return chain((first,), found)
