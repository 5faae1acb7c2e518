"""The first stage of two: which k gallery items of each query are worth a second look. Pure numpy, chunked.

Shapes: Q queries, G gallery items, k candidates.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.recall import Indices, Positives, Ranks, Scores, best_positive, chunks, is_positive, ranks


@dataclass(frozen=True)
class FirstStage:
    """A ranking and its best k.

    Attributes:
        ranks: Of the whole gallery.
        candidates_Qk: int64 [Q, k], by position in the gallery.
        tied_Q: int64 [Q], candidates with the score of the best positive.
        found_Q: bool [Q], a positive is among the candidates.
        boundary_ties: Queries with equal scores inside and outside the k; which came in says nothing about the system.
    """

    ranks: Ranks
    candidates_Qk: Indices
    tied_Q: Indices
    found_Q: NDArray[np.bool_]
    boundary_ties: int


def first_stage(scores_QG: Scores, positives: Positives, k: int) -> FirstStage:
    """Ranks all queries and picks candidates; a gallery smaller than k is taken whole.

    Equal scores at place k are taken by position in the gallery, whether right or wrong: the choice must not know the
    truth.
    """
    found = ranks(scores_QG, positives)
    candidates_Qk, boundary_ties = top(scores_QG, k)
    best_Q1 = best_positive(scores_QG, positives)[:, None]
    tied_Q = (np.take_along_axis(scores_QG, candidates_Qk, 1) == best_Q1).sum(1)
    right_Qk = is_positive(candidates_Qk, positives)
    return FirstStage(found, candidates_Qk, tied_Q, np.any(right_Qk, axis=1), boundary_ties)


def top(scores_QG: Scores, k: int) -> tuple[Indices, int]:
    """The best k of each row, int64 [Q, k] in ascending position, and in how many rows a tie straddles place k."""
    queries, gallery = scores_QG.shape
    k = min(k, gallery)
    candidates_Qk = np.empty((queries, k), np.int64)
    boundary_ties = 0
    for rows in chunks(queries, gallery):
        chunk = np.ascontiguousarray(scores_QG[rows])
        threshold_Q1 = np.partition(chunk, gallery - k, axis=1)[:, gallery - k, None]
        chosen = chunk >= threshold_Q1
        for row in np.flatnonzero(chosen.sum(1) > k):
            level = np.flatnonzero(chunk[row] == threshold_Q1[row])
            chosen[row, level[k - np.count_nonzero(chosen[row]) :]] = False
            boundary_ties += 1
        candidates_Qk[rows] = np.nonzero(chosen)[1].reshape(-1, k)
    return candidates_Qk, boundary_ties
