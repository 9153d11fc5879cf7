"""Agreement of the rankings of two models, such as a quantised one and float32, on the same queries and candidates.

The overlap of the first ten results is reported, and no rank correlation over all candidates: that is decided by the order of thousands of
candidates that nobody sees, and which the models place nearly at random.
"""

from __future__ import annotations

import numpy as np

from clipmlu.measure.retrieval.intervals import IntArray, recall_drop_bound
from clipmlu.measure.retrieval.ranks import Ranking
from clipmlu.measure.retrieval.report import RankAgreement
from clipmlu.measure.statistics import count_changes

TOP = 10


def compare_rankings(measured: Ranking, reference: Ranking, groups: IntArray, candidates: int) -> RankAgreement:
    """Compare the rankings of the same queries.

    Args:
        measured: the model's, with at least one best candidate for each query.
        reference: the other one's.
        groups: group of each query; see ``recall_interval``.
        candidates: number of candidates.
    """
    right, reference_right = measured.ranks == 1, reference.ranks == 1
    lost, won = count_changes(reference_right, right)
    return RankAgreement(
        top1_agreement=float(np.mean(measured.best[:, 0] == reference.best[:, 0])),
        top10_overlap=_overlap(measured.best, reference.best) if candidates > TOP else None,
        mean_rank_change=float(measured.ranks.mean() - reference.ranks.mean()),
        recall_drop=(lost - won) / len(right),
        recall_drop_bound=recall_drop_bound(reference_right, right, groups),
        lost=lost,
        won=won,
    )


def _overlap(first: IntArray, second: IntArray) -> float:
    """Return the mean share of the candidates of a row that both arrays, shape (Q, K), have."""
    both = np.sort(np.concatenate([first, second], axis=1), axis=1)
    return float(np.count_nonzero(both[:, 1:] == both[:, :-1])) / first.size
