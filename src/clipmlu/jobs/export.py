"""Writing all rows of a job to one file, shard by shard."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from clipmlu.display import Displayed
from clipmlu.embed.file import EmbeddingFile, check_embedding_output
from clipmlu.errors import InputError, OptionError
from clipmlu.file_names import name_from_path
from clipmlu.files.publish import StagedFiles, check_file_free, output_errors
from clipmlu.jobs.folder import JobFolder
from clipmlu.jobs.formats import FORMATS, FormatName
from clipmlu.jobs.manifest import JobManifest
from clipmlu.jobs.reading import read_shards, without_failed
from clipmlu.jobs.rows import ShardRows
from clipmlu.jobs.state import JobState
from clipmlu.specs import NaturalInt, Spec

_FORMATS: dict[str, FormatName] = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".npy": "npy"}
"""Formats by suffix."""


class ExportReport(Displayed, Spec, frozen=True, kw_only=True):
    """What was exported.

    Attributes:
        path: the file.
        rows: its rows.
        left_out: images that could not be read and have no row in it; only ``.npy`` has none for them.
        missing_shards: shards that are not done.
        emulated: the emulated vendor SDK computed the rows.
    """

    path: str
    rows: NaturalInt
    left_out: NaturalInt
    missing_shards: NaturalInt
    emulated: bool


def check_export(state: JobState, path: Path, *, overwrite: bool, partial: bool) -> None:
    """Check that a job can be exported.

    Raises:
        OptionError: the suffix is none of the formats, or the job stores no embeddings for ``.npy``.
        InputError: the job is not finished, and ``partial`` is False.
        OutputError: the path cannot be written.
        MissingDependencyError: one of the two formats needs an optional package.
    """
    if path.suffix not in _FORMATS:
        raise OptionError(f"export is to '{path}'; expected a name that ends in {', '.join(_FORMATS)}")
    if _FORMATS[path.suffix] == "npy":
        if state.embedding_dim is None:
            raise OptionError(f"the job '{state.path}' stores no embeddings; expected .parquet, .csv or .jsonl")
        check_embedding_output(path, overwrite=overwrite)
    check_file_free(path, overwrite=overwrite)
    for name in (_FORMATS[path.suffix], state.shard_format):
        FORMATS[name].check()
    if not state.finished and not partial:
        raise InputError(
            f"Job '{state.path}' is not finished: {state.finished_shards} of {state.shards} shards are done. Run its command "
            "again, or export what is done with --partial."
        )


def export_job(
    folder: JobFolder,
    manifest: JobManifest,
    path: Path,
    *,
    overwrite: bool,
    on_rows: Callable[[int], object] = lambda _count: None,
) -> ExportReport:
    """Write the rows of all finished shards to one file, which appears when it is complete.

    Args:
        folder: the job.
        manifest: its manifest.
        path: the file; the suffix decides the format. ``.npy`` is the same file, with its ids, as ``clipmlu embed`` writes.
        overwrite: replace an existing file.
        on_rows: called with the number of rows of each shard.

    Raises:
        InputError: a shard is damaged.
        OutputError: the file cannot be written.
    """
    writing = _write_npy if _FORMATS[path.suffix] == "npy" else _write_rows
    shards = count = failed = 0
    with writing(manifest, path, overwrite=overwrite) as append:
        for rows in read_shards(folder, manifest):
            append(rows)
            shards += 1
            count += len(rows.ids)
            failed += sum(error is not None for error in rows.errors)
            on_rows(len(rows.ids))
    left_out = failed if writing is _write_npy else 0
    return ExportReport(
        path=name_from_path(path),
        rows=count - left_out,
        left_out=left_out,
        missing_shards=manifest.shards - shards,
        emulated=manifest.provenance.emulated,
    )


@contextlib.contextmanager
def _write_rows(manifest: JobManifest, path: Path, *, overwrite: bool) -> Iterator[Callable[[ShardRows], None]]:
    shard_format = FORMATS[_FORMATS[path.suffix]]
    with StagedFiles([path], overwrite=overwrite) as staged:
        with output_errors(path), shard_format.open(manifest.schema, manifest.provenance, staged.paths) as append:
            yield append
        staged.publish()


@contextlib.contextmanager
def _write_npy(manifest: JobManifest, path: Path, *, overwrite: bool) -> Iterator[Callable[[ShardRows], None]]:
    schema = manifest.schema
    assert schema.embedding_dim is not None
    with EmbeddingFile(path, schema.embedding_dim, dtype=schema.embedding_dtype, overwrite=overwrite) as file:

        def append(rows: ShardRows) -> None:
            block = without_failed(rows)
            file.append(block.embeddings, block.ids)

        yield append
        file.publish()
