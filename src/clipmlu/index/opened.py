"""``open_index`` and ``VectorIndex``: an index on disk that is searched by vectors."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipmlu.arguments import as_path, check_argument
from clipmlu.data.finding import JOB_FILE
from clipmlu.data.images import ImageSource
from clipmlu.display import Displayed, Summary
from clipmlu.errors import InputError, OptionError
from clipmlu.file_names import name_from_path, path_from_name
from clipmlu.index.approximate import Clusters
from clipmlu.index.exact import BestRows, search_exactly
from clipmlu.index.filters import NameFilter
from clipmlu.index.hit_image import find_image
from clipmlu.index.manifest import INDEX_FILE, ApproximateRecord, IndexManifest, read_index_manifest
from clipmlu.index.state import IndexState, Mark, mark_of
from clipmlu.specs import PositiveInt, Spec

_ATTEMPTS = 5
JOB_INDEX = "index"
"""Name of the folder of an index in that of its job."""


class Hit(Spec, frozen=True, kw_only=True):
    """An image that was found.

    Attributes:
        id: name of the image, as its job wrote it; ``path_from_name`` gives the path of a file.
        score: cosine similarity to the query, -1..1; weighted sum of similarities for a combined query.
        row: number of the row in the index as it was searched.
        path: absolute path of the image's file, as a name, where it was when it was embedded; None if the id is none of a file.
    """

    id: str
    score: float
    row: int
    path: str | None


def open_index(path: str | os.PathLike[str], *, images_folder: str | os.PathLike[str] | None = None) -> VectorIndex:
    """Open an index that ``build_index`` made.

    Args:
        path: folder of the index, or of the job that it lies in.
        images_folder: folder to which relative names of images refer; None for that in which their job was begun.

    Raises:
        InputError: there is no index, or it is damaged.
    """
    folder = None if images_folder is None else as_path(images_folder, "the folder of the images")
    return VectorIndex(as_path(path, "the index"), images_folder=folder)


class VectorIndex(Displayed):
    """An index of embeddings; see ``open_index``. Threads may share it, and a search never changes it.

    It shows the index as it was when it was opened, also while another process updates it; ``refresh`` takes the new state.

    Attributes:
        path: folder of the index.
    """

    def __init__(self, path: Path, *, images_folder: Path | None = None) -> None:
        self.path = find_index(path)
        self._images_folder = images_folder
        self._lock = threading.Lock()
        self._mark, self._state = self._read()
        self._clusters: dict[str, Clusters] = {}

    @property
    def manifest(self) -> IndexManifest:
        """Content of its ``index.json``: sources, segments and the model."""
        return self._state.manifest

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self._state.rows

    @property
    def embedding_dim(self) -> int:
        """Elements of a vector."""
        return self.manifest.embedding_dim

    @property
    def emulated(self) -> bool:
        """Whether the emulated vendor SDK computed some of the rows."""
        return self.manifest.emulated

    def summary(self) -> Summary:
        """Return the facts that people see."""
        manifest = self.manifest
        facts = {
            "path": name_from_path(self.path),
            "rows": f"{self.rows:,} of {manifest.embedding_dim} {manifest.dtype}",
            "sources": f"{len(manifest.sources)}",
            **({} if manifest.space is None else {"model": str(manifest.space.model)}),
        }
        return Summary(facts, manifest.emulated)

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as a dict for JSON."""
        manifest = self.manifest
        return {
            "path": name_from_path(self.path),
            "rows": self.rows,
            "embedding_dim": manifest.embedding_dim,
            "dtype": manifest.dtype,
            "model": None if manifest.space is None else str(manifest.space.model),
            "sources": [source.path for source in manifest.sources],
            "emulated": manifest.emulated,
        }

    def refresh(self) -> bool:
        """Take the present state of the folder; return whether it is another one. Searches that run are not disturbed.

        Raises:
            InputError: the index is gone or damaged; the earlier state stays.
        """
        with self._lock:
            if mark_of(self.path) == self._mark:
                return False
            self._mark, self._state = self._read()
            return True

    def search(
        self,
        vectors: npt.ArrayLike,
        k: int = 10,
        *,
        include: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        exact: bool = False,
    ) -> list[tuple[Hit, ...]]:
        """Return the images most similar to each query.

        Args:
            vectors: embeddings of the queries, float, shape (Q, D), or (D,) for one; they need not have unit norm.
            k: number of images for each query; fewer if there are not as many.
            include: glob patterns of names, of which an image must match one; empty for all. ``*`` also stands for ``/``, and
                a pattern without ``/`` may match the last part of a name.
            exclude: glob patterns of names that are left out.
            exact: search all rows, also if there is an approximate index, which finds most of the best ones. A search with a
                filter is always exact.

        Returns:
            The hits of each query, best first; images with equal scores are in the order of the index.

        Raises:
            OptionError: a vector has another size, is not finite or is zero, or ``k`` is not positive.
            InputError: the index is damaged.
            MissingDependencyError: the approximate index needs faiss-cpu.
        """
        count, every = check_argument(k, PositiveInt, "k"), check_argument(exact, bool, "exact")
        state, names = self._state, NameFilter(include, exclude)
        queries = check_queries(vectors, self.embedding_dim)
        approximate = state.manifest.approximate
        if approximate is not None and names.selects_all and not every:
            found = self._clusters_of(state, approximate).search(state, queries, count, approximate.probes)
        else:
            found = search_exactly(queries, state.parts, count, None if names.selects_all else state.mask(names))
        return [self._hits(state, each) for each in found]

    def hit_of(self, row: int) -> Hit:
        """Return the image in a row, with a score of 0.

        Raises:
            OptionError: there is no such row.
            InputError: the index is damaged.
        """
        state = self._state
        if not 0 <= row < state.rows:
            raise OptionError(f"row is {row}; the index has {state.rows:,} rows")
        return self._hits(state, BestRows(np.array([row]), np.zeros(1)))[0]

    def image_of(self, hit: Hit) -> ImageSource:
        """Return the image of a hit: the path of its file, or its content in an archive or a table.

        Raises:
            InputError: there is no such image any more, or the index is damaged.
            MissingDependencyError: it lies in a table, and pyarrow is not installed.
        """
        state = self._state
        if hit.path is None:
            raise InputError("The image has no file.")
        if not 0 <= hit.row < state.rows or state.id_of(hit.row) != hit.id:
            raise InputError(f"The index has changed, and row {hit.row} is no longer '{hit.id}'. Search again.")
        return find_image(hit.id, hit.path, state.source_of(hit.row).place(self.path), state.shard_of(hit.row))

    def recall_of(
        self, include: str | Sequence[str] = (), exclude: str | Sequence[str] = (), *, exact: bool = False
    ) -> float | None:
        """Return the measured recall of a search with these arguments; None if it is exact."""
        record = self.manifest.approximate
        if record is None or exact or not NameFilter(include, exclude).selects_all:
            return None
        return min(record.recall, 1.0 if record.text_recall is None else record.text_recall)

    def _clusters_of(self, state: IndexState, record: ApproximateRecord) -> Clusters:
        """Return the approximate index, which is read when it is first needed."""
        assert state.approximate_file is not None
        with self._lock:
            if record.name not in self._clusters:
                self._clusters = {record.name: Clusters.read(self.path / record.name, state.approximate_file, record)}
            return self._clusters[record.name]

    def _hits(self, state: IndexState, best: BestRows) -> tuple[Hit, ...]:
        return tuple(
            Hit(id=name, score=score, row=row, path=self._path_of(state, row, name))
            for row, score in zip(best.rows.tolist(), best.scores.tolist(), strict=True)
            for name in (state.id_of(row),)
        )

    def _path_of(self, state: IndexState, row: int, name: str) -> str | None:
        folder = self._images_folder
        try:
            place = path_from_name(state.source_of(row).images_folder) if folder is None else folder
            return name_from_path(os.path.abspath(place / path_from_name(name)))
        except ValueError:  # the name of an image in a dataset or table
            return None

    def _read(self) -> tuple[Mark | None, IndexState]:
        """Read the folder; an update that ends meanwhile replaces files, and then this begins again."""
        for _ in range(_ATTEMPTS):
            mark, manifest = mark_of(self.path), read_index_manifest(self.path)
            if manifest is None:
                raise _no_index(self.path)
            try:
                return mark, IndexState(self.path, manifest)
            except FileNotFoundError as error:
                missing = error
                if mark_of(self.path) == mark:
                    break
        raise InputError(
            f"Index '{name_from_path(self.path)}' is damaged: '{name_from_path(missing.filename)}' is missing. The same "
            "'clipmlu index' that made the index mends it."
        ) from missing


