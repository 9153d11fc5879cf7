"""Computes shards: the images of consecutive shards go through one pipeline, so that it never runs empty between two."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from clipmlu.embed.image_graph import ImageTower
from clipmlu.embed.images import run_groups
from clipmlu.embed.items import ImageItem, RowBatch
from clipmlu.errors import BundleCorruptError
from clipmlu.jobs.folder import JobFolder, ShardRecord
from clipmlu.jobs.inputs import open_piece
from clipmlu.jobs.manifest import JobManifest
from clipmlu.jobs.options import JobOptions
from clipmlu.jobs.pieces import Shard
from clipmlu.jobs.rows import RowSchema, ShardRows
from clipmlu.jobs.shard_writer import ShardWriter
from clipmlu.jobs.work import MachineShare, Worker
from clipmlu.model import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardWork:
    """Computes the shards of one job; see ``Work``.

    Attributes:
        bundle: directory of the bundle.
        folder: directory of the job.
        manifest: content of its ``job.json``.
        options: its options; the fields that decide results are those of the manifest.
    """

    bundle: Path
    folder: Path
    manifest: JobManifest
    options: JobOptions

    @contextlib.contextmanager
    def open(self, share: MachineShare) -> Iterator[Worker[Shard, ShardRecord]]:
        """Load the bundle.

        Raises:
            BundleCorruptError: the bundle was replaced since the job began.
        """
        options = self.options.on(share)
        with options.load(self.bundle) as model, ShardWriter(JobFolder(self.folder), self.manifest) as writer:
            if model.bundle.digest != self.manifest.provenance.bundle_digest:
                raise BundleCorruptError(f"Bundle '{self.bundle}' is not the bundle of the job: it was replaced.")
            yield lambda shards: self._run(model, writer, shards, options.workers)

    def _run(
        self, model: Model, writer: ShardWriter, shards: Iterable[Shard], workers: int | None
    ) -> Generator[ShardRecord, None, None]:
        size = self.manifest.settings.batch_size
        cut: deque[tuple[Shard, int]] = deque()  # shards whose images were all taken, and the number of their batches

        def groups() -> Iterator[list[ImageItem]]:
            for shard in shards:
                items, count = open_piece(shard.piece, self.manifest.settings.urls), 0
                while group := list(islice(items, size)):
                    count += 1
                    yield group
                cut.append((shard, count))

        finished: list[RowBatch] = []
        running = run_groups(ImageTower(model), groups(), batch_size=size, workers=workers)
        with contextlib.closing(running) as batches:
            for batch in batches:
                finished.append(batch)
                while cut and len(finished) >= cut[0][1]:
                    shard, count = cut.popleft()
                    mine, finished = finished[:count], finished[count:]
                    yield writer.write(shard, _rows(mine, self.manifest.schema))


def _rows(batches: list[RowBatch], schema: RowSchema) -> ShardRows:
    items = [item for batch in batches for item in batch.items]
    errors = [
        str(error) if (error := batch.errors.get(place)) else None
        for batch in batches
        for place in range(len(batch.items))
    ]
    assert schema.embedding_dim is not None
    embeddings = np.full((len(items), schema.embedding_dim), np.nan, schema.embedding_dtype)
    embeddings[[error is None for error in errors]] = np.concatenate([batch.rows for batch in batches])
    return ShardRows(
        ids=[item.id for item in items],
        widths=[None] * len(items),
        heights=[None] * len(items),
        errors=errors,
        embeddings=embeddings,
        classes=None,
        scores=None,
    )
