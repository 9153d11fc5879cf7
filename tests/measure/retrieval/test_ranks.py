"""Ranks of matches, against a full sort and by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from clipmlu.measure.retrieval.evaluate import describe_ranks
from clipmlu.measure.retrieval.ranks import Matches, connected_groups, rank_matches

FloatArray = npt.NDArray[np.float32]


def unit(count: int, seed: int, width: int = 16) -> FloatArray:
    rows = np.random.default_rng(seed).standard_normal((count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def matches_of(pairs: list[tuple[int, int]]) -> Matches:
    queries, candidates = np.array(pairs, np.int64).T
    return Matches.of_pairs(queries, candidates)


def sorted_ranks(queries: FloatArray, candidates: FloatArray, pairs: list[tuple[int, int]]) -> list[int]:
    """The place of the first match in the whole list of candidates, sorted by (similarity, match last)."""
    similarities = (queries.astype(np.float64) @ candidates.astype(np.float64).T).astype(np.float32)
    ranks = []
    for query, row in enumerate(similarities.tolist()):
        right = {candidate for each, candidate in pairs if each == query}
        order = sorted(range(len(row)), key=lambda candidate: (-row[candidate], candidate in right))
        ranks.append(
            1
            + min(
                order.index(candidate) - sum(other in right for other in order[: order.index(candidate)])
                for candidate in right
            )
        )
    return ranks


@pytest.mark.parametrize("block_entries", [1, 70, 1 << 20])
def test_ranks_are_those_of_a_full_sort_in_blocks_of_any_size(block_entries: int) -> None:
    queries, candidates = unit(23, 0), unit(31, 1)
    candidates[7] = candidates[3]  # ties
    candidates[8] = candidates[3]
    generator = np.random.default_rng(2)
    pairs = [(query, int(each)) for query in range(23) for each in generator.permutation(31)[: 1 + query % 4]]
    found = rank_matches(queries, candidates, matches_of(pairs), keep=5, block_entries=block_entries)
    assert found.ranks.tolist() == sorted_ranks(queries, candidates, pairs)
    similarities = (queries.astype(np.float64) @ candidates.astype(np.float64).T).astype(np.float32)
    assert found.best.tolist() == np.argsort(-similarities, axis=1, kind="stable")[:, :5].tolist()
    assert len(set(found.ranks.tolist())) > 5


def test_both_directions_by_hand() -> None:
    east, north = [1.0, 0.0], [0.0, 1.0]
    images = np.array([east, north], np.float32)
    texts = np.array([[0.8, 0.6], [0.6, 0.8], east], np.float32)
    pairs = matches_of([(0, 0), (0, 1), (1, 2)])
    # Image 0: texts by similarity are 2, 0, 1; its first own text stands second. Image 1: texts 1, 0, 2; its own is the third.
    assert rank_matches(images, texts, pairs).ranks.tolist() == [2, 3]
    # Text 0 prefers image 0, which is right; text 1 image 1, wrong; text 2 image 0, wrong.
    assert rank_matches(texts, images, pairs.swapped()).ranks.tolist() == [1, 2, 2]


def test_ties_count_against_the_model() -> None:
    same = np.full((4, 4), 0.5, np.float32)
    one_each = matches_of([(0, 0), (1, 1), (2, 2), (3, 3)])
    assert rank_matches(same, same, one_each).ranks.tolist() == [4, 4, 4, 4], "equal embeddings find nothing"
    several = matches_of([(0, 0), (0, 1), (1, 1), (2, 2), (3, 3)])
    assert rank_matches(same, same, several).ranks.tolist()[0] == 3, "other right ones are no competitors"


@pytest.mark.parametrize(("count", "queries"), [(17, 7), (33, 3), (1001, 50)])
def test_equal_candidates_tie_wherever_they_stand(count: int, queries: int) -> None:
    """A float32 product differs in its last bit from one column of a block to another: with 17 and 33 candidates here."""
    candidates = unit(count, 3, 512)
    candidates[-1] = candidates[0]
    asked = unit(queries, 4, 512)
    for block_entries in (1, 1 << 20):
        first, last = (
            rank_matches(
                asked, candidates, matches_of([(query, match) for query in range(queries)]), block_entries=block_entries
            )
            for match in (0, count - 1)
        )
        assert first.ranks.tolist() == last.ranks.tolist()
        assert first.ranks.min() >= 2, "the other one ties"


def test_recalls_and_ranks_of_a_direction() -> None:
    ranks = np.array([1, 1, 2, 5, 6, 11, 40, 3], np.int64)
    found = describe_ranks(ranks, np.arange(8), 41)
    assert [(each.k, each.hits, each.value) for each in found.recalls] == [(1, 2, 0.25), (5, 5, 0.625), (10, 6, 0.75)]
    assert (found.mean_rank, found.median_rank) == (69 / 8, 4.0)
    assert [each.k for each in describe_ranks(ranks[:4], np.arange(4), 10).recalls] == [1, 5], (
        "among ten, ten always have it"
    )


def test_groups_are_images_with_their_texts_and_images_that_share_one() -> None:
    pairs = matches_of([(0, 0), (0, 1), (1, 2), (2, 3), (3, 3), (4, 4), (4, 3)])
    images, texts = connected_groups(pairs, 5, 5)
    assert images.tolist() == [0, 1, 2, 2, 2]
    assert texts.tolist() == [0, 0, 1, 2, 2]


def test_a_long_chain_of_shared_texts_is_one_group() -> None:
    count = 20_000
    pairs = matches_of([(image, text) for image in range(count) for text in (image, image + 1)])
    images, texts = connected_groups(pairs, count, count + 1)
    assert not images.any()
    assert not texts.any()
