"""``open_index`` and ``VectorIndex``: an index on disk that is searched by vectors."""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from clipmlu.arguments import as_path, check_argument
from clipmlu.display import Displayed, Summary
from clipmlu.errors import InputError, OptionError
from clipmlu.file_names import name_from_path, path_from_name
from clipmlu.index.exact import BestRows, search_exactly
from clipmlu.index.filters import NameFilter
from clipmlu.index.manifest import INDEX_FILE, SEGMENTS_FOLDER, IndexManifest, Source, read_index_manifest
from clipmlu.index.segments import OpenSegment
from clipmlu.specs import PositiveInt, Spec

_ATTEMPTS = 5
_KEPT_MASKS = 8
JOB_INDEX = "index"
"""Name of the folder of an index in that of its job."""


class Hit(Spec, frozen=True, kw_only=True):
    """An image that was found.

    Attributes:
        id: name of the image, as its job wrote it; ``path_from_name`` gives the path of a file.
        score: cosine similarity to the query, -1..1; weighted sum of similarities for a combined query.
        row: number of the row in the index as it was searched.
    """

    id: str
    score: float
    row: int


def open_index(path: str | os.PathLike[str]) -> VectorIndex:
    """Open an index that ``build_index`` made.

    Args:
        path: folder of the index, or of the job that it lies in.

    Raises:
        InputError: there is no index, or it is damaged.
    """
    return VectorIndex(as_path(path, "the index"))


class VectorIndex(Displayed):
    """An index of embeddings; see ``open_index``. Threads may share it, and a search never changes it.

    It shows the index as it was when it was opened, also while another process updates it; ``refresh`` takes the new state.

    Attributes:
        path: folder of the index.
    """

    def __init__(self, path: Path) -> None:
        self.path = find_index(path)
        self._lock = threading.Lock()
        self._state = self._read()

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
            if _mark(self.path) == self._state.mark:
                return False
            self._state = self._read()
            return True

    def search(
        self,
        vectors: npt.ArrayLike,
        k: int = 10,
        *,
        include: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
    ) -> list[tuple[Hit, ...]]:
        """Return the images most similar to each query.

        Args:
            vectors: embeddings of the queries, float, shape (Q, D), or (D,) for one; they need not have unit norm.
            k: number of images for each query; fewer if there are not as many.
            include: glob patterns of names, of which an image must match one; empty for all. ``*`` also stands for ``/``, and
                a pattern without ``/`` may match the last part of a name.
            exclude: glob patterns of names that are left out.

        Returns:
            The hits of each query, best first; images with equal scores are in the order of the index.

        Raises:
            OptionError: a vector has another size, is not finite or is zero, or ``k`` is not positive.
            InputError: the index is damaged.
        """
        count = check_argument(k, PositiveInt, "k")
        state, names = self._state, NameFilter(include, exclude)
        queries = check_queries(vectors, self.embedding_dim)
        mask = None if names.selects_all else state.mask(names)
        found = search_exactly(queries, state.parts, count, mask)
        return [state.hits(each) for each in found]

    def image_path(self, hit: Hit) -> Path:
        """Return the path of the file of a hit, which may not exist: a relative name counts from the folder in which its job was begun.

        Raises:
            ValueError: the name is not one that clipmlu writes for a file.
        """
        source = self._state.source_of(hit.row)
        return path_from_name(source.images_folder) / path_from_name(hit.id)

    def _read(self) -> _State:
        """Read the folder; an update that ends meanwhile replaces files, and then this begins again."""
        for _ in range(_ATTEMPTS):
            mark, manifest = _mark(self.path), read_index_manifest(self.path)
            if manifest is None:
                raise _no_index(self.path)
            try:
                return _State(self.path, mark, manifest)
            except FileNotFoundError as error:
                missing = error
                if _mark(self.path) == mark:
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
        rows = np.asarray(vectors, np.float64)
    except (TypeError, ValueError) as error:
        raise OptionError(f"vectors are no array of numbers; expected the shape (Q, {dim})") from error
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


class _Mark(NamedTuple):
    """What tells two states of ``index.json`` apart."""

    inode: int
    size: int
    mtime_ns: int


def _mark(path: Path) -> _Mark | None:
    try:
        facts = (path / INDEX_FILE).stat()
    except OSError:
        return None
    return _Mark(facts.st_ino, facts.st_size, facts.st_mtime_ns)


class _State:
    """An index as it was at one time.

    Raises:
        FileNotFoundError: a segment is missing.
        InputError: a segment is damaged.
    """

    def __init__(self, path: Path, mark: _Mark | None, manifest: IndexManifest) -> None:
        self.mark = mark
        self.manifest = manifest
        folder, dim, dtype = path / SEGMENTS_FOLDER, manifest.embedding_dim, manifest.dtype
        self._segments = [
            OpenSegment(folder / f"{each.name}.npy", each, dim, dtype) for each in manifest.segments() if each.rows
        ]
        self._sources = [source for source in manifest.sources for each in source.segments if each.rows]
        self.parts = [segment.vectors for segment in self._segments]
        self._firsts = np.cumsum([0, *map(len, self.parts)]).tolist()
        self.rows: int = self._firsts[-1]
        self._masks: OrderedDict[tuple[tuple[str, ...], ...], npt.NDArray[np.bool_]] = OrderedDict()
        self._masks_lock = threading.Lock()

    def mask(self, names: NameFilter) -> npt.NDArray[np.bool_]:
        """Return which rows pass a filter; the last few are kept."""
        key = (names.include, names.exclude)
        with self._masks_lock:
            if key in self._masks:
                self._masks.move_to_end(key)
                return self._masks[key]
        passes = names.compile()
        mask = np.fromiter((passes(name) for each in self._segments for name in each.ids), bool, self.rows)
        with self._masks_lock:
            self._masks[key] = mask
            while len(self._masks) > _KEPT_MASKS:
                self._masks.popitem(last=False)
        return mask

    def hits(self, best: BestRows) -> tuple[Hit, ...]:
        """Return rows with their names."""
        return tuple(self._hit(int(row), float(score)) for row, score in zip(best.rows, best.scores, strict=True))

    def _hit(self, row: int, score: float) -> Hit:
        place = self._place(row)
        return Hit(id=self._segments[place].ids[row - self._firsts[place]], score=score, row=row)

    def source_of(self, row: int) -> Source:
        """Return where a row comes from."""
        return self._sources[self._place(row)]

    def _place(self, row: int) -> int:
        return bisect_right(self._firsts, row) - 1


def _no_index(path: Path) -> InputError:
    name = name_from_path(path)
    if path.is_dir():
        return InputError(f"'{name}' holds no index. Make one with 'clipmlu index', or give the folder of one.")
    return InputError(f"Index '{name}' does not exist. Give the folder of an index, or make one with 'clipmlu index'.")
