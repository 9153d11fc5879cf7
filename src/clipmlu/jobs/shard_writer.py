"""Writes the files of shards, each complete when it gets its name, and the record that says that a shard is done."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import TracebackType

from clipmlu.bundle.verify import file_record
from clipmlu.files.publish import encode_json, output_errors
from clipmlu.files.workspace import Workspace
from clipmlu.jobs.folder import ImageError, JobFolder, ShardRecord
from clipmlu.jobs.formats import FORMATS
from clipmlu.jobs.manifest import JobManifest
from clipmlu.jobs.pieces import Shard
from clipmlu.jobs.rows import ShardRows


class ShardWriter:
    """Writes the shards of a job; on exit it removes what is not complete.

    One temporary folder beside the results serves all shards: a folder with very many shards is then not searched for each.

    Args:
        folder: the job's folder.
        manifest: content of its ``job.json``.

    Raises:
        OutputError: the folder cannot be written.
    """

    def __init__(self, folder: JobFolder, manifest: JobManifest) -> None:
        self._folder = folder
        self._manifest = manifest
        self._format = FORMATS[manifest.shard_format]
        with output_errors(folder.path):
            folder.shards_path.mkdir(exist_ok=True)
            folder.records_path.mkdir(exist_ok=True)
            self._workspace = Workspace(folder.path)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._workspace.discard()

    def write(self, shard: Shard, rows: ShardRows) -> ShardRecord:
        """Write the files of a shard and then its record; all replace those of an earlier attempt.

        The earlier record goes first: if this process is killed between two steps, the shard is not done.

        Raises:
            OutputError: a file cannot be written.
        """
        targets = [self._folder.shards_path / f"{shard.name}{suffix}" for suffix in self._format.suffixes]
        paths = [self._workspace.new(number) for number in range(len(targets))]
        with output_errors(targets[0]):
            with self._format.open(self._manifest.schema, self._manifest.provenance, paths) as append:
                append(rows)
            digests = {target.name: file_record(path) for target, path in zip(targets, paths, strict=True)}
            self._folder.record_path(shard.number).unlink(missing_ok=True)
            for path, target in zip(paths, targets, strict=True):
                os.replace(path, target)
        record = ShardRecord(
            number=shard.number,
            piece_digest=shard.digest,
            files=digests,
            rows=len(rows.ids),
            errors=tuple(_errors(rows)),
            job=self._manifest.digest,
        )
        self._write_record(record)
        return record

    def _write_record(self, record: ShardRecord) -> None:
        target, path = self._folder.record_path(record.number), self._workspace.new()
        with output_errors(target):
            path.write_bytes(encode_json(record))
            os.replace(path, target)


def _errors(rows: ShardRows) -> Iterator[ImageError]:
    for name, reason in zip(rows.ids, rows.errors, strict=True):
        if reason is not None:
            yield ImageError(id=name, reason=reason)
