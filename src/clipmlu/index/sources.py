"""The sources of an index: jobs and embedding files, as shards that are named by the digests of their content."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, overload

import msgspec
import numpy as np
import numpy.typing as npt

from clipmlu.arguments import is_there
from clipmlu.bundle.directory import open_compiled
from clipmlu.bundle.manifest import FileRecord
from clipmlu.bundle.space import EmbeddingSpace, space_of
from clipmlu.bundle.verify import file_record
from clipmlu.data.finding import JOB_FILE
from clipmlu.errors import InputError, OptionError, reason_of
from clipmlu.file_names import name_from_path, path_from_name
from clipmlu.files.read import open_regular, read_json
from clipmlu.index.manifest import FileTime
from clipmlu.index.segments import RowBlock
from clipmlu.jobs.folder import JobFolder, ShardRecord
from clipmlu.jobs.formats import FORMATS
from clipmlu.jobs.manifest import JobManifest
from clipmlu.jobs.pieces import shard_name
from clipmlu.jobs.reading import check_digests, read_shard, without_failed
from clipmlu.jobs.state import require_manifest
from clipmlu.keys import value_digest

_MOST_ID_BYTES = 1 << 34


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """A shard of a source.

    Attributes:
        name: its name in the source.
        rows: its number of rows, with those that have no embedding.
        files: its files, by name.
        known: digests of the files as the source recorded them; None if they must be computed.
        read: returns its rows; raises ``InputError`` if it is damaged.
    """

    name: str
    rows: int
    files: Mapping[str, Path]
    known: Mapping[str, FileRecord] | None
    read: Callable[[], RowBlock]

    def times(self) -> dict[str, FileTime]:
        """Return sizes and times of the files.

        Raises:
            InputError: a file is missing.
        """
        with _read_errors(self.name):
            facts = {name: path.stat() for name, path in self.files.items()}
        return {name: FileTime(size=each.st_size, mtime_ns=each.st_mtime_ns) for name, each in facts.items()}

    def key(self, digests: Mapping[str, FileRecord]) -> str:
        """Return a digest of the content, from the digests of its files."""
        # The name of a file is not content: the same shard in another place has the same key.
        return value_digest(sorted((Path(name).suffix, each.sha256) for name, each in digests.items()))

    def digests(self) -> dict[str, FileRecord]:
        """Compute the digests of the files.

        Raises:
            InputError: a file cannot be read.
        """
        with _read_errors(self.name):
            return {name: file_record(path) for name, path in self.files.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceContent:
    """A source as it is now.

    Attributes:
        path: absolute path.
        kind: what it is.
        dim: elements of an embedding.
        bundle: path of the bundle that computed it; None if that is not known.
        space: embedding space; None if that is not known.
        images_folder: folder to which relative names of images refer.
        emulated: the emulated vendor SDK computed it.
        missing: number of shards of a job that are not done.
        shards: what there is, in order.
    """

    path: Path
    kind: Literal["job", "file"]
    dim: int
    bundle: Path | None
    space: EmbeddingSpace | None
    images_folder: Path
    emulated: bool
    missing: int
    shards: Sequence[Shard]


def open_source(path: Path, bundle: Path | None) -> SourceContent:
    """Open a job or an embedding file as a source.

    Args:
        path: folder of a job, or a ``.npy`` file.
        bundle: the compiled bundle that computed it; None for the one that the job names.

    Raises:
        InputError: it is neither, is damaged, or the bundle is not the one of the job.
        OptionError: the job stores no embeddings.
        BundleError: there is no bundle at the path.
    """
    check_source(path)
    absolute = Path(os.path.abspath(path))
    return _open_job(absolute, bundle) if path.is_dir() else _open_file(absolute, bundle)


def check_source(path: Path) -> None:
    """Check that there is a job or an embedding file at a path; it is not opened.

    Raises:
        InputError: there is something else, or nothing.
    """
    if not is_there(path):
        raise InputError(f"'{name_from_path(path)}' does not exist. Give the folder of a job, or a .npy file.")
    if path.is_dir() and not (path / JOB_FILE).exists():
        raise InputError(
            f"'{name_from_path(path)}' is not the folder of a job. Embed images first, and index that folder: clipmlu embed BUNDLE "
            "IMAGES -o DIR."
        )
    if not path.is_dir() and path.suffix != ".npy":
        raise InputError(
            f"'{name_from_path(path)}' is not the folder of a job, and its name does not end with .npy. Give what 'clipmlu embed' wrote."
        )


def _open_job(path: Path, bundle: Path | None) -> SourceContent:
    folder = JobFolder(path)
    manifest = require_manifest(folder)
    dim = manifest.schema.embedding_dim
    if dim is None:
        raise OptionError(
            f"the job '{folder.name}' stores no embeddings, only classes; give the folder of 'clipmlu embed', or of "
            "'clipmlu classify --embeddings'"
        )
    records = list(folder.records(manifest))
    origin = manifest.origin
    space = None if origin is None else origin.space
    if bundle is not None:
        space = _space_of_job(folder, manifest, bundle)
    elif origin is not None:
        bundle = path_from_name(origin.bundle)
    return SourceContent(
        path=path,
        kind="job",
        dim=dim,
        bundle=None if bundle is None else Path(os.path.abspath(bundle)),
        space=space,
        images_folder=path.parent if origin is None else path_from_name(origin.folder),
        emulated=manifest.provenance.emulated,
        missing=manifest.shards - len(records),
        shards=[_shard_of_job(folder, manifest, record) for record in records],
    )


def _space_of_job(folder: JobFolder, manifest: JobManifest, bundle: Path) -> EmbeddingSpace:
    """Return the space of a given bundle, which must be the job's, or of the same model."""
    given = space_of(open_compiled(bundle, verify=False).manifest)
    origin = manifest.origin
    same = given == origin.space if origin is not None else None
    if same is None:
        same = open_compiled(bundle, verify=False).digest == manifest.provenance.bundle_digest
    if not same:
        raise InputError(
            f"Bundle '{bundle}' holds '{given.model}'; the job '{folder.name}' was computed with another model, "
            f"'{manifest.provenance.model}'. Give the bundle of the job."
        )
    return given


