"""The exact search against NumPy in float64, and against faiss."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from clipmlu.index import exact
from clipmlu.index.exact import search_exactly

Rows = npt.NDArray[np.floating[Any]]


def unit(count: int, dim: int, seed: int = 0) -> npt.NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def reference(query: Rows, rows: Rows, k: int, allowed: npt.NDArray[np.bool_] | None = None) -> tuple[list[int], Rows]:
    """The best rows by hand: one float64 dot product each, then by score and row."""
    scores = np.array([np.dot(row.astype(np.float64), query.astype(np.float64)) for row in rows])
    places = [row for row in range(len(rows)) if allowed is None or allowed[row]]
    best = sorted(places, key=lambda row: (-round(scores[row], 12), row))[:k]
    return best, scores[best]


@pytest.mark.parametrize(("dtype", "cuts"), [("float32", []), ("float16", [350]), ("float32", [1, 2, 2, 700])])
@pytest.mark.parametrize("filtered", [None, 0.9, 0.1, 0.0])
def test_best_rows_are_those_of_numpy(
    dtype: str, cuts: list[int], filtered: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "_BLOCK_BYTES", 4 * 24 * 128)  # blocks of 128 rows
    monkeypatch.setattr(exact, "_LEAST_KEPT", 16)
    rows, queries = unit(900, 24).astype(dtype), unit(5, 24, seed=1)
    mask = None if filtered is None else np.random.default_rng(2).random(900) < filtered
    found = search_exactly(queries, np.split(rows, cuts), 7, mask)
    for query, best in zip(queries, found, strict=True):
        places, scores = reference(query, rows, 7, mask)
        assert best.rows.tolist() == places
        np.testing.assert_allclose(best.scores, scores, rtol=0, atol=1e-12)


def test_equal_rows_have_equal_scores_and_stand_in_their_order_wherever_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exact, "_BLOCK_BYTES", 4 * 512 * 101)  # blocks that end inside a kernel's tile
    rows, (query,) = unit(1000, 512), unit(1, 512, seed=1)
    copies = [3, 100, 101, 202, 555, 998, 999]
    rows[copies] = unit(1, 512, seed=5)[0] * np.float32(0.1) + query * np.float32(0.9)
    rows[copies] /= np.linalg.norm(rows[copies[0]])
    one = search_exactly(query[None], [rows], 7)[0]
    assert one.rows.tolist() == copies
    assert len(set(one.scores.tolist())) == 1
    several = search_exactly(np.concatenate([query[None], unit(6, 512, seed=9)]), [rows], 7)[0]
    assert several.rows.tolist() == copies
    assert several.scores.tolist() == one.scores.tolist()


def test_differences_below_the_rounding_of_float32_decide() -> None:
    """Rows that differ by some 1e-7: in float32 their order is chance."""
    (query,), noise = unit(1, 512), unit(1500, 512, seed=4)
    rows = (query + np.float32(2e-6) * noise).astype(np.float32)
    in_float32 = set(np.argsort(-(rows @ query), kind="stable")[:10].tolist())
    (best,) = search_exactly(query[None], [rows], 10)
    places, _scores = reference(query, rows, 10)
    assert best.rows.tolist() == places
    assert in_float32 != set(places)


def test_more_hits_than_rows_and_none() -> None:
    rows, queries = unit(3, 8), unit(2, 8, seed=1)
    assert [sorted(best.rows.tolist()) for best in search_exactly(queries, [rows], 50)] == [[0, 1, 2]] * 2
    assert [best.rows.tolist() for best in search_exactly(queries, [], 5)] == [[], []]
    nothing = np.zeros(3, bool)
    assert [best.rows.tolist() for best in search_exactly(queries, [rows], 5, nothing)] == [[], []]


def test_best_rows_are_those_of_faiss() -> None:
    faiss = pytest.importorskip("faiss")
    rows, queries = unit(5000, 64), unit(20, 64, seed=3)
    flat = faiss.IndexFlatIP(64)
    flat.add(rows)
    scores, places = flat.search(queries, 10)
    for best, expected, similar in zip(search_exactly(queries, [rows], 10), places, scores, strict=True):
        assert best.rows.tolist() == expected.tolist()
        np.testing.assert_allclose(best.scores, similar, rtol=0, atol=1e-6)
