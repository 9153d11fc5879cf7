"""The folder of a job.

``job.json``: options and digests; written first. ``inputs.jsonl``: one piece per line. ``shards/``: the files of the finished shards.
``classifier.clf``: class embeddings of a job that classifies. ``records/``: one record for each finished shard, written after its files; a shard is done when its record is there.
``errors.jsonl``: the images that could not be read, made from the records.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from clipmlu.bundle.manifest import FileRecord
from clipmlu.data.finding import JOB_FILE, RECORDS_FOLDER, SHARDS_FOLDER
from clipmlu.errors import BundleExistsError, InputError, reason_of
from clipmlu.file_names import name_from_path
from clipmlu.files.folder_lock import lock_folder
from clipmlu.files.publish import StagedFiles, output_errors, remove_empty
from clipmlu.files.read import read_json
from clipmlu.files.workspace import is_workspace_name, sweep
from clipmlu.jobs.manifest import JobManifest
from clipmlu.jobs.pieces import Shard, decode_piece, shard_name
from clipmlu.specs import NaturalInt, Spec

INPUTS_FILE, ERRORS_FILE, CLASSIFIER_FILE = "inputs.jsonl", "errors.jsonl", "classifier.clf"
_REPLACE = "Replace the job with --overwrite."
_WRITTEN_AGAIN = "The command of the job writes it again."
_OWN_FILE = re.compile(r"part-\d{8}\.\w+")


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
        job: digest of the key of its job; None in records of earlier versions.
    """

    number: NaturalInt
    piece_digest: str
    files: dict[str, FileRecord]
    rows: NaturalInt
    errors: tuple[ImageError, ...]
    job: str | None = None


class ErrorLine(Spec, frozen=True, kw_only=True):
    """One line of ``errors.jsonl``.

    Attributes:
        id: name of the image.
        reason: why it could not be read.
        shard: name of its shard.
    """

    id: str
    reason: str
    shard: str


class FolderMark(NamedTuple):
    """What tells the folder of a job from another one.

    Attributes:
        digest: SHA-256 of ``job.json`` in hex.
        mtime_ns: when that was written, in nanoseconds.
    """

    digest: str
    mtime_ns: int


