"""The approximate index: clusters of faiss that give candidates, whose exact similarities then rank them.

An inverted file of 8-bit vectors (``IVF,SQ8``): a query is compared with the vectors of its nearest clusters only. New shards
are added to the clusters and removed ones are taken out, so an update computes no clusters; only when there are many more or
fewer rows than when they were computed are they made anew. Its ids are ``slot << 40 | row`` with a slot for each segment, so
that they stay when segments before are removed.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from clipmlu.bundle.manifest import FileRecord
from clipmlu.errors import InputError
from clipmlu.file_names import name_from_path
from clipmlu.files.publish import output_errors
from clipmlu.host import require
from clipmlu.index.exact import BestRows, rank_rows, search_exactly, take_rows
from clipmlu.index.manifest import ApproximateRecord
from clipmlu.index.state import IndexState

FEWEST_ROWS = 2_000
"""Rows below which an exact search is as fast."""
MEASURED_HITS = 10
MEASURED_QUERIES = 256

_SLOT_BITS = 40
_HELD_EVERY = 32  # each 32nd row is no training vector, and may be a held query
_ROWS_PER_CLUSTER = 39  # fewest training vectors of a cluster that faiss asks for
_MOST_TRAINED_PER_CLUSTER = 128
_ROWS_AT_ONCE = 65_536
_GROWTH = 4  # factor of rows, more or fewer, after which the clusters are computed anew
_CANDIDATES = 4  # times k are ranked exactly, since 8 bits change the order


def import_faiss(purpose: str = "An approximate index (an exact one needs no package)") -> Any:
    """Return the package faiss.

    Args:
        purpose: what needs it, as the subject of a message.

    Raises:
        MissingDependencyError: it is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of SWIG's types
        return require("faiss", "search", purpose)


