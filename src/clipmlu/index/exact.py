"""Exact search: the best rows of memory-mapped blocks by cosine similarity, in bounded memory.

A first pass in float32 over all rows keeps every row that may be among the best, whatever the order in which the matrix product
adds. A second pass computes the similarities of these in float64, one row like the other: equal rows have equal similarities
wherever they stand, and a result depends neither on the number of threads nor on the other queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

_BLOCK_BYTES = 16 << 20  # of float32 rows; any size from 4 to 64 MB is as fast
_LEAST_KEPT = 1024  # rows that a query keeps before it drops those that cannot be among the best
_SPARSE = 4  # a block is gathered if less than 1/4 of its rows pass the filter


class BestRows(NamedTuple):
    """The best rows of a query.

    Attributes:
        rows: int64, numbers of the rows, best first; rows of equal similarity in their order.
        scores: float64, their cosine similarities.
    """

    rows: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]


def search_exactly(
    queries: npt.NDArray[np.float32],
    parts: Sequence[npt.NDArray[np.floating]],
    k: int,
    mask: npt.NDArray[np.bool_] | None = None,
) -> list[BestRows]:
    """Return the best rows for each query.

    Args:
        queries: shape (Q, D), unit norm.
        parts: float32 or float16 rows of unit norm, each of shape (N, D); row numbers go on from one to the next.
        k: number of rows; fewer if there are not as many.
        mask: shape (N of all parts,): rows that may be found; None for all.
    """
    kept = [_Kept(k, slack=_slack(queries.shape[1])) for _ in queries]
    rows_at_once = max(1, _BLOCK_BYTES // (4 * queries.shape[1]))
    first = 0
    for part in parts:
        for start in range(0, len(part), rows_at_once):
            block, begin = part[start : start + rows_at_once], first + start
            allowed = None if mask is None else mask[begin : begin + len(block)]
            _search_block(queries, block, begin, allowed, kept)
        first += len(part)
    return [
        rank_rows(query, each.rows(), k, lambda rows: take_rows(parts, rows))
        for query, each in zip(queries, kept, strict=True)
    ]


def rank_rows(
    query: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
    k: int,
    take: TakeRows,
) -> BestRows:
    """Return the best of some rows, by similarities in float64.

    Args:
        query: shape (D,), unit norm.
        rows: numbers of the rows.
        k: number of rows that are returned.
        take: returns rows by their numbers.
    """
    rows = np.sort(rows)
    at_once = max(1, _BLOCK_BYTES // (8 * len(query)))
    pieces = [_similarities(query, take(rows[at : at + at_once])) for at in range(0, len(rows), at_once)]
    scores = np.concatenate([np.zeros(0), *pieces])
    order = np.argsort(-scores, kind="stable")[:k]
    return BestRows(rows[order], scores[order])


class TakeRows(Protocol):
    """Returns rows by their numbers."""

    def __call__(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.floating]:
        """Return the rows, shape (N, D)."""


def take_rows(parts: Sequence[npt.NDArray[np.floating]], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.floating]:
    """Return rows of parts by their numbers over all parts, which are sorted."""
    ends = np.cumsum([len(part) for part in parts])
    homes = np.searchsorted(ends, rows, side="right")
    pieces = []
    for home in np.unique(homes).tolist():
        part = parts[home]
        pieces.append(part[rows[homes == home] - (ends[home] - len(part))])
    return np.concatenate(pieces)


def _similarities(query: npt.NDArray[np.float32], rows: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return the cosine similarities of a query; each is the sum of its products in the same order."""
    products = rows.astype(np.float64)
    products *= query
    found: npt.NDArray[np.float64] = products.sum(axis=1)
    return found


def _slack(dim: int) -> float:
    """Return the largest difference of two similarities that float32 may hide: dim x 2^-24 each, for vectors of about unit norm.

    Source: N. Higham, "Accuracy and Stability of Numerical Algorithms", 2002, equation 3.5: the bound for any order of the sum.
    """
    return (2.05 * dim + 4) * 2.0**-24


def _search_block(
    queries: npt.NDArray[np.float32],
    block: npt.NDArray[np.floating],
    begin: int,
    allowed: npt.NDArray[np.bool_] | None,
    kept: Sequence[_Kept],
) -> None:
    places: npt.NDArray[np.int64] | None = None
    if allowed is not None and not allowed.all():
        places = np.flatnonzero(allowed)
        if not places.size:
            return
        if places.size * _SPARSE < len(block):
            block, allowed = block[places], None
        else:
            places = None
    rows = np.asarray(block, np.float32)
    scores = (rows @ queries[0])[None] if len(queries) == 1 else queries @ rows.T
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    for each, row in zip(kept, scores, strict=True):
        each.add(row, begin, places)


class _Kept:
    """The rows that may be among the best ``k`` of one query."""

    def __init__(self, k: int, *, slack: float) -> None:
        self._k = k
        self._slack = slack
        self._least = -np.inf
        self._rows = [np.zeros(0, np.int64)]
        self._scores = [np.zeros(0, np.float32)]
        self._count = 0

    def add(self, scores: npt.NDArray[np.float32], begin: int, places: npt.NDArray[np.int64] | None) -> None:
        """Add the rows of a block; those that are filtered out have the score -inf."""
        found = np.flatnonzero(scores >= self._least if self._least > -np.inf else scores > -np.inf)
        if not found.size:
            return
        self._scores.append(scores[found])
        self._rows.append(begin + (found if places is None else places[found]))
        self._count += found.size
        if self._count > max(_LEAST_KEPT, 4 * self._k):
            self._drop()

    def _drop(self) -> None:
        rows, scores = np.concatenate(self._rows), np.concatenate(self._scores)
        if len(scores) > self._k:
            self._least = float(np.partition(scores, -self._k)[-self._k]) - self._slack
            good = scores >= self._least
            rows, scores = rows[good], scores[good]
        self._rows, self._scores, self._count = [rows], [scores], len(rows)

    def rows(self) -> npt.NDArray[np.int64]:
        """Return the rows."""
        self._drop()
        return self._rows[0]
