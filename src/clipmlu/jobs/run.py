"""Running a job: list the input, skip what is done, compute the rest, write the list of errors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from clipmlu.backends.provenance import provenance_of
from clipmlu.bundle.directory import open_compiled
from clipmlu.data.finding import Found
from clipmlu.files.folder_lock import lock_folder
from clipmlu.jobs.engines.dispatch import run_tasks
from clipmlu.jobs.engines.options import THIS_PROCESS, EngineOptions
from clipmlu.jobs.folder import JobFolder, JobManifest, ShardRecord, encode_pieces
from clipmlu.jobs.inputs import cut_files
from clipmlu.jobs.rows import RowSchema
from clipmlu.jobs.shard_work import ShardWork
from clipmlu.keys import make_key


def run_embed_job(
    bundle_path: Path,
    folder: Path,
    found: Iterator[Found],
    *,
    shard_size: int,
    engine: EngineOptions = THIS_PROCESS,
    on_shard: Callable[[ShardRecord], None] = lambda _record: None,
) -> None:
    """Embed images into the shards of a job; shards that are done already are not computed again."""
    job = JobFolder(folder)
    bundle = open_compiled(bundle_path)
    inputs = list(encode_pieces(cut_files(found, shard_size)))
    schema = RowSchema(embedding_dim=bundle.manifest.embedding_dim)
    manifest = JobManifest(
        key=make_key(bundle=bundle.digest, inputs=hashlib.sha256(b"".join(inputs)).hexdigest(), schema=schema),
        schema=schema,
        shard_format="npy",
        shards=len(inputs),
        provenance=provenance_of(bundle, ()),
    )
    with lock_folder(folder, lambda: None):
        stored = job.read_manifest()
        if stored is None:
            job.create(manifest, b"".join(inputs))
        else:
            job.check_same(stored, manifest)
        waiting = (shard for shard in job.shards() if job.read_record(shard.number) is None)
        work = ShardWork(bundle=bundle_path, folder=folder, manifest=manifest)
        for record in run_tasks(work, waiting, engine, describe=lambda shard: shard.name):
            on_shard(record)
