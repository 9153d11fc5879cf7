"""The state of a job: what is done, what is missing and what is damaged, as far as names and sizes of files show it."""

from __future__ import annotations

import os

from clipmlu.backends.provenance import Provenance
from clipmlu.data.finding import JOB_FILE
from clipmlu.display import Displayed
from clipmlu.errors import InputError, reason_of
from clipmlu.files.folder_lock import is_locked
from clipmlu.jobs.folder import JobFolder
from clipmlu.jobs.formats import FormatName
from clipmlu.jobs.manifest import JobManifest
from clipmlu.jobs.pieces import shard_name
from clipmlu.jobs.rows import EmbeddingDtype
from clipmlu.specs import NaturalInt, PositiveInt, Spec


class JobState(Displayed, Spec, frozen=True, kw_only=True):
    """The state of a job, which may be running.

    Attributes:
        path: its folder.
        kind: what it computes.
        provenance: the bundle and the software that compute it.
        shard_format: format of the shard files.
        embedding_dim: elements of an embedding; None if it stores none.
        embedding_dtype: dtype of the stored embeddings.
        classes: number of classes; None if it does not classify.
        top_k: stored classes per image; None if it does not classify.
        shards: number of shards.
        finished_shards: those that are done.
        images: number of images; None if it is not known before they are read.
        finished_images: images of the finished shards.
        errors: those of the finished images that could not be read.
        damaged_shards: names of shards that were done, but whose record is damaged or of another job, or whose files are
            missing or of another size; the job's command computes them again.
        size_bytes: size of the finished shards' files.
        running: whether a process on this machine works on the job; None if the system cannot tell.
    """

    path: str
    kind: str
    provenance: Provenance
    shard_format: FormatName
    embedding_dim: PositiveInt | None
    embedding_dtype: EmbeddingDtype
    classes: NaturalInt | None
    top_k: PositiveInt | None
    shards: NaturalInt
    finished_shards: NaturalInt
    images: NaturalInt | None
    finished_images: NaturalInt
    errors: NaturalInt
    damaged_shards: tuple[str, ...]
    size_bytes: NaturalInt
    running: bool | None

    @property
    def finished(self) -> bool:
        """Whether all shards are done."""
        return self.finished_shards == self.shards


def require_manifest(folder: JobFolder) -> JobManifest:
    """Return the manifest of a job.

    Raises:
        InputError: the folder holds no job, or it is damaged.
    """
    manifest = folder.read_manifest()
    if manifest is not None:
        return manifest
    if not folder.path.is_dir():
        raise InputError(f"'{folder.name}' is not a job: there is no such folder.")
    listing = " A process works there: if it lists the input of a job, ask again later." if _runs(folder) else ""
    raise InputError(f"'{folder.name}' is not a job: it holds no {JOB_FILE}.{listing}")


def read_state(folder: JobFolder, manifest: JobManifest) -> JobState:
    """Return the state of a job; nothing is changed.

    Raises:
        InputError: the folder cannot be read.
    """
    shards = images = errors = size = 0
    damaged: list[str] = []
    for number in range(manifest.shards):
        record = folder.read_record(number, manifest)
        if record is None:
            if os.path.lexists(folder.record_path(number)):
                damaged.append(shard_name(number))
            continue
        shards += 1
        images += record.rows
        errors += len(record.errors)
        size += sum(file.size for file in record.files.values())
    schema = manifest.schema
    return JobState(
        path=folder.name,
        kind=manifest.settings.kind,
        provenance=manifest.provenance,
        shard_format=manifest.shard_format,
        embedding_dim=schema.embedding_dim,
        embedding_dtype=schema.embedding_dtype,
        classes=None if schema.class_names is None else len(manifest.settings.class_names(schema)),
        top_k=schema.top_k,
        shards=manifest.shards,
        finished_shards=shards,
        images=manifest.inputs.images,
        finished_images=images,
        errors=errors,
        damaged_shards=tuple(damaged),
        size_bytes=size,
        running=_runs(folder),
    )


def _runs(folder: JobFolder) -> bool | None:
    try:
        return is_locked(folder.path)
    except OSError as error:
        raise InputError(f"Cannot read '{folder.name}': {reason_of(error)}.") from error
