"""Reading finished shards: compared with their digests, in order, one at a time in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from clipmlu.bundle.verify import file_record
from clipmlu.errors import InputError, reason_of
from clipmlu.jobs.folder import JobFolder, ShardRecord
from clipmlu.jobs.formats import FORMATS
from clipmlu.jobs.formats.checks import failed_rows
from clipmlu.jobs.manifest import JobManifest
from clipmlu.jobs.pieces import shard_name
from clipmlu.jobs.rows import ShardRows


class EmbeddingBlock(NamedTuple):
    """Embeddings of consecutive images of a job, without those that could not be read.

    Attributes:
        ids: names of the images.
        embeddings: float32 or float16, shape (N, D), unit L2 norm; may be a read-only memory map.
    """

    ids: list[str]
    embeddings: npt.NDArray[np.floating]


def check_digests(folder: JobFolder, manifest: JobManifest, record: ShardRecord) -> None:
    """Compare the files of a shard with the digests of its record.

    Raises:
        InputError: a file is missing or differs, or the record lists other files than those of the format.
    """
    paths = _paths(folder, manifest, record)
    if set(record.files) != {path.name for path in paths}:
        raise InputError(f"The record of '{shard_name(record.number)}' lists other files than those of its format.")
    for path in paths:
        expected = record.files[path.name]
        try:
            found = file_record(path)
        except OSError as error:
            raise InputError(f"Cannot read '{path}': {reason_of(error)}.") from error
        if found != expected:
            what = "size" if found.size != expected.size else "SHA-256"
            raise InputError(f"'{path}' was changed: its {what} is not the recorded one.")


def read_shard(folder: JobFolder, manifest: JobManifest, record: ShardRecord) -> ShardRows:
    """Return the rows of a finished shard.

    Raises:
        InputError: its files are damaged, or are not those of its record.
    """
    paths = _paths(folder, manifest, record)
    rows = FORMATS[manifest.shard_format].read(manifest.schema, paths)
    failed = [(image, error) for image, error in zip(rows.ids, rows.errors, strict=True) if error is not None]
    if len(rows.ids) != record.rows or failed != [(each.id, each.reason) for each in record.errors]:
        raise InputError(f"'{paths[0]}' has other rows than its record says.")
    return rows


def _paths(folder: JobFolder, manifest: JobManifest, record: ShardRecord) -> list[Path]:
    suffixes = FORMATS[manifest.shard_format].suffixes
    return [folder.shards_path / f"{shard_name(record.number)}{suffix}" for suffix in suffixes]


def read_shards(folder: JobFolder, manifest: JobManifest) -> Iterator[ShardRows]:
    """Yield the rows of the finished shards, in order, after comparing each with its digests.

    Raises:
        InputError: a shard is damaged.
    """
    for record in folder.records(manifest):
        try:
            check_digests(folder, manifest, record)
            rows = read_shard(folder, manifest, record)
        except InputError as error:
            remedy = f"Run 'clipmlu job {folder.name} --repair' and then the command of the job again."
            raise InputError(f"{error} {remedy}") from error
        yield rows


def without_failed(rows: ShardRows) -> EmbeddingBlock:
    """Return the embeddings of the images that could be read."""
    assert rows.embeddings is not None
    failed = failed_rows(rows.errors)
    if not failed.any():
        return EmbeddingBlock(rows.ids, rows.embeddings)
    ids = [name for name, absent in zip(rows.ids, failed, strict=True) if not absent]
    return EmbeddingBlock(ids, rows.embeddings[~failed])
