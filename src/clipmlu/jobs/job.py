"""A job on disk, as people and other programs hold it; it may still be running."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from clipmlu.arguments import as_path
from clipmlu.data.class_names import distinct_names
from clipmlu.display import Displayed, Summary, as_plain
from clipmlu.errors import InputError, OptionError
from clipmlu.jobs.export import ExportReport, check_export, export_job
from clipmlu.jobs.folder import JobFolder
from clipmlu.jobs.manifest import JobManifest
from clipmlu.jobs.reading import EmbeddingBlock, read_shards, without_failed
from clipmlu.jobs.rows import ShardRows
from clipmlu.jobs.state import JobState, read_state, require_manifest
from clipmlu.jobs.verify import JobCheck, forget_damaged, verify_job

_log = logging.getLogger(__name__)


def open_job(path: str | os.PathLike[str]) -> Job:
    """Open the folder of a job, which may still be running.

    Args:
        path: the folder.

    Raises:
        InputError: there is no job, or its ``job.json`` is damaged.
    """
    return Job(as_path(path, "the job"))


class Job(Displayed):
    """The folder of a job; see ``open_job``.

    Attributes:
        path: the folder.
        manifest: content of its ``job.json``: options, columns, input and provenance.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = JobFolder(path)
        self.manifest: JobManifest = require_manifest(self._folder)

    def summary(self) -> Summary:
        """Return the facts that people see, as the folder shows them now."""
        known = {"path": self._folder.name, "kind": self.manifest.settings.kind, **self.manifest.provenance.facts()}
        try:
            state = self.state()
        except InputError as error:
            return Summary({**known, "state": str(error)}, self.manifest.provenance.emulated)
        of = "" if state.images is None else f" of {state.images:,}"
        facts = {
            **known,
            "shards": f"{state.finished_shards:,} of {state.shards:,} done",
            "images": f"{state.finished_images:,}{of} done"
            + (f", {state.errors:,} unreadable" if state.errors else ""),
        }
        return Summary(facts, state.provenance.emulated)

    def to_dict(self) -> dict[str, Any]:
        """Return ``state()`` as a dict for JSON."""
        state: dict[str, Any] = as_plain(self.state())
        return state

    def records(self) -> list[dict[str, Any]]:
        """Return one row for each image of the finished shards: id, size, error, and the ranked classes if it has them.

        Raises:
            InputError: a shard is damaged.
        """
        names = distinct_names(self.manifest.schema.class_names or ())
        return [record for rows in self.rows() for record in _records(rows, names)]

    def state(self) -> JobState:
        """Return what is done, missing and damaged, as far as names and sizes of files show it."""
        return read_state(self._folder, self.manifest)

    def rows(self) -> Iterator[ShardRows]:
        """Yield the rows of each finished shard, in order, also those of images that could not be read.

        Raises:
            InputError: a shard is damaged.
        """
        return read_shards(self._folder, self.manifest)

    def blocks(self) -> Iterator[EmbeddingBlock]:
        """Yield ids and embeddings of each finished shard, in order, without images that could not be read.

        Raises:
            OptionError: the job stores no embeddings.
            InputError: a shard is damaged.
        """
        if self.manifest.schema.embedding_dim is None:
            raise OptionError(f"the job '{self._folder.name}' stores no embeddings, only classes")
        return map(without_failed, self.rows())

    def verify(
        self, bundle: str | os.PathLike[str] | None = None, *, on_shard: Callable[[str], object] = lambda _name: None
    ) -> JobCheck:
        """Compare all finished shards with their records and with the input; see ``verify_job``."""
        place = None if bundle is None else as_path(bundle, "the bundle")
        return verify_job(self._folder, self.manifest, bundle=place, on_shard=on_shard)

    def repair(
        self,
        bundle: str | os.PathLike[str] | None = None,
        *,
        on_shard: Callable[[str], object] = lambda _name: None,
        on_note: Callable[[str], object] = _log.warning,
    ) -> JobCheck:
        """Verify, and mark the damaged shards as not done, so that the job's command computes them again.

        Args:
            bundle: see ``verify_job``.
            on_shard: see ``verify_job``.
            on_note: called with a line for people if another process works on the job; then this waits for its end.

        Raises:
            OutputError: the folder cannot be changed.
        """
        with self._folder.lock(on_note):
            return forget_damaged(self._folder, self.verify(bundle, on_shard=on_shard))

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        partial: bool = False,
        on_rows: Callable[[int], object] = lambda _count: None,
    ) -> ExportReport:
        """Write all rows to one file.

        Args:
            path: the file, ``.npy``, ``.parquet``, ``.csv`` or ``.jsonl``; see ``export_job``.
            overwrite: replace an existing file.
            partial: export the finished shards of a job that is not finished.
            on_rows: called with the number of rows of each shard.

        Raises:
            OptionError: the suffix is another, the path is that of a file of the job, or the job stores no embeddings for ``.npy``.
            InputError: the job is not finished, or a shard is damaged.
            OutputError: the file cannot be written.
        """
        target = as_path(path, "the export")
        if self._folder.owns(target):
            raise OptionError(f"export is to '{target}', which is for the job's own files; choose another path")
        check_export(self.state(), target, overwrite=overwrite, partial=partial)
        return export_job(self._folder, self.manifest, target, overwrite=overwrite, on_rows=on_rows)


def _records(rows: ShardRows, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    columns = zip(rows.ids, rows.widths, rows.heights, rows.errors, strict=True)
    for place, (name, width, height, error) in enumerate(columns):
        record: dict[str, Any] = {"id": name, "width": width, "height": height, "error": error}
        if rows.classes is not None and rows.scores is not None:
            for rank, (index, score) in enumerate(zip(rows.classes[place], rows.scores[place], strict=True), start=1):
                record[f"class_name_{rank}"] = names[index] if error is None else None
                record[f"score_{rank}"] = float(score) if error is None else None
        yield record
