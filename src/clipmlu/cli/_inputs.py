"""Which images a user means: files, folders, glob patterns, or a list on stdin."""

from __future__ import annotations

import glob
import io
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TextIO

from clipmlu.data.finding import Found, LeftOut, find_images, find_matches
from clipmlu.embed.items import ImageItem
from clipmlu.errors import InputError
from clipmlu.file_names import expand_home, name_from_path

STDIN = "-"
_CHUNK_BYTES = 1 << 16


def image_items(inputs: Iterable[str], left_out: LeftOut) -> Iterator[ImageItem]:
    """Items for all inputs, lazily, folders in sorted order.

    Whatever is wrong with an input, such as a path that does not exist or an empty folder, becomes an item that fails when it
    is loaded, so that it is reported like any image that cannot be read, and the others go on.

    Args:
        inputs: what the user gave.
        left_out: counts what is in folders and is no image.
    """
    for text in inputs:
        for found in _listed(left_out) if text == STDIN else _found(text, left_out):
            yield ImageItem(found.name, found.source)


def _listed(left_out: LeftOut) -> Iterator[Found]:
    """What the list on stdin names; a list without a path, or a stdin that is closed, is an entry that says so."""
    lines = iter(()) if sys.stdin is None else _lines(sys.stdin)
    found = chain.from_iterable(_found(line, left_out) for line in lines)
    message = "standard input is closed." if sys.stdin is None else "the list on standard input names no path."
    return _require(found, Path(STDIN), message)


def _lines(stream: TextIO) -> Iterator[str]:
    """Lines that are not blank, or what stands between zero bytes, as ``find -print0`` writes it.

    Bytes that are no UTF-8 stay in them, as in the names of files.
    """
    raw = getattr(stream, "buffer", None)
    if raw is not None and not hasattr(raw, "peek"):
        raw = io.BufferedReader(raw)
    start = b"" if raw is None else raw.peek()
    if raw is not None and start.count(b"\0") > start.count(b"\n"):  # one in a list of lines is a damaged line
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


def _found(text: str, left_out: LeftOut) -> Iterator[Found]:
    path = expand_home(text)
    if os.path.isdir(path):
        return _require(find_images(path, left_out), path, "it holds no images.")
    if glob.has_magic(text) and not os.path.lexists(path):
        return _require(
            find_matches(str(path), left_out), path, "there is no such file, and as a pattern it matches no image."
        )
    return iter((Found(path),))


def _require(found: Iterator[Found], path: Path, message: str) -> Iterator[Found]:
    """What was found, or an entry that says that nothing was."""
    first = next(found, None)
    if first is None:
        return iter((Found(path, InputError(f"Cannot read '{name_from_path(path)}': {message}")),))
    return chain((first,), found)
