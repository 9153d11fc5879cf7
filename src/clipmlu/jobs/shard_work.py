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
from clipmlu.jobs.folder import JobFolder, JobManifest, ShardRecord
from clipmlu.jobs.inputs import open_piece
from clipmlu.jobs.pieces import Shard
from clipmlu.jobs.rows import ShardRows
from clipmlu.jobs.work import MachineShare, Worker
from clipmlu.model import Model, load


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardWork:
    """Computes the shards of one job; see ``Work``.

    Attributes:
        bundle: directory of the bundle.
        folder: directory of the job.
        manifest: content of its ``job.json``.
        batch_size: images per batch; None for the bundle's own.
    """

    bundle: Path
    folder: Path
    manifest: JobManifest
    batch_size: int | None = None

    @contextlib.contextmanager
    def open(self, share: MachineShare) -> Iterator[Worker[Shard, ShardRecord]]:
        """Load the bundle."""
        with load(
            self.bundle, image_only=True, busy_wait=False, threads=share.cpus or 0, devices=share.devices
        ) as model:
            yield lambda shards: self._run(model, shards, share.cpus)

    def _run(self, model: Model, shards: Iterable[Shard], workers: int | None) -> Generator[ShardRecord, None, None]:
        size = model.check_batch_size(self.batch_size)
        started: deque[tuple[Shard, int]] = deque()  # shards with batches under way: number of batches of each
        folder = JobFolder(self.folder)

        def groups() -> Iterator[list[ImageItem]]:
            for shard in shards:
                items, count = open_piece(shard.piece), 0
                while group := list(islice(items, size)):
                    count += 1
                    yield group
                started.append((shard, count))

        collected: list[RowBatch] = []
        with contextlib.closing(run_groups(ImageTower(model), groups(), batch_size=size, workers=workers)) as batches:
            for batch in batches:
                collected.append(batch)
                while started and len(collected) >= started[0][1]:
                    shard, count = started.popleft()
                    mine, collected = collected[:count], collected[count:]
                    yield folder.write_shard(shard, _rows(mine, model.embedding_dim), self.manifest)


def _rows(batches: list[RowBatch], width: int) -> ShardRows:
    items = [item for batch in batches for item in batch.items]
    errors = [
        str(error) if (error := batch.errors.get(place)) else None
        for batch in batches
        for place in range(len(batch.items))
    ]
    embeddings = np.full((len(items), width), np.nan, np.float32)
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