class Clusters:
    """An approximate index in memory.

    Args:
        index: the index of faiss.
        slots: name of the segment of each slot; empty for a free slot.
    """

    def __init__(self, index: Any, slots: Sequence[str]) -> None:
        self._index = index
        self.slots = list(slots)

    @classmethod
    def train(cls, state: IndexState) -> Clusters:
        """Compute the clusters from a sample of the rows that are not held; the index is empty."""
        faiss = import_faiss()
        rows, dim = state.rows, state.manifest.embedding_dim
        lists = max(1, min(int(2 * rows**0.5), rows // (2 * _ROWS_PER_CLUSTER)))
        numbers = np.flatnonzero(~held_rows(rows))
        most = min(len(numbers), lists * _MOST_TRAINED_PER_CLUSTER)
        chosen = np.sort(np.random.default_rng(0).choice(numbers, most, replace=False))
        index = faiss.index_factory(dim, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        index.train(np.ascontiguousarray(take_rows(state.parts, chosen), np.float32))
        return cls(index, [])

    @classmethod
    def read(cls, path: Path, content: npt.NDArray[np.uint8], record: ApproximateRecord) -> Clusters:
        """Read an approximate index.

        Args:
            path: its file, for messages.
            content: bytes of the file.
            record: its record.

        Raises:
            InputError: it is damaged.
        """
        faiss = import_faiss("A search in an approximate index (--exact searches all rows without it)")
        if hashlib.sha256(content.data).hexdigest() != record.file.sha256:
            raise InputError(
                f"'{name_from_path(path)}' was changed: its SHA-256 is not the recorded one. 'clipmlu index ... --verify' makes it "
                "again, and --exact searches without it."
            )
        return cls(faiss.deserialize_index(np.asarray(content)), record.slots)

    @property
    def lists(self) -> int:
        """Number of clusters."""
        return int(self._index.nlist)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self._index.ntotal)

    def update(self, segments: Mapping[str, npt.NDArray[np.floating]]) -> None:
        """Take out the segments that are not among the given ones, and add those that are new.

        Args:
            segments: rows by the name of the segment.
        """
        faiss = import_faiss()
        for slot, name in enumerate(self.slots):
            if name and name not in segments:
                self._index.remove_ids(faiss.IDSelectorRange(slot << _SLOT_BITS, (slot + 1) << _SLOT_BITS))
                self.slots[slot] = ""
        known = set(self.slots)
        for name, rows in segments.items():
            if name not in known:
                self._add(self._free_slot(name), rows)

    def _free_slot(self, name: str) -> int:
        if "" in self.slots:
            slot = self.slots.index("")
            self.slots[slot] = name
            return slot
        self.slots.append(name)
        return len(self.slots) - 1

    def _add(self, slot: int, rows: npt.NDArray[np.floating]) -> None:
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = np.ascontiguousarray(rows[start : start + _ROWS_AT_ONCE], np.float32)
            numbers = np.arange(start, start + len(part), dtype=np.int64) + (slot << _SLOT_BITS)
            self._index.add_with_ids(part, numbers)

    def write(self, path: Path) -> FileRecord:
        """Write the index to a file and return its digest.

        Raises:
            OutputError: it cannot be written.
        """
        content = import_faiss().serialize_index(self._index).tobytes()
        with output_errors(path):
            path.write_bytes(content)
        return FileRecord(sha256=hashlib.sha256(content).hexdigest(), size=len(content))

    def search(self, state: IndexState, queries: npt.NDArray[np.float32], k: int, probes: int) -> list[BestRows]:
        """Return the best rows that the nearest clusters hold, by their exact similarities; all rows are searched if these are too few.

        Args:
            state: the rows.
            queries: shape (Q, D), unit norm.
            k: rows for each query.
            probes: clusters for each query, with which the recall was measured; times as many as ``k`` is of ``MEASURED_HITS``.
        """
        faiss = import_faiss()
        wanted = min(max(_CANDIDATES * k, 64), max(self.rows, 1))
        searched = faiss.SearchParametersIVF(nprobe=min(probes * max(k // MEASURED_HITS, 1), self.lists))
        _scores, found = self._index.search(queries, wanted, params=searched)
        places = [state.places_of(name) for name in self.slots]
        results = [
            rank_rows(query, _row_numbers(each, places), k, lambda rows: take_rows(state.parts, rows))
            for query, each in zip(queries, found, strict=True)
        ]
        few = [place for place, each in enumerate(results) if len(each.rows) < min(k, state.rows)]
        if few:
            for place, each in zip(few, search_exactly(queries[few], state.parts, k), strict=True):
                results[place] = each
        return results


def _row_numbers(found: npt.NDArray[np.int64], places: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    """Return the numbers of rows from ids; a segment that is in the index twice gives both.

    Args:
        found: ids; -1 where there is none.
        places: first rows of the segment of each slot.
    """
    ids = found[found >= 0]
    slots, rows = ids >> _SLOT_BITS, ids & ((1 << _SLOT_BITS) - 1)
    numbers = [first + row for slot, row in zip(slots.tolist(), rows.tolist(), strict=True) for first in places[slot]]
    return np.array(numbers, np.int64)


def held_rows(rows: int) -> npt.NDArray[np.bool_]:
    """Return which rows are kept for queries, and no clusters are computed from."""
    held: npt.NDArray[np.bool_] = np.arange(rows) % _HELD_EVERY == 0
    return held


class Measured(NamedTuple):
    """A measured recall.

    Attributes:
        probes: clusters that a query searches.
        recall: share of the best rows that is found, for held rows as queries.
        queries: number of these.
        text_recall: the same for texts; None if there are none.
    """

    probes: int
    recall: float
    queries: int
    text_recall: float | None


def measure_recall(
    clusters: Clusters, state: IndexState, wanted: float, texts: npt.NDArray[np.float32] | None
) -> Measured:
    """Return the smallest number of clusters, a power of two, with which both recalls are as wanted, and what it finds.

    A held row as a query does not count itself.

    Args:
        clusters: the approximate index.
        state: all rows.
        wanted: share of the best rows that must be found.
        texts: embeddings of texts; None for none.
    """
    numbers = np.flatnonzero(held_rows(state.rows))
    numbers = numbers[np.linspace(0, len(numbers) - 1, min(MEASURED_QUERIES, len(numbers))).astype(int)]
    queries = np.asarray(take_rows(state.parts, numbers), np.float32)
    own = [int(number) for number in numbers]
    truth = _best(search_exactly(queries, state.parts, MEASURED_HITS + 1), own)
    text_truth = None if texts is None else _best(search_exactly(texts, state.parts, MEASURED_HITS), None)
    probes = 1
    while True:
        found = _best(clusters.search(state, queries, MEASURED_HITS + 1, probes), own)
        recall, text_recall = _recall(found, truth), None
        if texts is not None and text_truth is not None:
            text_recall = _recall(_best(clusters.search(state, texts, MEASURED_HITS, probes), None), text_truth)
        if probes >= clusters.lists or min(recall, 1.0 if text_recall is None else text_recall) >= wanted:
            return Measured(probes, recall, len(own), text_recall)
        probes = min(2 * probes, clusters.lists)


def _best(results: Sequence[BestRows], own: Sequence[int] | None) -> list[list[int]]:
    """Return the numbers of the best rows without the query's own."""
    rows = [each.rows.tolist() for each in results]
    if own is None:
        return rows
    return [[row for row in each if row != mine][:MEASURED_HITS] for each, mine in zip(rows, own, strict=True)]


def _recall(found: Sequence[Sequence[int]], truth: Sequence[Sequence[int]]) -> float:
    total = sum(map(len, truth))
    same = sum(len(set(mine) & set(true)) for mine, true in zip(found, truth, strict=True))
    return same / total if total else 1.0


def must_train(record: ApproximateRecord | None, rows: int) -> bool:
    """Return whether the clusters of an index are computed anew: there are none, or of too many or too few rows."""
    return record is None or not rows / _GROWTH <= record.trained_rows <= rows * _GROWTH