class JobFolder:
    """Reads and writes the folder of a job."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.inputs_path = path / INPUTS_FILE
        self.errors_path = path / ERRORS_FILE
        self.classifier_path = path / CLASSIFIER_FILE
        self.shards_path = path / SHARDS_FOLDER
        self.records_path = path / RECORDS_FOLDER

    def lock(self, on_note: Callable[[str], object]) -> contextlib.AbstractContextManager[None]:
        """Return a context in which no other process runs this job; waits for one that does, with a note."""

        def note() -> None:
            on_note(f"waiting for another process that works on the job in {self.name}")

        return lock_folder(self.path, note)

    def check_output(self) -> None:
        """Check that the path is free or holds a job, after completing what a killed process left.

        Raises:
            BundleExistsError: it holds something else.
            OutputError: it cannot be accessed.
        """
        sweep(self.path)
        with output_errors(self.path):
            if not os.path.lexists(self.path) or self._is_job():
                return
            if self.path.is_dir() and all(is_workspace_name(each.name) for each in self.path.iterdir()):
                return  # another process may just list its input
        raise BundleExistsError(
            f"Output '{self.path}' exists and is not a job; it is not changed. Choose another path."
        )

    def _is_job(self) -> bool:
        """Return whether the folder holds a job, even a damaged one: other programs have files called ``job.json``, too."""
        if not (self.path / JOB_FILE).is_file():
            return False
        try:
            return self.inputs_path.is_file() or self.read_manifest() is not None
        except InputError:
            return False

    def mark(self) -> FolderMark | None:
        """Return what tells this job from one at the same path on another machine; None if there is no job."""
        path = self.path / JOB_FILE
        try:
            return FolderMark(hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        except OSError:
            return None

    def read_manifest(self) -> JobManifest | None:
        """Return the content of ``job.json``, or None if there is none.

        Raises:
            InputError: it is damaged.
        """
        try:
            return read_json(self.path / JOB_FILE, JobManifest)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise InputError(f"Cannot read '{self.path / JOB_FILE}': {reason_of(error)}. {_REPLACE}") from error

    def has_inputs(self, manifest: JobManifest) -> bool:
        """Return whether ``inputs.jsonl`` is there and unchanged."""
        try:
            return _digest_of(self.inputs_path) == manifest.inputs.digest
        except OSError:
            return False

    def has_classifier(self, manifest: JobManifest) -> bool:
        """Return whether the classifier is there and unchanged, or the job has none."""
        try:
            return manifest.classifier_sha256 in (None, _digest_of(self.classifier_path))
        except OSError:
            return manifest.classifier_sha256 is None

    def check_classifier(self, manifest: JobManifest) -> None:
        """Check that the classifier is that of the job.

        Raises:
            InputError: it is missing or was changed.
        """
        try:
            digest = _digest_of(self.classifier_path)
        except OSError as error:
            raise InputError(f"Cannot read '{self.classifier_path}': {reason_of(error)}. {_WRITTEN_AGAIN}") from error
        if digest != manifest.classifier_sha256:
            raise InputError(f"'{self.classifier_path}' was changed since the job began. {_WRITTEN_AGAIN}")

    def stage(self, *, classifier: bool) -> StagedFiles:
        """Return the files of a new job before they are published: the input, the classifier if it has one, and ``job.json``."""
        middle = [self.classifier_path] if classifier else []
        return StagedFiles([self.inputs_path, *middle, self.path / JOB_FILE], overwrite=True)

    def clear(self) -> None:
        """Remove all results; other files stay.

        Raises:
            OutputError: a file cannot be removed.
        """
        with output_errors(self.path):
            for folder in (self.records_path, self.shards_path):  # records first: a shard without one is not done
                sweep(folder)
                with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
                    for entry in entries:
                        if _OWN_FILE.fullmatch(entry.name):
                            os.unlink(entry.path)
            for path in (self.errors_path, self.classifier_path):
                path.unlink(missing_ok=True)
            remove_empty((self.records_path, self.shards_path))

    def read_record(self, number: int, manifest: JobManifest) -> ShardRecord | None:
        """Return the record of a shard; None if it is not done or of another shard or job, or its files are missing or of another size."""
        try:
            record = read_json(self.record_path(number), ShardRecord)
            sizes = {name: os.stat(self.shards_path / name).st_size for name in record.files}
        except (OSError, msgspec.DecodeError):
            return None
        mine = record.number == number and record.job in (None, manifest.digest)
        whole = mine and all(sizes[name] == file.size for name, file in record.files.items())
        return record if whole else None

    def records(self, manifest: JobManifest) -> Iterator[ShardRecord]:
        """Yield the records of the finished shards, in order."""
        numbers = range(manifest.shards)
        return (record for number in numbers if (record := self.read_record(number, manifest)) is not None)

    def shards(self) -> Iterator[Shard]:
        """Yield all shards, in order, from ``inputs.jsonl``."""
        with self.inputs_path.open("rb") as stream:
            for number, line in enumerate(stream):
                yield Shard(number, decode_piece(line))

    def write_errors(self, manifest: JobManifest) -> None:
        """Write ``errors.jsonl`` from the records; without errors there is no such file.

        Raises:
            OutputError: it cannot be written.
        """
        target = self.errors_path
        with StagedFiles([target], overwrite=True) as staged, output_errors(target):
            count = 0
            with staged.paths[0].open("wb") as stream:
                for record in self.records(manifest):
                    for each in record.errors:
                        line = ErrorLine(id=each.id, reason=each.reason, shard=shard_name(record.number))
                        stream.write(msgspec.json.encode(line) + b"\n")
                        count += 1
            if count:
                staged.publish()
            else:
                target.unlink(missing_ok=True)

    def owns(self, path: Path) -> bool:
        """Return whether a path is that of one of the job's files, or lies in one of the folders that hold nothing else."""
        place = path.parent.resolve() / path.name
        folders = [folder.resolve() for folder in (self.shards_path, self.records_path)]
        files = (self.path / JOB_FILE, self.inputs_path, self.errors_path, self.classifier_path)
        return any(map(place.is_relative_to, folders)) or place in [each.parent.resolve() / each.name for each in files]

    def record_path(self, number: int) -> Path:
        """Return the path of a shard's record."""
        return self.records_path / f"{shard_name(number)}.json"

    @property
    def name(self) -> str:
        """The path as text."""
        return name_from_path(self.path)


def _digest_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
