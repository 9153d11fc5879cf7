"""Ranks of matches: how many other candidates a query prefers to the right ones, computed in blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from clipmlu.classify.probabilities import rank_classes
from clipmlu.embed.rows import FloatArray

IntArray = npt.NDArray[np.int64]

_BLOCK_ENTRIES = 1 << 22
"""Similarities per block: 48 MB in float64 and float32."""


@dataclasses.dataclass(frozen=True)
class Matches:
    """Which candidates are right for which queries; every query has at least one, and no pair occurs twice.

    Attributes:
        queries: int64, shape (P,): position of the query of each pair, in ascending order.
        candidates: int64, shape (P,): position of the candidate.
    """

    queries: IntArray
    candidates: IntArray

    @classmethod
    def of_pairs(cls, queries: IntArray, candidates: IntArray) -> Matches:
        """Return the matches of pairs in any order."""
        order = np.lexsort((candidates, queries))
        return cls(queries[order], candidates[order])

    def swapped(self) -> Matches:
        """Return the matches with queries and candidates exchanged."""
        return Matches.of_pairs(self.candidates, self.queries)


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The results of all queries.

    Attributes:
        ranks: int64, shape (Q,): rank of the best match of each query, from 1.
        best: int64, shape (Q, K): the K candidates with the largest similarity, best first; of equal ones the first.
    """

    ranks: IntArray
    best: IntArray


def rank_matches(
    queries: FloatArray,
    candidates: FloatArray,
    matches: Matches,
    *,
    keep: int = 0,
    block_entries: int = _BLOCK_ENTRIES,
    on_queries: Callable[[int], object] = lambda _count: None,
) -> Ranking:
    """Rank the candidates of each query by cosine similarity.

    The rank of a query is 1 plus the number of candidates that are not right for it and whose similarity is at least that of its
    best match: ties count against the model, so that one which gives equal embeddings to everything finds nothing. A query with
    several matches has the rank of the best one.

    Similarities are products in float64, rounded to float32. Two are equal if they are equal then; this does not depend on the size of
    the blocks, as products in float32 would.

    Args:
        queries: float32, shape (Q, D), unit L2 norm per row.
        candidates: float32, shape (C, D), unit L2 norm per row.
        matches: the right candidates of every query.
        keep: number of best candidates to return, 0 to C.
        block_entries: largest number of similarities in memory, except that a block has at least one query.
        on_queries: called with the number of queries of each block when it is done.
    """
    rows = max(1, block_entries // len(candidates))
    columns = candidates.astype(np.float64).T
    ranks = np.empty(len(queries), np.int64)
    best = np.empty((len(queries), keep), np.int64)
    for start in range(0, len(queries), rows):
        block = slice(start, min(start + rows, len(queries)))
        similarities = (queries[block].astype(np.float64) @ columns).astype(np.float32)
        if keep:
            best[block] = rank_classes(similarities, keep)
        low, high = np.searchsorted(matches.queries, (block.start, block.stop))
        ranks[block] = _ranks(similarities, matches.queries[low:high] - start, matches.candidates[low:high])
        on_queries(block.stop - block.start)
    return Ranking(ranks, best)


def _ranks(similarities: FloatArray, rows: IntArray, columns: IntArray) -> IntArray:
    """Return the rank of each row's best match; the similarities of the matches are overwritten."""
    of_matches = np.full(len(similarities), -np.inf, np.float32)
    np.maximum.at(of_matches, rows, similarities[rows, columns])
    similarities[rows, columns] = -np.inf
    ranks: IntArray = 1 + np.count_nonzero(similarities >= of_matches[:, None], axis=1).astype(np.int64)
    return ranks


def connected_groups(pairs: Matches, queries: int, candidates: int) -> tuple[IntArray, IntArray]:
    """Number the connected groups of queries and candidates: two are in one group if a chain of pairs leads from one to the other.

    Args:
        pairs: the pairs.
        queries: number of queries.
        candidates: number of candidates.

    Returns:
        The group of each query, shape (Q,), and of each candidate, shape (C,), from 0; int64.
    """
    parents = list(range(queries + candidates))

    def root(node: int) -> int:
        while parents[node] != node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    for query, candidate in zip(pairs.queries.tolist(), (pairs.candidates + queries).tolist(), strict=True):
        first, second = sorted((root(query), root(candidate)))
        parents[second] = first
    _, numbers = np.unique([root(node) for node in range(queries + candidates)], return_inverse=True)
    return numbers[:queries].astype(np.int64), numbers[queries:].astype(np.int64)
