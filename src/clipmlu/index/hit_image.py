"""The image of a hit in an archive or a table, found as its job read it."""

from __future__ import annotations

import functools
from array import array
from pathlib import Path

import msgspec

from clipmlu.data.containers.named import Container, find_by_name
from clipmlu.data.images import ImageSource
from clipmlu.errors import InputError
from clipmlu.files.read import open_regular
from clipmlu.jobs.folder import INPUTS_FILE
from clipmlu.jobs.pieces import RowsPiece, TarPiece, decode_piece, shard_name


def find_image(name: str, path: str, job: Path, shard: str) -> ImageSource:
    """Return the image of a hit.

    The list of inputs of its job says which column of a table was read, and how large a table or an archive was. Without the list the
    column is chosen as by a job without options.

    Args:
        name: id of the hit.
        path: absolute path of the image as a name.
        job: folder of its job; there may be none.
        shard: name of its shard.

    Raises:
        InputError: there is no such image, or its archive or table was replaced.
        MissingDependencyError: it lies in a table, and pyarrow is not installed.
    """
    piece = _piece(job / INPUTS_FILE, shard)
    if isinstance(piece, RowsPiece):
        if piece.id_column is not None:
            raise InputError(f"Image '{name}' lies in a table whose rows have ids, '{piece.name}'; it is not searched.")
        if name.startswith(f"{piece.name}#"):
            return find_by_name(path, Container(size=piece.file.size, image_column=piece.image_column))
    if isinstance(piece, TarPiece) and name.startswith(f"{piece.name}::"):
        return find_by_name(path, Container(size=piece.file.size))
    return find_by_name(path)


def _piece(inputs: Path, shard: str) -> object:
    """Return the piece of a shard; None if the list of inputs is gone or another."""
    try:
        facts = inputs.stat()
        starts = _line_starts(inputs, facts.st_size, facts.st_mtime_ns)
        number = int(shard.rpartition("-")[2])
        if shard != shard_name(number) or number >= len(starts):
            return None
        with open_regular(inputs) as stream:
            stream.seek(starts[number])
            return decode_piece(stream.readline())
    except (OSError, ValueError, msgspec.DecodeError):
        return None


@functools.lru_cache(maxsize=8)
def _line_starts(path: Path, _size: int, _mtime_ns: int) -> array[int]:
    """Return where each line of a file begins, which has several GB for millions of images."""
    starts, at = array("Q"), 0
    with open_regular(path) as stream:
        for line in stream:
            starts.append(at)
            at += len(line)
    return starts