def _shard_of_job(folder: JobFolder, manifest: JobManifest, record: ShardRecord) -> Shard:
    def read() -> RowBlock:
        try:
            check_digests(folder, manifest, record)
            return RowBlock(*without_failed(read_shard(folder, manifest, record)))
        except InputError as error:
            remedy = f"Run 'clipmlu job {folder.name} --repair' and then the command of the job again."
            raise InputError(f"{error} {remedy}") from error

    suffixes = FORMATS[manifest.shard_format].suffixes
    names = [f"{shard_name(record.number)}{suffix}" for suffix in suffixes]
    return Shard(
        name=shard_name(record.number),
        rows=record.rows,
        files={name: folder.shards_path / name for name in names},
        known=record.files,
        read=read,
    )


def _open_file(path: Path, bundle: Path | None) -> SourceContent:
    """Open a ``.npy`` file of ``clipmlu embed``, or of another program: without ids its rows are called by their numbers."""
    rows = _map_file(path)
    ids_path = path.with_suffix(".ids.json")
    files = {path.name: path, **({ids_path.name: ids_path} if ids_path.exists() else {})}

    def read() -> RowBlock:
        found = _map_file(path)
        ids = _read_ids(ids_path, len(found)) if len(files) > 1 else _NumberedIds(path.name, len(found))
        return RowBlock(ids, found)

    opened = None if bundle is None else open_compiled(bundle, verify=False)
    if opened is not None and opened.manifest.embedding_dim != rows.shape[1]:
        raise InputError(
            f"'{name_from_path(path)}' has vectors of {rows.shape[1]}; bundle '{bundle}' gives {opened.manifest.embedding_dim}. "
            "Give the bundle that computed it."
        )
    return SourceContent(
        path=path,
        kind="file",
        dim=rows.shape[1],
        bundle=None if opened is None else Path(os.path.abspath(opened.path)),
        space=None if opened is None else space_of(opened.manifest),
        images_folder=Path.cwd(),
        emulated=opened is not None and opened.compilation.emulated,
        missing=0,
        shards=[Shard(name=path.name, rows=len(rows), files=files, known=None, read=read)],
    )


class _NumberedIds(Sequence[str]):
    """Ids of rows without names: ``FILE#ROW``."""

    def __init__(self, name: str, count: int) -> None:
        self._name, self._count = name_from_path(name), count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, row: int) -> str: ...

    @overload
    def __getitem__(self, row: slice) -> list[str]: ...

    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [f"{self._name}#{each}" for each in range(*row.indices(self._count))]
        return f"{self._name}#{range(self._count)[row]}"


def _map_file(path: Path) -> npt.NDArray[np.floating]:
    """Map the rows of a ``.npy`` file.

    Raises:
        InputError: it is no array of floats with two axes, or was cut.
    """
    with _read_errors(path):
        open_regular(path).close()
        rows = np.lib.format.open_memmap(path, mode="r")
        if rows.dtype.kind != "f" or rows.dtype.itemsize > 8:
            raise ValueError("it is not an array of float16, float32 or float64")
        if rows.ndim != 2 or rows.shape[1] < 1:
            raise ValueError(f"it has the shape {rows.shape}; expected (N, D), one embedding a row")
        return rows


def _read_ids(path: Path, rows: int) -> list[str]:
    with _read_errors(path):
        ids = read_json(path, list[str], _MOST_ID_BYTES)
        if len(ids) != rows:
            raise ValueError(f"it has {len(ids):,} ids for {rows:,} rows")
        return ids


@contextlib.contextmanager
def _read_errors(path: Path | str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(
            f"'{name_from_path(path)}' does not exist. Give the folder of a job, or a .npy file."
        ) from error
    except (OSError, ValueError, EOFError, msgspec.DecodeError) as error:
        raise InputError(
            f"Cannot read '{name_from_path(path)}': {reason_of(error)}. Give what 'clipmlu embed' wrote."
        ) from error