def find_index(path: Path) -> Path:
    """Return the folder of an index: the given one, or ``index`` in the folder of a job."""
    inside = path / JOB_INDEX
    return inside if not (path / INDEX_FILE).is_file() and (inside / INDEX_FILE).is_file() else path


def check_queries(vectors: npt.ArrayLike, dim: int) -> npt.NDArray[np.float32]:
    """Return query vectors as float32 of unit norm, shape (Q, D).

    Raises:
        OptionError: they have another shape, are not finite, or one is zero.
    """
    try:
        given = np.asarray(vectors)
        if given.dtype.kind not in "fiu":
            raise TypeError("other numbers")
        rows = given.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise OptionError(f"vectors are no array of real numbers; expected the shape (Q, {dim})") from error
    shape = rows.shape
    rows = rows[None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise OptionError(
            f"vectors have the shape {shape}; expected (Q, {dim}), or ({dim},) for one: the index has vectors of {dim}"
        )
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise OptionError(
            "a query vector has NaN, infinity or only zeros; expected embeddings, such as of Model.embed_texts"
        )
    unit: npt.NDArray[np.float32] = (rows / norms).astype(np.float32)
    return unit


def _no_index(path: Path) -> InputError:
    name = name_from_path(path)
    if (path / JOB_FILE).is_file():
        return InputError(f"The job '{name}' has no index yet. Make one: clipmlu index {name}.")
    if path.is_dir():
        return InputError(f"'{name}' holds no index. Make one with 'clipmlu index', or give the folder of one.")
    if path.exists():
        return InputError(
            f"'{name}' is not the folder of an index. Make one with 'clipmlu index', or give the folder of one."
        )
    return InputError(f"Index '{name}' does not exist. Give the folder of an index, or make one with 'clipmlu index'.")
