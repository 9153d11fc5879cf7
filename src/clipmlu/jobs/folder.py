"""The folder of a job.

``job.json``: options and digests; written first. ``inputs.jsonl``: one piece per line. ``shards/``: the files of the finished shards.
``records/``: one record for each finished shard, written after its files; a shard is done when its record is there.
``errors.jsonl``: the images that could not be read, made from the records.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from clipmlu.backends.provenance import Provenance
from clipmlu.errors import BundleExistsError, InputError, OptionError, reason_of
from clipmlu.files.publish import StagedFiles, encode_json, output_errors, write_file
from clipmlu.files.read import decode_json, read_json
from clipmlu.jobs.formats import FORMATS, FormatName
from clipmlu.jobs.pieces import Piece, Shard, shard_name
from clipmlu.jobs.rows import RowSchema, ShardRows
from clipmlu.specs import NaturalInt, Spec

JOB_FILE, INPUTS_FILE, ERRORS_FILE = "job.json", "inputs.jsonl", "errors.jsonl"


class JobManifest(Spec, frozen=True, kw_only=True):
    """Content of ``job.json``.

    Attributes:
        key: digest of everything that decides the results, by name; a job resumes only with an equal key.
        schema: columns of the rows.
        shard_format: format of the shard files.
        shards: number of shards.
        provenance: bundle and software that compute the results.
    """

    key: dict[str, str]
    schema: RowSchema
    shard_format: FormatName
    shards: NaturalInt
    provenance: Provenance


class FileDigest(Spec, frozen=True, kw_only=True):
    """Size in bytes and SHA-256 in hex of a file."""

    size: NaturalInt
    sha256: str


class ImageError(Spec, frozen=True, kw_only=True):
    """An image that could not be read, and why."""

    id: str
    reason: str


class ShardRecord(Spec, frozen=True, kw_only=True):
    """A finished shard.

    Attributes:
        number: position of the shard.
        piece_digest: digest of its piece.
        files: its files, by name.
        rows: number of rows.
        errors: the images among them that could not be read.
    """

    number: NaturalInt
    piece_digest: str
    files: dict[str, FileDigest]
    rows: NaturalInt
    errors: tuple[ImageError, ...]


class JobFolder:
    """Reads and writes the folder of a job."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shards_path = path / "shards"
        self.records_path = path / "records"

    def read_manifest(self) -> JobManifest | None:
        """Return the content of ``job.json``, or None if there is none.

        Raises:
            InputError: it is damaged.
        """
        try:
            return read_json(self.path / JOB_FILE, JobManifest)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise InputError(f"Cannot read '{self.path / JOB_FILE}': {reason_of(error)}.") from error

    def create(self, manifest: JobManifest, inputs: bytes) -> None:
        """Write the files of a new job, the manifest last."""
        if self.path.exists() and any(self.path.iterdir()):
            raise BundleExistsError(
                f"Output '{self.path}' exists and is not a job; it is not changed. Choose another path."
            )
        write_file(self.path / INPUTS_FILE, inputs, overwrite=True)
        write_file(self.path / JOB_FILE, encode_json(manifest), overwrite=False)

    def check_same(self, manifest: JobManifest, other: JobManifest) -> None:
        """Raise ``OptionError`` that names the parts of the key that differ."""
        differing = [part for part in {**manifest.key, **other.key} if manifest.key.get(part) != other.key.get(part)]
        if differing:
            names = ", ".join(part.replace("_", " ") for part in differing)
            raise OptionError(f"job '{self.path}' was begun with other {names}; give the same, or another output")

    def write_shard(self, shard: Shard, rows: ShardRows, manifest: JobManifest) -> ShardRecord:
        """Write the files of a shard and then its record; both replace those of an unfinished attempt."""
        shard_format = FORMATS[manifest.shard_format]
        targets = [self.shards_path / f"{shard.name}{suffix}" for suffix in shard_format.suffixes]
        with StagedFiles(targets, overwrite=True) as staged:
            with output_errors(targets[0]):
                with shard_format.open(manifest.schema, manifest.provenance, staged.paths) as append:
                    append(rows)
                digests = {target.name: _digest(path) for target, path in zip(targets, staged.paths, strict=True)}
            staged.publish()
        errors = [
            ImageError(id=name, reason=error)
            for name, error in zip(rows.ids, rows.errors, strict=True)
            if error is not None
        ]
        record = ShardRecord(
            number=shard.number, piece_digest=shard.digest, files=digests, rows=len(rows.ids), errors=tuple(errors)
        )
        write_file(self._record_path(shard.number), encode_json(record), overwrite=True)
        return record

    def read_record(self, number: int) -> ShardRecord | None:
        """Return the record of a shard; None if it is not done, or its files are missing or of another size."""
        try:
            record = read_json(self._record_path(number), ShardRecord)
            sizes = {name: os.stat(self.shards_path / name).st_size for name in record.files}
        except (OSError, msgspec.DecodeError):
            return None
        return record if all(sizes[name] == file.size for name, file in record.files.items()) else None

    def shards(self) -> Iterator[Shard]:
        """Yield all shards, in order, from ``inputs.jsonl``."""
        with (self.path / INPUTS_FILE).open("rb") as stream:
            for number, line in enumerate(stream):
                yield Shard(number, decode_json(line, Piece))

    def _record_path(self, number: int) -> Path:
        return self.records_path / f"{shard_name(number)}.json"


def encode_pieces(pieces: Iterable[Piece]) -> Iterator[bytes]:
    """Yield one line for each piece."""
    for piece in pieces:
        yield msgspec.json.encode(piece) + b"\n"


def _digest(path: Path) -> FileDigest:
    with path.open("rb") as stream:
        return FileDigest(size=path.stat().st_size, sha256=hashlib.file_digest(stream, "sha256").hexdigest())
