"""Computes shards: the images of consecutive shards go through one pipeline, so that it never runs empty between two."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from clipmlu.backends.provenance import provenance_of
from clipmlu.classify.classifier import ZeroShotClassifier
from clipmlu.embed.image_graph import ImageGraph, ImageTower
from clipmlu.embed.images import run_groups
from clipmlu.embed.items import ImageItem
from clipmlu.errors import BundleCorruptError, OutputError, SessionError
from clipmlu.jobs.definition import build_job_classifier
from clipmlu.jobs.folder import FolderMark, JobFolder, ShardRecord
from clipmlu.jobs.manifest import JobManifest
from clipmlu.jobs.opening import open_piece
from clipmlu.jobs.options import JobOptions
from clipmlu.jobs.pieces import Shard
from clipmlu.jobs.row_table import RowPart, RowTable
from clipmlu.jobs.shard_writer import ShardWriter
from clipmlu.jobs.work import MachineShare, Worker
from clipmlu.measure.speed.load import LoadMeter, PipelineLoad
from clipmlu.model import Model, load_for_images

_LOAD_EVERY_S = 0.5


class ShardResult(NamedTuple):
    """A finished shard, and what the worker's pipeline did since its last shard or call of ``on_load``."""

    record: ShardRecord
    load: PipelineLoad


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardWork:
    """Computes the shards of one job; see ``Work``.

    Attributes:
        bundle: directory of the bundle.
        folder: directory of the job.
        manifest: content of its ``job.json``.
        options: its options; the fields that decide results are those of the manifest.
        mark: ``mark`` of the directory of the job in the process that runs the job.
        on_load: called about twice a second with what the pipeline did; None for other processes, which cannot call it.
    """

    bundle: Path
    folder: Path
    manifest: JobManifest
    options: JobOptions
    mark: FolderMark | None
    on_load: Callable[[PipelineLoad], object] | None = None

    @contextlib.contextmanager
    def open(self, share: MachineShare) -> Iterator[Worker[Shard, ShardResult]]:
        """Load the bundle.

        Raises:
            BundleCorruptError: the bundle was replaced since the job began.
            SessionError: the software is of other versions.
            OutputError: this machine has another directory at the path.
            InputError: the job's classifier is damaged.
        """
        options, folder = self.options.on(share), JobFolder(self.folder)
        self._check_folder(folder)
        with (
            load_for_images(self.bundle, options, image_only=True) as model,
            ShardWriter(folder, self.manifest) as writer,
        ):
            self._check_software(model)
            classifier = self._classifier(model, folder)
            table = RowTable(self.manifest.schema, classifier)
            graph = ImageTower(model) if classifier is None else classifier.scorer
            yield lambda shards: self._run(graph, table, writer, shards, options.workers)

    def _check_folder(self, folder: JobFolder) -> None:
        """Check that the folder is that of the process that runs the job; else the shards would be written elsewhere."""
        found = folder.mark()
        if found != self.mark:
            raise OutputError(
                f"Machine '{socket.gethostname()}' finds {'no' if found is None else 'another'} job in '{self.folder}'. All "
                "machines must have the folder of the job at the same path, on a shared file system."
            )

    def _check_software(self, model: Model) -> None:
        """Check that the bundle and the software of this machine are those of the job."""
        here, job = provenance_of(model.bundle, ()), self.manifest.provenance
        if here.bundle_digest != job.bundle_digest:
            raise BundleCorruptError(f"Bundle '{self.bundle}' is not the bundle of the job: it was replaced.")
        for name, version in job.tool_versions.items():
            if here.tool_versions.get(name) != version:
                raise SessionError(
                    f"The worker has {name} {here.tool_versions.get(name)}; the job was begun with {version}. Install that."
                )

    def _classifier(self, model: Model, folder: JobFolder) -> ZeroShotClassifier | None:
        schema, settings = self.manifest.schema, self.manifest.settings
        if schema.class_names is None or settings.templates is None:
            return None
        if self.manifest.classifier_sha256 is None:
            return build_job_classifier(model, settings, schema)
        folder.check_classifier(self.manifest)
        return model.load_classifier(folder.classifier_path)

    def _run(
        self,
        graph: ImageGraph,
        table: RowTable,
        writer: ShardWriter,
        shards: Iterable[Shard],
        workers: int | None,
    ) -> Generator[ShardResult, None, None]:
        size = self.manifest.settings.batch_size
        cut: deque[tuple[Shard, int]] = deque()  # shards whose images were all taken, and the number of their batches

        def groups() -> Iterator[list[ImageItem]]:
            for shard in shards:
                items, count = open_piece(shard.piece, self.manifest.settings.urls), 0
                while group := list(islice(items, size)):
                    count += 1
                    yield group
                cut.append((shard, count))

        finished: list[RowPart] = []
        meter = LoadMeter(graph.encoder, workers)
        running = run_groups(graph, groups(), batch_size=size, workers=workers, clock=meter.clock)
        with contextlib.closing(running) as batches:
            for batch in batches:
                finished.append(table.part(batch))
                meter.count(len(batch.items))
                if self.on_load is not None and meter.seconds > _LOAD_EVERY_S:
                    self.on_load(meter.take())
                while cut and len(finished) >= cut[0][1]:
                    shard, count = cut.popleft()
                    mine, finished = finished[:count], finished[count:]
                    yield ShardResult(writer.write(shard, table.join(mine)), meter.take())
        for shard, _none in cut:  # without images
            yield ShardResult(writer.write(shard, table.join([])), meter.take())
